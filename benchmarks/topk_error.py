"""How far a served teacher's top-K list is from the full vocabulary: KL(student || teacher) of the tiny pair.

The student hears short spoken exchanges and samples replies, the teacher reads the transcripts as in
recipes/tiny/distill.toml; at every reply token the divergence is taken over the full vocabulary and over the teacher's
K likeliest tokens, with a bucket for the rest and renormalised. Printed for each K, as means over tokens: the teacher's
and the student's probability outside the list, and of both forms the absolute error in nats, that error as a share of
the mean divergence, and the cosine between the gradients of the two means to the student's hidden states.

The divergence of an untrained student is not typical: give the checkpoint of a stage by --student.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from machine import describe
from torch import Tensor

from rlspeech.config import DistillConfig, SynthConfig
from rlspeech.engines.batches import make_batches
from rlspeech.engines.build import build_rollouts, build_teacher
from rlspeech.engines.loading import StudentPlace, teacher_folder
from rlspeech.engines.measure import policy_of
from rlspeech.maths.distill import Divergence, full_vocabulary, topk_renormalised, topk_tail
from rlspeech.maths.logprobs import logits
from rlspeech.protocols import Sampling
from rlspeech.recipe import load
from rlspeech.stages import synth
from rlspeech.stages.hearing import flat, hear, listen, read_samples
from rlspeech.stages.models import use_threads

SIZES = [8, 16, 32, 64, 128, 256, 1024]
FORMS: dict[str, Callable[..., Divergence]] = {"bucket": topk_tail, "renormalised": topk_renormalised}
SET = "test_voice"  # voices that are not learned from


class Tokens(NamedTuple):
    """N reply tokens: hidden states of both sides, and both projections."""

    hidden: Tensor
    head: Tensor
    teacher_hidden: Tensor
    teacher_head: Tensor


def sampled_tokens(args: argparse.Namespace, folder: Path) -> Tokens:
    synth.run(SynthConfig(out=folder, sets={SET: args.recordings}, seed=args.seed))
    config = load(DistillConfig, "tiny/distill", {"data.tests.test-voice": f"{folder / SET}.jsonl"})
    student = StudentPlace.of(args.student).load()
    kinds = config.reading.kinds
    samples = read_samples(config.data.tests["test_voice"], config.data, ("audio", "transcript"), kinds=kinds)
    sampling = Sampling(max_tokens=config.sampling.max_tokens, temperature=1.0, seed=args.seed)
    rollouts = build_rollouts(student).generate(*flat(hear(student, listen(samples))), sampling)
    teacher = build_teacher(teacher_folder(args.teacher), config.reading, student)
    scored = teacher.score([r.sample for r in rollouts], [r.completion for r in rollouts])
    head = teacher.head()
    if head is None:
        raise ValueError("the teacher gives no full vocabulary")
    with torch.no_grad():
        batches = make_batches(student, rollouts, micro_batch=8, scored=scored, teacher_head=head)
        hidden = torch.cat([policy_of(student, batch, 1.0).hidden for batch in batches])
    states = [batch.teacher_hidden for batch in batches if batch.teacher_hidden is not None]
    return Tokens(hidden, student.head().detach(), torch.cat(states), head)


@torch.no_grad()
def top_tokens(tokens: Tokens, count: int, chunk: int = 256) -> tuple[Tensor, Tensor]:
    """Ids and log-probs of the teacher's likeliest tokens [N, count]."""
    tops = [
        F.log_softmax(logits(hidden, tokens.teacher_head), dim=-1).topk(count)
        for hidden in tokens.teacher_hidden.split(chunk)
    ]
    return torch.cat([top.indices for top in tops]), torch.cat([top.values for top in tops])


def with_gradient(tokens: Tokens, of_hidden: Callable[[Tensor], Divergence]) -> tuple[Divergence, Tensor]:
    """The divergence, and the gradient of its mean to the hidden states [N * D]."""
    hidden = tokens.hidden.clone().requires_grad_()
    found = of_hidden(hidden)
    (gradient,) = torch.autograd.grad(found.nats.mean(), hidden)
    return found, gradient.flatten()


def of_list(form: Callable[..., Divergence], head: Tensor, ids: Tensor, logprobs: Tensor, hidden: Tensor) -> Divergence:
    return form(hidden, head, ids, logprobs)


def table(tokens: Tokens, sizes: Sequence[int]) -> None:
    full, gradient = with_gradient(tokens, lambda hidden: full_vocabulary(hidden, *tokens[1:]))
    mean = full.nats.mean().item()
    print(f"{len(tokens.hidden)} reply tokens, KL(student || teacher) {mean:.4f} nats over the full vocabulary\n")
    columns = [f"{name} {what}" for name in FORMS for what in ("error, nats", "error, share", "gradient cosine")]
    print("| " + " | ".join(["K", "teacher outside", "student outside", *columns]) + " |")
    print("|---" * (3 + len(columns)) + "|")
    ids, logprobs = top_tokens(tokens, max(sizes))
    for size in sizes:
        cells = [f"{1 - logprobs[:, :size].exp().sum(-1).mean().item():.5f}"]
        for form in FORMS.values():
            listed, slope = with_gradient(
                tokens, partial(of_list, form, tokens.head, ids[:, :size], logprobs[:, :size])
            )
            error = (listed.nats - full.nats).abs().mean().item()
            if len(cells) == 1:
                cells.append(f"{listed.extra_mass.mean().item():.5f}")
            cosine = torch.cosine_similarity(slope, gradient, dim=0).item()
            cells += [f"{error:.4f}", f"{error / mean:.1%}", f"{cosine:.4f}"]
        print(f"| {size} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="tiny", help="short name or folder of the student")
    parser.add_argument("--teacher", default="tiny-llm", help="short name or folder of the teacher")
    parser.add_argument("--recordings", type=int, default=12, help="spoken exchanges to reply to")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    use_threads(args.threads, args.seed)
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        table(sampled_tokens(args, Path(folder)), SIZES)


if __name__ == "__main__":
    main()
