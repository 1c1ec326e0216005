"""Places audio frames on the language model's own token embeddings, without running the language model.

The projector learns to map each encoder frame to the embedding of the token that is heard in it (silence has the
placeholder's embedding). A softmax over negative squared distances tells tokens apart and a pull shortens the
distance. Minutes of CPU, after which the language-model loss has something to read.

M frames of a step, C tokens that occur in the words, H encoder's hidden size, D the language model's.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rlspeech.config import FramesConfig
from rlspeech.engines.learner_torch import learnable
from rlspeech.errors import UserError
from rlspeech.maths.frames import SILENCE, frame_labels
from rlspeech.protocols import Metrics, Student
from rlspeech.types import Prompt, Sample

SCALE_LR = 1e-2  # of the softmax's learned temperature
WARMUP_STEPS = 30


def place_frames(
    student: Student,
    samples: Sequence[Sample],
    prompts: Sequence[Prompt],
    settings: FramesConfig,
    *,
    seed: int,
    on_step: Callable[[int, Metrics], None],
) -> None:
    """Trains the projector in place on one prompt per audio. The samples need word timings.

    Raises UserError where the projector reads several frames at once: none of them has a place of its own.
    """
    if not student.framewise:
        raise UserError("align: this student's projector reads several frames at once; give --frames.steps 0")
    frames_FH, labels_F, tokens_C = _labelled(student, samples, prompts)
    embeddings_CD = student.model.get_input_embeddings().weight[tokens_C].detach()
    generator = torch.Generator().manual_seed(seed)
    log_scale = nn.Parameter(torch.tensor(1.0))
    projector = [value for name, value in learnable(student.model).items() if student.is_projector(name)]
    optimizer = torch.optim.AdamW(
        [{"params": projector, "peak": settings.lr}, {"params": [log_scale], "peak": SCALE_LR}], weight_decay=0.05
    )
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * min(1.0, (step + 1) / WARMUP_STEPS) * (1 - step / settings.steps)
        chosen_M = torch.randint(len(frames_FH), (settings.batch_frames,), generator=generator)
        heard_MH = frames_FH[chosen_M]
        heard_MH = heard_MH + settings.noise * torch.randn(heard_MH.shape, generator=generator)
        loss, accuracy = _loss(student.project(heard_MH), labels_F[chosen_M], embeddings_CD, log_scale, settings)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        on_step(step, {"loss": loss.item(), "frame_accuracy": accuracy.item()})


def _loss(
    placed_MD: Tensor, labels_M: Tensor, embeddings_CD: Tensor, log_scale: Tensor, settings: FramesConfig
) -> tuple[Tensor, Tensor]:
    size = embeddings_CD.pow(2).sum(-1).mean()
    logits_MC = -torch.cdist(placed_MD, embeddings_CD).pow(2) / size * log_scale.exp()
    apart = cross_entropy(logits_MC, labels_M, label_smoothing=settings.label_smoothing)
    pull = (placed_MD - embeddings_CD[labels_M]).pow(2).sum(-1).mean() / size
    return apart + settings.pull * pull, (logits_MC.argmax(-1) == labels_M).float().mean()


def _labelled(
    student: Student, samples: Sequence[Sample], prompts: Sequence[Prompt]
) -> tuple[Tensor, Tensor, list[int]]:
    """All frames [F, H], their labels as indices into the tokens [F], and the tokens [C] (silence first)."""
    ids_of: dict[str, list[int]] = {}
    labels: list[int] = []
    frames: list[Tensor] = []
    for sample, prompt, encoded in zip(samples, prompts, _encoded(student, prompts), strict=True):
        spoken = [word for word in sample.words if word.text.strip(PUNCTUATION)]
        for word in spoken:
            if word.text not in ids_of:
                text = " " + word.text.strip(PUNCTUATION)
                ids_of[word.text] = student.tokenizer(text, add_special_tokens=False).input_ids
        ids = [ids_of[word.text] for word in spoken]
        labels += frame_labels(spoken, ids, frames=len(encoded), frame_s=student.frame_s)
        frames.append(encoded)
        if len(encoded) == 0:
            raise ValueError(f"{prompt.audio_key}: no frames")
    tokens = [student.placeholder_id, *sorted(set(labels) - {SILENCE})]
    place = {token: index for index, token in enumerate(tokens)} | {SILENCE: 0}
    return torch.cat(frames), torch.tensor([place[label] for label in labels]), tokens


PUNCTUATION = ".,;:!?\"'()"
ENCODED_AT_ONCE = 16


@torch.no_grad()
def _encoded(student: Student, prompts: Sequence[Prompt]) -> list[Tensor]:
    """Encoder output of every prompt, those of like length together."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].token_ids))
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), ENCODED_AT_ONCE):
        chunk = order[start : start + ENCODED_AT_ONCE]
        found |= zip(chunk, student.encode([prompts[index] for index in chunk]), strict=True)
    return [found[index] for index in range(len(prompts))]
