"""A step of sft as TRL's SFTTrainer takes it on the same tokens: equal loss, equal gradient of every parameter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen2ForCausalLM, TrainerCallback

from rlspeech.config import OptimConfig
from rlspeech.engines.batches import make_batches, reference_rollouts
from rlspeech.engines.learner_torch import TorchLearner
from rlspeech.losses.cross_entropy import Loss
from rlspeech.students.tiny import Student
from rlspeech.types import Rollout, Sample, TokenBatch

DECODER = "model.language_model."
ASKED = [  # two of one prompt, which share its positions in our batch and are two rows of TRL's; six lengths
    ("Who speaks?", "Anna."),
    ("Who speaks?", "Anna, and after her Peter, who comes from the kitchen."),
    ("What is red?", "The lamps are."),
    ("Where will they meet, and when, and what for?", "At noon, at the station."),
    ("Say nothing.", ""),
    ("Sum up.", "Two people meet. They talk of lamps and of boxes, and then they part."),
]


@dataclass(frozen=True)
class Step:
    """What a trainer has found by the time that its optimizer moves the parameters."""

    loss: float
    gradients: dict[str, Tensor]  # of each parameter, under the names of a causal language model
    learned: list[list[bool]]  # of each row of each micro-batch: where a hidden state has a gradient of its own


@contextmanager
def hidden_gradients(decoder: nn.Module) -> Iterator[list[list[bool]]]:
    """Filled in by each backward pass through the decoder's last hidden states [B, T, D]."""
    seen: list[list[bool]] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        def look(gradient_BTD: Tensor) -> None:
            seen.extend((gradient_BTD != 0).any(-1).tolist())

        if output.last_hidden_state.requires_grad:
            output.last_hidden_state.register_hook(look)

    handle = decoder.register_forward_hook(keep)
    yield seen
    handle.remove()


def student_of(folder: Path) -> Student:
    student = Student.load(folder, dtype=torch.float64)
    with torch.no_grad():
        student.head().mul_(12)  # a random head is nearly indifferent
    student.prepare("sft", train_projector=False)  # all of the language model, and nothing that hears
    return student


def rollouts_of(student: Student) -> list[Rollout]:
    samples = [Sample(str(index), asked, reference=said) for index, (asked, said) in enumerate(ASKED)]
    return reference_rollouts(student, samples, [student.render(sample, None) for sample in samples])


def ours(student: Student, batches: Sequence[TokenBatch], loss: Loss) -> Step:
    optim = OptimConfig(steps=1, lr=1e-3, warmup_steps=0, schedule="constant", max_grad_norm=1e9)
    learner = TorchLearner.of(student, optim)
    gradients: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        for name, value in student.model.named_parameters():
            if value.grad is not None:
                gradients[name.replace(DECODER, "model.")] = value.grad.clone()

    learner.optimizer.register_step_pre_hook(keep)
    with hidden_gradients(student.decoder) as learned:
        told = learner.step(batches, loss)
    return Step(told.metrics["train/loss"], gradients, learned)


def causal_model(student: Student) -> PreTrainedModel:
    """The student's language model by itself, as TRL trains one."""
    model = Qwen2ForCausalLM(student.model.config.text_config).double()
    state = student.model.state_dict()
    own = {name.replace(DECODER, "model."): state[name] for name in state if student.is_decoder(name)}
    model.load_state_dict(own, strict=True)
    return model


def by_trl(student: Student, rollouts: Sequence[Rollout], loss: Loss, folder: Path, *, rows: int) -> Step:
    """One step of TRL 1.16's SFTTrainer on rows of tokens: its labels, collator, loss and accumulation."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    replies = [rollout.completion.token_ids for rollout in rollouts]
    prompts = [rollout.prompt.token_ids for rollout in rollouts]
    table = {
        "input_ids": [[*asked, *said] for asked, said in zip(prompts, replies, strict=True)],
        "completion_mask": [[0] * len(asked) + [1] * len(said) for asked, said in zip(prompts, replies, strict=True)],
    }
    gradients: dict[str, Tensor] = {}
    losses: list[float] = []

    class Told(SFTTrainer):
        def compute_loss(self, *args: Any, **options: Any) -> Tensor:
            value = super().compute_loss(*args, **options)
            losses.append(float(value.detach()))
            return value

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, model: nn.Module, **__: Any) -> None:
            gradients.update({name: value.grad.clone() for name, value in model.named_parameters()})

    settings = SFTConfig(
        output_dir=str(folder),
        loss_type="nll",
        label_smoothing_factor=loss.label_smoothing,
        completion_only_loss=True,
        max_length=None,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=len(rollouts) // rows,
        max_steps=1,
        max_grad_norm=0.0,  # not clipped
        save_strategy="no",
        report_to="none",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        disable_tqdm=True,
    )
    model = causal_model(student)
    given = {"train_dataset": Dataset.from_dict(table), "processing_class": student.tokenizer}
    trainer = Told(model, settings, **given, callbacks=[Keep()])
    with hidden_gradients(model.model) as learned:
        trainer.train()
    assert len(losses) == len(rollouts) // rows
    return Step(sum(losses), gradients, learned)


@pytest.mark.filterwarnings("ignore:`label_smoothing_factor` is deprecated")
@pytest.mark.parametrize("loss", [Loss(), Loss(label_smoothing=0.2)], ids=str)
def test_loss_and_every_gradient_are_trls_however_the_step_is_cut(
    loss: Loss, small_student: Path, tmp_path: Path
) -> None:
    """Both divide by the reply tokens of the whole step: micro-batches of uneven lengths weigh what they hold.

    The models are float64's; TRL's head and what it smooths are float32's.
    """
    rollouts = rollouts_of(student_of(small_student))
    theirs = by_trl(student_of(small_student), rollouts, loss, tmp_path, rows=2)
    for micro_batch in (2, 8):
        student = student_of(small_student)
        batches = make_batches(student, rollouts, micro_batch=micro_batch)
        assert len(batches) == {2: 3, 8: 1}[micro_batch]
        found = ours(student, batches, loss)
        assert found.loss == pytest.approx(theirs.loss, rel=1e-6)
        assert found.gradients.keys() == theirs.gradients.keys()
        for name, gradient in theirs.gradients.items():
            torch.testing.assert_close(
                found.gradients[name], gradient, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}"
            )
            assert gradient.abs().max() > 3e-4, name


def test_only_reply_tokens_are_learned_here_and_by_trl(small_student: Path, tmp_path: Path) -> None:
    """A hidden state has a gradient where the next token is of the reply, its end included, and nowhere else."""
    student = student_of(small_student)
    rollouts = rollouts_of(student)
    sizes = [(len(rollout.prompt.token_ids), len(rollout.completion.token_ids)) for rollout in rollouts]
    expected = sorted([False] * (asked - 1) + [True] * said for asked, said in sizes)
    theirs = by_trl(student, rollouts, Loss(), tmp_path, rows=1)
    assert sorted(row[:-1] for row in theirs.learned) == expected
    alone = [batch for rollout in rollouts for batch in make_batches(student, [rollout], micro_batch=1)]
    assert sorted(ours(student, alone, Loss()).learned) == expected
