"""Long audio, in every family: how much of it fits, and what does not hang on how it is gone through."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from test_families import QUESTION, noise

from rlspeech.data import audio
from rlspeech.engines.batches import make_batches, reference_rollouts
from rlspeech.errors import UserError
from rlspeech.stages.hearing import flat, hear, listen
from rlspeech.types import Audio, Prompt, Sample


@pytest.mark.parametrize("reply_tokens", [0, 400])
def test_audio_longer_than_the_context_says_how_many_seconds_fit(student: Any, reply_tokens: int) -> None:
    """With the reply: so many seconds fit, and one more does not."""

    def render(seconds: float) -> Prompt:
        return student.render(Sample("a", QUESTION), noise(seconds), reply_tokens=reply_tokens)

    reply = f"a reply of up to {reply_tokens}, " if reply_tokens else ""
    with pytest.raises(
        UserError, match=rf"^a: 400 s of audio make a prompt .*{reply}.*context is 2048; \d+ s fit$"
    ) as caught:
        render(400.0)
    fit = int(str(caught.value).split(";")[1].split()[0])
    assert len(render(fit).token_ids) <= 2048 - reply_tokens
    with pytest.raises(UserError, match=f"; {fit} s fit"):
        render(fit + 1)


def test_text_that_leaves_the_reply_no_room_is_refused(student: Any) -> None:
    with pytest.raises(UserError, match=r"^a: a prompt of \d+ tokens and a reply of up to 2048, .* context is 2048$"):
        student.render(Sample("a", QUESTION), None, reply_tokens=2048)


def sound(seconds: float, name: str = "") -> Prompt:
    """What an encoder is given of a prompt, which would not fit into the context of a small model."""
    return Prompt((), (noise(seconds).samples,), f"{name}/{seconds}")


HEARD_S = (0.8, 62.0, 3.1)  # of several windows, and of less than one


def test_frames_and_gradients_do_not_hang_on_how_many_windows_are_encoded_at_once(student: Any) -> None:
    student.prepare("align", train_encoder=True)
    heard = [sound(seconds) for seconds in HEARD_S]
    (together, whole), (apart, parts) = (encoded(student, heard, at_once) for at_once in (16, 1))
    for ours, theirs in zip(apart, together, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.allclose(parts[name], value, atol=1e-3 * float(value.abs().max()) + 1e-5), name


def encoded(student: Any, heard: list[Prompt], at_once: int) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Frames, and of a sum of them weighed at random the gradients of what learns in the encoder."""
    student.windows_at_once = at_once
    frames = student.encode(heard)
    generator = torch.Generator().manual_seed(0)
    sum((one * torch.randn(one.shape, generator=generator)).sum() for one in frames).backward()
    named = {name: value.grad for name, value in student.tower.named_parameters() if value.grad is not None}
    student.model.zero_grad(set_to_none=True)
    return [one.detach() for one in frames], named


def test_the_encoders_memory_is_that_of_the_windows_at_once(student: Any) -> None:
    """The largest tensor that any of its layers makes is no larger for an audio that is three times as long."""
    found = {
        (seconds, at_once): max(made(student, seconds, at_once)) for seconds in (62.0, 186.0) for at_once in (1, 16)
    }
    assert found[186.0, 1] <= 1.01 * found[62.0, 1]
    assert found[186.0, 16] > 2 * found[186.0, 1]


def made(student: Any, seconds: float, at_once: int) -> list[int]:
    """Bytes of each tensor that a layer of the encoder makes, but for tables of positions."""
    found: list[int] = []

    def note(module: Any, given: Any, out: Any) -> None:
        found.extend(each.nbytes for each in (out, *(out if isinstance(out, tuple) else ())) if torch.is_tensor(each))

    layers = [one for one in student.tower.modules() if not isinstance(one, torch.nn.Embedding)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    student.windows_at_once = at_once
    student.encode([sound(seconds, f"{at_once}")])
    for handle in handles:
        handle.remove()
    return found


def test_while_the_encoder_learns_little_is_kept_of_a_pass(student: Any) -> None:
    """Its features and frames, and of Granite Speech's those of every layer, are kept for the backward pass."""
    student.prepare("align", train_encoder=True)
    kept: list[int] = []

    def note(value: torch.Tensor) -> torch.Tensor:
        kept.append(value.nbytes)
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        everything = made(student, 186.0, 4)
    assert sum(kept) < 0.15 * sum(everything)


def test_learner_and_vllm_hear_the_same_bytes_which_were_resampled_once(student: Any, tmp_path: Path) -> None:
    """A stereo file of 44.1 kHz. vLLM's own parser takes what it is given; a piece of long audio comes after the other.

    Padding behind the last piece is each side's own.
    """
    from vllm.multimodal.parse import MultiModalDataParser

    stereo = np.random.default_rng(0).normal(scale=0.1, size=(62 * 44_100, 2))
    soundfile.write(tmp_path / "a.flac", stereo, 44_100)
    sample = Sample("a", "Who?", Audio(tmp_path / "a.flac"), reference="Anna.")
    samples, prompts = flat(hear(student, listen([sample])))
    (batch,) = make_batches(student, reference_rollouts(student, samples, prompts), micro_batch=1)
    given = student.vllm_input(prompts[0])["multi_modal_data"]
    parser = MultiModalDataParser(target_sr=student.extractor.sampling_rate, target_channels=1)
    sides = {
        "decoder": [audio.read(sample.audio).samples],
        "learner": batch.features[0].features,
        "vllm": list(parser.parse_mm_data(given)["audio"]),
    }
    assert {wave.dtype for waves in sides.values() for wave in waves} == {np.dtype(np.float32)}
    assert len({sha256(np.concatenate(waves).tobytes()).hexdigest() for waves in sides.values()}) == 1
