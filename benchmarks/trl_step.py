"""Seconds of a step of on-policy distillation: rlspeech's engines against TRL's own DistillationTrainer, without audio.

Both learn the same network (the student's language model; TRL has it as a model of its own, less the rows of tokens
that the student has added) from the same teacher in process, on the same prompts, all of them in one forward pass,
every reply exactly --max-tokens long, by the same loss (reverse KL over the full vocabulary), in float32, with AdamW at
one rate and the same clipping, with LoRA on all linear layers (both begin with the same adapter) or in full. Both
sample by transformers' `generate`. All else is as each of them ships: rlspeech samples with the adapter merged, keeps
the sampler's log-probs and corrects for them; TRL does neither, and has the fused AdamW. TRL's gradient checkpointing
(on by default, ours is not), logging, saving and reporting are off. Of rlspeech's stage the engines' work is counted
(sampling, scoring, batches, learning), not its run folder; of TRL what lies between a step's begin and its end.

Two measurements, the two sides in turn in one process, the first to go alternating, after one warm-up step each:
learner only, where both are fed the same replies, without log-probs; then whole steps, where each samples its own.
The tiny student's language model is its teacher before anything is learned, so its matrices get noise first: there is
a divergence to lower. The comparison is void, and the exit status 1, where the two differ in prompts, in the number of
reply tokens, or by more than 1e-3 nats a token in the divergence of any learner-only step. Printed: medians and minima
of the seconds of each part, ours / TRL (below 1: rlspeech is faster), and reply tokens a second.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from machine import describe
from peft import LoraConfig
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PrinterCallback, TrainerCallback
from transformers.utils import logging
from trl import DistillationConfig, DistillationTrainer

from rlspeech.config import OptimConfig
from rlspeech.config_objective import ImportanceConfig
from rlspeech.engines.batches import make_batches
from rlspeech.engines.build import build_rollouts
from rlspeech.engines.learner_torch import TorchLearner
from rlspeech.engines.loading import StudentPlace, teacher_folder
from rlspeech.engines.teacher_text import Reading
from rlspeech.engines.teacher_transformers import TransformersTeacher
from rlspeech.losses.reverse_kl import Loss
from rlspeech.protocols import Sampling, Student
from rlspeech.stages.models import use_threads
from rlspeech.types import Rollout, Sample

AGREE_NATS = 1e-3  # largest difference a token between the two divergences
TELLING_NATS = 0.1  # least divergence of the first step: of two equal models any two losses agree
NOISE = 0.3  # of the student's matrices before it learns, in their standard deviations
LR = 1e-4
LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SENTENCES = [
    "Nora asked whether the ferry to the island still leaves at seven in the morning.",
    "The last one was cancelled because of the wind, so we waited in the small cafe by the harbour.",
    "Peter would rather take the train and walk the rest of the way.",
    "It costs twelve euros for adults and nothing for children below six.",
    "Nobody had thought of bringing the tent, but the blue house behind the church has two free rooms.",
    "They want to come back on Sunday evening, in time for the concert.",
]


class Void(Exception):
    """The two sides did not do the same work."""


@dataclass(frozen=True)
class Seconds:
    sample: float
    learn: float  # with the teacher's scores

    @property
    def step(self) -> float:
        return self.sample + self.learn


@dataclass
class Ours:
    """rlspeech's engines, as stages/distill.py uses them."""

    student: Student
    teacher: TransformersTeacher
    learner: TorchLearner
    samples: Sequence[Sample]
    max_tokens: int
    kl_nats: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rollouts = build_rollouts(self.student, batch=len(self.samples))
        self.prompts = [self.student.render(sample, None) for sample in self.samples]

    def sample(self, step: int) -> list[Rollout]:
        self.rollouts.load_weights(self.learner, step)
        return self.rollouts.generate(self.samples, self.prompts, Sampling(max_tokens=self.max_tokens, seed=step))

    def learn(self, rollouts: Sequence[Rollout]) -> None:
        scored = self.teacher.score([r.sample for r in rollouts], [r.completion for r in rollouts])
        batches = make_batches(
            self.student, rollouts, micro_batch=len(rollouts), scored=scored, teacher_head=self.teacher.head()
        )
        self.kl_nats.append(self.learner.step(batches, Loss()).metrics["kl/train_nats"])

    def step(self, step: int, fed: Sequence[Rollout] | None) -> Seconds:
        started_s = time.perf_counter()
        rollouts = fed or self.sample(step)
        sampled_s = time.perf_counter()
        self.learn(rollouts)
        learned_s = time.perf_counter()
        _check_lengths([r.completion.token_ids for r in rollouts], self.max_tokens)
        return Seconds(sampled_s - started_s, learned_s - sampled_s)


class Theirs(DistillationTrainer):
    """TRL's trainer; the first `fed_steps` steps learn from `fed` instead of replies of their own."""

    fed: Sequence[Sequence[int]] = ()
    fed_steps = 0
    sample_s = 0.0
    prompt_ids: Sequence[Sequence[int]] = ()
    kl_nats: list[float]

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        started_s = time.perf_counter()
        found = super()._generate_and_score_completions(inputs)
        self.sample_s = time.perf_counter() - started_s
        return found

    def _generate_single_turn(self, prompt_ids: Any, *others: Any, **named: Any) -> Any:
        self.prompt_ids = prompt_ids
        if self.state.global_step < self.fed_steps:
            return [list(reply) for reply in self.fed]
        replies = super()._generate_single_turn(prompt_ids, *others, **named)
        _check_lengths(replies, self.max_completion_length)
        return replies

    def training_step(self, *others: Any, **named: Any) -> torch.Tensor:
        loss = super().training_step(*others, **named)
        self.kl_nats.append(float(loss))
        return loss


@dataclass
class InTurn(TrainerCallback):
    """Inside TRL's loop: a step of ours beside each of theirs, before it where the step is odd, after it where even."""

    ours: Ours
    theirs: Theirs
    fed: Sequence[Rollout]
    found: list[tuple[Seconds, Seconds]] = field(default_factory=list)  # ours, theirs
    mine: Seconds | None = None
    started_s: float = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.mine = self._step(state.global_step) if state.global_step % 2 else None
        self.started_s = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        whole_s = time.perf_counter() - self.started_s
        other = Seconds(self.theirs.sample_s, whole_s - self.theirs.sample_s)
        self.found.append((self.mine or self._step(state.global_step - 1), other))

    def _step(self, step: int) -> Seconds:
        return self.ours.step(step, self.fed if step < self.theirs.fed_steps else None)


def make_samples(count: int) -> list[Sample]:
    """Prompts of one to four sentences, no two alike. The transcript only tells the teacher that there is one."""
    samples = []
    for index in range(count):
        said = " ".join(SENTENCES[(index + more) % len(SENTENCES)] for more in range(1 + index % 4))
        text = f'Recording {index + 1}: "{said}"\n\nWhat is it about? Answer in one short sentence.'
        samples.append(Sample(str(index), text, transcript=text))
    return samples


def twin(student: Student, vocabulary: int) -> PreTrainedModel:
    """The student's language model alone, with its first `vocabulary` tokens: TRL wants as many as the teacher has."""
    config = student.decoder.config.to_dict() | {"vocab_size": vocabulary, "tie_word_embeddings": False}
    model = AutoModelForCausalLM.from_config(
        type(student.decoder.config)(**config), dtype=torch.float32, attn_implementation="sdpa"
    )
    state = {f"model.{name}": value for name, value in student.decoder.state_dict().items()}
    state["lm_head.weight"] = student.head().detach()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = state[name][:vocabulary]
    model.load_state_dict(state)
    end = student.end_token_id
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=end, pad_token_id=end)
    return model


def build(args: argparse.Namespace, folder: str) -> tuple[Ours, Theirs]:
    student = StudentPlace.of(args.student).load()
    teacher = TransformersTeacher.load(teacher_folder(args.teacher), Reading("{instruction}"))
    teacher.tokenizer.chat_template = student.tokenizer.chat_template  # so that teacher and student read one prompt
    add_noise(student.decoder, args.seed)
    other = twin(student, len(teacher.head()))
    lora = {"rank": args.rank, "alpha": 2 * args.rank, "dropout": 0.0} if args.rank else None
    student.prepare("distill", lora, train_projector=False)
    # The end is a token that is never written: replies run to their greatest length.
    student.end_token_id = student.placeholder_id
    optim = OptimConfig(steps=1, lr=LR, schedule="constant", warmup_steps=0)
    samples = make_samples(args.prompts)
    learner = TorchLearner.of(student, optim, ImportanceConfig())
    ours = Ours(student, teacher, learner, samples, args.max_tokens)
    theirs = build_theirs(args, folder, other, teacher, samples)
    if lora:
        _same_adapter(student.model, theirs.model)
    return ours, theirs


def add_noise(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            weight = module.weight.data
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=NOISE * float(weight.std()))


def build_theirs(
    args: argparse.Namespace,
    folder: str,
    model: PreTrainedModel,
    teacher: TransformersTeacher,
    samples: Sequence[Sample],
) -> Theirs:
    settings = DistillationConfig(
        folder,
        use_cpu=True,
        bf16=False,
        beta=1.0,  # reverse KL
        learning_rate=LR,
        lr_scheduler_type="constant",
        per_device_train_batch_size=args.prompts,
        max_steps=2 * (args.repeats + 1),
        max_completion_length=args.max_tokens,
        generation_kwargs={"min_new_tokens": args.max_tokens},
        gradient_checkpointing=False,
        shuffle_dataset=False,
        seed=args.seed,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    lora = LoraConfig(
        r=args.rank, lora_alpha=2 * args.rank, target_modules=LINEAR_LAYERS, lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    trainer = Theirs(
        model=model,
        teacher_model=teacher.model,
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": teacher.messages(sample)} for sample in samples]),
        processing_class=teacher.tokenizer,
        peft_config=lora if args.rank else None,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.kl_nats = []
    return trainer


def _same_adapter(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    """Theirs begins with our adapter, so that all losses of the learner-only steps can be compared."""
    found = {_layer(name): value for name, value in ours.named_parameters() if ".lora_" in name}
    wanted = {_layer(name): value for name, value in theirs.named_parameters() if ".lora_" in name}
    if found.keys() != wanted.keys():
        raise Void("the adapters are not on the same layers")
    for name, value in wanted.items():
        value.data.copy_(found[name])


def _layer(parameter: str) -> str:
    return parameter.split("layers.", 1)[1]


def run(args: argparse.Namespace, ours: Ours, theirs: Theirs) -> list[tuple[Seconds, Seconds]]:
    """Seconds of every step, warm-up included: learner-only steps, then as many whole ones."""
    sampled = ours.sample(args.seed)
    fed = [replace(rollout, completion=replace(rollout.completion, logprobs=())) for rollout in sampled]
    theirs.fed = [rollout.completion.token_ids for rollout in fed]
    theirs.fed_steps = args.repeats + 1
    in_turn = InTurn(ours, theirs, fed)
    theirs.add_callback(in_turn)
    theirs.train()
    _check_same(ours, theirs)
    return in_turn.found


def _check_lengths(replies: Sequence[Sequence[int]], length: int) -> None:
    if any(len(reply) != length for reply in replies):
        raise Void(f"replies of {sorted({len(reply) for reply in replies})} tokens where all should have {length}")


def _check_same(ours: Ours, theirs: Theirs) -> None:
    if [list(prompt.token_ids) for prompt in ours.prompts] != [list(ids) for ids in theirs.prompt_ids]:
        raise Void("the prompts differ")
    pairs = list(zip(ours.kl_nats, theirs.kl_nats, strict=True))[: theirs.fed_steps]
    print("KL(student || teacher) of the learner-only steps, nats a token")
    print("  ours " + " ".join(f"{mine:.5f}" for mine, _ in pairs))
    print("  TRL  " + " ".join(f"{other:.5f}" for _, other in pairs))
    if pairs[0][0] < TELLING_NATS:
        raise Void(f"student and teacher are too alike for their divergence to tell anything: {pairs[0][0]:.2g} nats")
    apart = max(abs(mine - other) for mine, other in pairs)
    if not apart <= AGREE_NATS:
        raise Void(f"the divergences are {apart:.2g} nats apart; at most {AGREE_NATS} is allowed")


def report(found: Sequence[tuple[Seconds, Seconds]], args: argparse.Namespace) -> Iterator[str]:
    half = args.repeats + 1
    tokens = args.prompts * args.max_tokens
    fed, whole = found[1:half], found[half + 1 :]
    parts = (
        ("learner only", [(mine.learn, other.learn) for mine, other in fed]),
        ("whole: sample", [(mine.sample, other.sample) for mine, other in whole]),
        ("whole: score, learn", [(mine.learn, other.learn) for mine, other in whole]),
        ("whole step", [(mine.step, other.step) for mine, other in whole]),
    )
    yield f"{'seconds':<20} {'':>6} {'ours':>8} {'TRL':>8} {'ours/TRL':>9} {'ours tok/s':>11} {'TRL tok/s':>10}"
    for name, pairs in parts:
        for kind, of in (("median", median), ("least", min)):
            mine, other = of([mine for mine, _ in pairs]), of([other for _, other in pairs])
            figures = f"{mine:8.3f} {other:8.3f} {mine / other:9.3f} {tokens / mine:11.1f} {tokens / other:10.1f}"
            yield f"{name:<20} {kind:>6} {figures}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="tiny", help="speech LLM (default: %(default)s)")
    parser.add_argument("--teacher", default="tiny-llm", help="text LLM (default: %(default)s)")
    parser.add_argument("--prompts", type=int, default=8, help="prompts a step (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=24, help="tokens of every reply (default: %(default)s)")
    parser.add_argument("--rank", type=int, default=16, help="of the adapter; 0: all weights (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="steps that count, of each kind (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the replies (default: %(default)s)")
    args = parser.parse_args()
    print(describe())
    logging.set_verbosity_error()
    use_threads(args.threads, args.seed)
    learns = f"LoRA of rank {args.rank}" if args.rank else "all weights"
    print(f"{args.prompts} prompts, replies of {args.max_tokens} tokens, {learns}, {args.threads} threads")
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = run(args, *build(args, folder))
    except Void as void:
        raise SystemExit(f"void: {void}") from None
    print("\n".join(report(found, args)))


if __name__ == "__main__":
    main()
