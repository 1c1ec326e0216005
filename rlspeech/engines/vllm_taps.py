"""What one prompt becomes inside vLLM and inside the student, from its audio to the logits: to find where they part.

F audio frames, one a placeholder, H encoder's hidden size, D the language model's, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch
from torch import Tensor, nn

from rlspeech.engines.rollout_vllm import VllmRollouts
from rlspeech.maths.logprobs import logits
from rlspeech.protocols import Sampling, Student
from rlspeech.types import Prompt, Sample

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

FEATURES, ENCODED, PROJECTED, LOGITS = "audio features", "encoder output", "projector output", "logits"
TOWER, PROJECTOR = "audio_tower", "multi_modal_projector"  # under these names a checkpoint is published
Taps = Mapping[str, Tensor]  # the four above, as far as they were met, in the order in which they come about


def in_vllm(rollouts: VllmRollouts, sample: Sample, prompt: Prompt) -> Taps:
    """Of an engine in this process; what it has in its caches is dropped, so that the audio is heard."""
    met: dict[str, Tensor] = {}
    handles: list[RemovableHandle] = []

    def attach(model: nn.Module) -> None:
        modules = dict(model.named_modules())
        processors = [module for module in modules.values() if type(module).__name__ == "LogitsProcessor"]
        handles.extend(_tap(modules, met))
        handles.extend(module.register_forward_hook(_keep(met, LOGITS)) for module in processors)

    rollouts.forget()
    rollouts.llm.apply_model(attach)
    try:
        rollouts.generate([sample], [prompt], Sampling(max_tokens=1))
    finally:
        for handle in handles:
            handle.remove()
    rollouts.forget()
    return _in_form(met, prompt, rollouts.student)


@torch.no_grad()
def in_student(student: Student, prompt: Prompt) -> Taps:
    prompt = replace(prompt, audio_key=uuid4().hex)  # students remember what they have encoded: it is heard anew
    met: dict[str, Tensor] = {}
    with _hooks(_tap(dict(student.model.named_modules()), met)):
        if prompt.features is not None:
            (met[ENCODED],) = student.encode([prompt])
            met[PROJECTED] = student.project(met[ENCODED])
        ids = torch.tensor([prompt.token_ids], device=student.head().device)
        embedded = student.embed(ids, student.collate([prompt]))
        positions = torch.arange(ids.shape[1], device=ids.device)[None] + student.first_position(prompt)
        hidden = student.decoder(inputs_embeds=embedded, position_ids=positions, use_cache=False).last_hidden_state
        met[LOGITS] = logits(hidden[0, -1:], student.head())
    return _in_form(met, prompt, student)


@contextmanager
def _hooks(handles: list[RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tap(modules: Mapping[str, nn.Module], met: dict[str, Tensor]) -> list[RemovableHandle]:
    """Hooks on what the tower is fed, gives, and becomes in the projector, wherever the two are in the model."""
    towers = [module for name, module in modules.items() if name.split(".")[-1] == TOWER]
    projectors = [module for name, module in modules.items() if name.split(".")[-1] == PROJECTOR]
    handles = [module.register_forward_hook(_keep(met, ENCODED)) for module in towers]
    handles += [module.register_forward_hook(_keep(met, PROJECTED)) for module in projectors]
    leaves = [module for tower in towers for module in tower.modules() if not any(module.children())]
    return handles + [module.register_forward_pre_hook(_keep_first(met)) for module in leaves]


def _keep(met: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, given: Any, out: Any) -> None:
        found = out if isinstance(out, Tensor) else out[0]
        met.setdefault(name, found.detach().float().cpu().clone())

    return hook


def _keep_first(met: dict[str, Tensor]) -> Callable[[nn.Module, Any], None]:
    """The first layer of the tower to run is fed the audio's features, whichever layer that is."""

    def hook(module: nn.Module, given: Any) -> None:
        met.setdefault(FEATURES, given[0].detach().float().cpu().clone())

    return hook


def _in_form(met: Mapping[str, Tensor], prompt: Prompt, student: Student) -> Taps:
    """Frames behind the sound, which only one side may have, are cut; logits are log-probs of the next token [V]."""
    heard = prompt.token_ids.count(student.placeholder_id)
    form: dict[str, Callable[[Tensor], Tensor]] = {
        FEATURES: lambda found: found,
        ENCODED: lambda found: found.reshape(-1, found.shape[-1])[:heard],
        PROJECTED: lambda found: found.reshape(-1, found.shape[-1])[:heard],
        LOGITS: lambda found: found[-1].float().log_softmax(-1),
    }
    return {name: form[name](met[name]) for name in form if name in met}
