"""`rlspeech parity`: whether transformers and vLLM are one model: prompt ids, greedy replies, log-probs, in float32."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from rlspeech.config import ParityConfig, SynthConfig, TestsConfig
from rlspeech.engines import vllm_engine
from rlspeech.engines.batches import make_batches
from rlspeech.engines.loading import StudentPlace
from rlspeech.engines.measure import measure
from rlspeech.engines.rollout_transformers import TransformersRollouts
from rlspeech.engines.rollout_vllm import OtherPrompt, VllmRollouts
from rlspeech.engines.vllm_taps import LOGITS, in_student, in_vllm
from rlspeech.errors import CheckFailed
from rlspeech.losses.cross_entropy import Loss
from rlspeech.protocols import Sampling, Student
from rlspeech.stages import synth
from rlspeech.stages.hearing import flat, hear, listen, read_samples
from rlspeech.stages.models import use_threads
from rlspeech.types import Audio, Prompt, Rollout, Sample

log = logging.getLogger(__name__)

PROMPT_IDS, REPLIES = "prompt ids", "greedy replies"
CLOSE = 1e-3  # of the largest value: what two float32 computations of one input may differ by
SPOKEN = {"test_voice": 2}  # recordings made where none are given


@dataclass(frozen=True)
class Parity:
    """`differs`: the first input that differs; None where all is equal."""

    prompts: int
    equal_replies: int
    largest_gap_nats: float | None  # None where vLLM reads other prompts
    gate_nats: float
    differs: str | None
    detail: str = ""


def run(config: ParityConfig) -> None:
    """Prints the comparison. Raises CheckFailed where it does not pass."""
    place = StudentPlace.of(config.student, trust_remote_code=config.trust_remote_code)
    use_threads(config.threads, seed=0)
    with TemporaryDirectory() as folder:
        student = place.load()
        samples, prompts = flat(hear(student, listen(_samples(config, Path(folder))), reply_tokens=config.max_tokens))
    layout = vllm_engine.Layout(threads=config.threads, trust_remote_code=config.trust_remote_code)
    settings = config.vllm.model_copy(update={"dtype": "float32"})
    log.info("%s: vLLM starts, about half a minute on a CPU", config.student)
    rollouts = VllmRollouts(vllm_engine.start(place.folder, settings, layout), student, settings)
    found = compare(student, rollouts, samples, prompts, max_tokens=config.max_tokens, gate_nats=config.gate_nats)
    _show(config.student, found)
    if config.run_dir is not None:
        config.run_dir.mkdir(parents=True, exist_ok=True)
        (config.run_dir / "parity.json").write_text(json.dumps({"student": config.student, **asdict(found)}, indent=1))
    if found.differs is not None:
        raise CheckFailed(f"parity of {config.student}: the first thing to differ is {found.differs} ({found.detail})")


def compare(
    student: Student,
    rollouts: VllmRollouts,
    samples: Sequence[Sample],
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    gate_nats: float,
) -> Parity:
    """Of a student with its weights and an engine that holds the same checkpoint."""
    greedy = Sampling(max_tokens=max_tokens)
    ours = TransformersRollouts(student).generate(samples, prompts, greedy)
    try:
        theirs = rollouts.generate(samples, prompts, greedy)
    except OtherPrompt as error:
        return Parity(len(prompts), 0, None, gate_nats, PROMPT_IDS, str(error))
    batches = make_batches(student, theirs, micro_batch=4)
    gap = measure(student, batches, Loss()).metrics["kl/sampler_learner_max_nats"]
    unlike = [at for at, pair in enumerate(zip(ours, theirs, strict=True)) if not _same_reply(*pair)]
    equal = len(prompts) - len(unlike)
    if gap <= gate_nats and not unlike:
        return Parity(len(prompts), equal, gap, gate_nats, None)
    at = _farthest(student, theirs) if gap > gate_nats else unlike[0]
    differs, detail = _first_difference(student, rollouts, samples[at], prompts[at])
    if gap <= gate_nats:
        differs, detail = REPLIES, f"{samples[at].id}: log-probs agree, so that the two best tokens are nearly tied"
    return Parity(len(prompts), equal, gap, gate_nats, differs, detail)


def _same_reply(ours: Rollout, theirs: Rollout) -> bool:
    return ours.completion.token_ids == theirs.completion.token_ids


def _farthest(student: Student, rollouts: Sequence[Rollout]) -> int:
    """The reply with the largest gap."""
    gaps = [
        measure(student, make_batches(student, [one], micro_batch=1), Loss()).metrics["kl/sampler_learner_max_nats"]
        for one in rollouts
    ]
    return gaps.index(max(gaps))


def _first_difference(student: Student, rollouts: VllmRollouts, sample: Sample, prompt: Prompt) -> tuple[str, str]:
    """The first input that differs on a prompt, and by how much."""
    ours, theirs = in_student(student, prompt), in_vllm(rollouts, sample, prompt)
    for name in ours:
        if name not in theirs:
            continue
        difference, largest = _apart(ours[name], theirs[name])
        if difference > CLOSE * largest:
            return name, f"{sample.id}: {difference:.2g} apart, where the largest value is {largest:.2g}"
    return LOGITS, f"{sample.id}: of a later token; on its prompt all inputs agree"


def _apart(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Largest difference and largest value. The longer of two feature arrays is padded by silence: it is cut."""
    shared = [min(pair) for pair in zip(ours.shape[-2:], theirs.shape[-2:], strict=True)]
    cut = [tensor[..., : shared[0], : shared[1]] if tensor.dim() > 1 else tensor for tensor in (ours, theirs)]
    return float((cut[0] - cut[1]).abs().max()), float(cut[0].abs().max())


def _samples(config: ParityConfig, folder: Path) -> list[Sample]:
    """Of the recordings given, of the held-out sets, or of a few exchanges spoken into the folder."""
    if config.audio:
        return [Sample(path.name, config.instruction, Audio(path)) for path in config.audio]
    tests = config.data.tests
    if not tests:
        synth.run(SynthConfig(out=folder, sets=SPOKEN))
        tests = {name: folder / f"{name}.jsonl" for name in SPOKEN}
    data = TestsConfig(synth=config.data.synth, skip_bad=config.data.skip_bad)
    return [sample for path in tests.values() for sample in read_samples(path, data, ("audio",))[: config.prompts]]


def _show(name: str, found: Parity) -> None:
    ids = "differ" if found.differs == PROMPT_IDS else "equal"
    print(f"{name}: transformers and vLLM, float32, {found.prompts} prompts")
    print(f"  prompt ids      {ids}")
    if found.largest_gap_nats is not None:
        print(f"  greedy replies  {found.equal_replies} of {found.prompts} equal")
        print(f"  log-probs       at most {found.largest_gap_nats:.1e} nats apart; the gate is {found.gate_nats:.0e}")
    if found.differs is not None:
        print(f"  first to differ {found.differs}: {found.detail}")
