"""The family `tiny`: Whisper tiny.en's encoder, a projector and SmolLM2-135M, laptop-sized and real.

B rows, T tokens, F audio frames after the encoder (25 a second), H encoder's hidden size, D the language model's,
V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AudioFlamingo3Config, AudioFlamingo3ForConditionalGeneration, AudioFlamingo3Processor

from rlspeech.embedded.pair import END_TOKEN_ID, MARK, SOUND, published_name, write_published
from rlspeech.errors import UserError
from rlspeech.types import Prompt, Sample, Waveform

WINDOW_S = 30  # the encoder hears windows of this length
HOP = 160  # audio samples a mel frame
MARGIN_FRAMES = 10  # mel frames of silence kept behind the sound, so that its last frames are those of a padded window
RATE_HZ = 16_000
LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CACHED_FRAMES = 400_000  # encoder outputs kept while the encoder is frozen: 600 MB
SILENCE = Prompt((), np.zeros(RATE_HZ // 10, np.float32), "silence")  # heard where there is nothing to hear


@dataclass
class Student:
    """A loaded student. Its model is trained in place."""

    model: AudioFlamingo3ForConditionalGeneration
    processor: AudioFlamingo3Processor
    lora: Mapping[str, Any] | None = None
    always_encode: bool = False  # set by a learner whose ranks meet in the tower or the projector: see `embed`
    _frames: dict[str, Tensor] = field(default_factory=dict)  # encoder outputs by audio_key

    end_token_id = END_TOKEN_ID
    frame_s = 0.04

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype = torch.float32, weights: bool = True) -> Student:
        kind = AudioFlamingo3ForConditionalGeneration
        if weights:
            model = kind.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
        else:
            with torch.device("meta"):
                model = kind(AudioFlamingo3Config.from_pretrained(folder)).to(dtype)
        return cls(model.eval().requires_grad_(False), AudioFlamingo3Processor.from_pretrained(folder))

    @property
    def placeholder_id(self) -> int:
        return self.model.config.audio_token_id

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def decoder(self) -> nn.Module:
        """The language model: embeddings in, hidden states out."""
        return self.model.model.language_model

    def head(self) -> Tensor:
        return self.model.lm_head.weight

    def render(self, sample: Sample, audio: Waveform | None) -> Prompt:
        """The audio, then the instruction, as a user's turn; ids as the processor gives them, placeholders expanded."""
        for token in self.tokenizer.all_special_tokens:
            if token in sample.instruction:
                raise UserError(f"{sample.id}: the instruction holds {token}, which stands for something else")
        if audio is None:
            return Prompt(tuple(self._ids(self._template([{"type": "text", "text": sample.instruction}]))))
        frames = _frames_out(len(audio.samples))
        if frames < 1:
            raise UserError(f"{sample.id}: {audio.duration_s:.3f} s of audio is too short to hear; 0.04 s is the least")
        if audio.duration_s > self.processor.max_audio_len:
            raise UserError(f"{sample.id}: {audio.duration_s:.0f} s of audio; at most {self.processor.max_audio_len} s")
        text = self._template([{"type": "audio"}, {"type": "text", "text": sample.instruction}])
        # The placeholder is a special token: text on its sides never merges.
        before, after = (self._ids(part) for part in text.split(SOUND, 1))
        return Prompt((*before, *[self.placeholder_id] * frames, *after), audio.samples, _key(sample))

    def _template(self, content: list[dict[str, str]]) -> str:
        messages = [{"role": "user", "content": content}]
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def vllm_input(self, prompt: Prompt) -> dict[str, Any]:
        """One placeholder an audio, which vLLM expands; it caches what it has heard under `audio_key`."""
        if prompt.features is None:
            return {"prompt_token_ids": list(prompt.token_ids)}
        first, count = prompt.token_ids.index(self.placeholder_id), prompt.token_ids.count(self.placeholder_id)
        return {
            "prompt_token_ids": [*prompt.token_ids[: first + 1], *prompt.token_ids[first + count :]],
            "multi_modal_data": {"audio": (prompt.features, RATE_HZ)},
            "multi_modal_uuids": {"audio": prompt.audio_key},
        }

    def collate(self, prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
        """Prompts with the audio of each row; `embed` encodes it."""
        return tuple(prompts)

    def embed(self, input_ids_BT: Tensor, features: Sequence[Prompt]) -> Tensor:
        """Input embeddings [B, T, D]: the audio of row b at the placeholders of row b; rows without audio have none.

        With `always_encode` a batch without audio sends silence through tower and projector and adds nothing of it:
        ranks that gather parameters or sum gradients there would otherwise wait for one another for ever.
        """
        embeddings = self.model.get_input_embeddings()(input_ids_BT)
        heard = [prompt for prompt in features if prompt.features is not None]
        if not heard and not self.always_encode:
            return embeddings
        frames = self.encode(heard or [SILENCE])
        audio = self.project(torch.cat(frames)).to(embeddings.dtype)
        if not heard:
            return embeddings + 0 * audio.sum()
        is_sound_BT = input_ids_BT == self.placeholder_id
        return embeddings.masked_scatter(is_sound_BT[..., None].expand_as(embeddings), audio)

    def project(self, frames: Tensor) -> Tensor:
        """Encoder frames [..., H] as the language model reads them [..., D]."""
        return self.model.model.multi_modal_projector(frames)

    def encode(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        """Encoder output [F, H] of each audio; remembered while the encoder is frozen, but not with `always_encode`."""
        if self.always_encode or self.model.model.audio_tower.conv1.weight.requires_grad:
            return self._encode([prompt.features for prompt in prompts])
        missing = {p.audio_key: p.features for p in prompts if p.audio_key not in self._frames}
        with torch.no_grad():
            found = dict(zip(missing, self._encode(list(missing.values())), strict=True)) if missing else {}
        found |= {p.audio_key: self._frames[p.audio_key] for p in prompts if p.audio_key in self._frames}
        self._frames |= found
        while sum(map(len, self._frames.values())) > CACHED_FRAMES and len(self._frames) > len(found):
            self._frames.pop(next(iter(self._frames)))
        return [found[prompt.audio_key] for prompt in prompts]

    def _encode(self, waves: Sequence[np.ndarray]) -> list[Tensor]:
        size = WINDOW_S * self.processor.feature_extractor.sampling_rate
        windows = [wave[start : start + size] for wave in waves for start in range(0, len(wave), size)]
        encoded = iter(encode_windows(self.model.model.audio_tower, [self._mel(window) for window in windows]))
        counts = [-(-len(wave) // size) for wave in waves]
        joined = [torch.cat([next(encoded) for _ in range(count)]) for count in counts]
        return [frames[: _frames_out(len(wave))] for frames, wave in zip(joined, waves, strict=True)]

    def _mel(self, window: np.ndarray) -> tuple[Tensor, int]:
        """Log-mel [80, frames] of a window with a little silence behind it, and the frames that hold sound."""
        extractor = self.processor.feature_extractor
        sound = -(-len(window) // HOP)
        length = min((sound + MARGIN_FRAMES) * HOP, extractor.n_samples)
        padded = np.pad(window, (0, length - len(window)))
        mel = extractor(padded, sampling_rate=extractor.sampling_rate, padding=False, return_tensors="pt")
        return mel.input_features[0], sound

    def prepare(
        self,
        stage: str,
        lora: Mapping[str, Any] | None = None,
        *,
        train_encoder: bool = False,
        train_projector: bool = True,
    ) -> None:
        """align: projector (and encoder where asked); later stages: projector and LoRA on the language model."""
        self.model.requires_grad_(False)
        if stage == "align":
            if train_encoder:
                self.model.model.audio_tower.requires_grad_(True)
                self.model.model.audio_tower.embed_positions.requires_grad_(False)  # sinusoids: never learned
        elif lora is None:
            self.decoder.requires_grad_(True)
            self.model.lm_head.requires_grad_(True)
        else:
            self._add_lora(lora)
        self.model.model.multi_modal_projector.requires_grad_(train_projector)

    def _add_lora(self, lora: Mapping[str, Any]) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        self.lora = lora
        targets = rf".*language_model\..*\.({'|'.join(LINEAR_LAYERS)})"
        settings = LoraConfig(
            r=lora["rank"], lora_alpha=lora["alpha"], lora_dropout=lora["dropout"], target_modules=targets
        )
        inject_adapter_in_model(settings, self.model)  # it freezes all but the adapter

    @contextmanager
    def merged(self) -> Iterator[None]:
        """The adapter is added to its matrices while the block runs, so that sampling costs what the base does."""
        adapted = [module for module in self.model.modules() if hasattr(module, "get_delta_weight")]
        kept = [module.base_layer.weight.data for module in adapted]
        try:
            for module, weight in zip(adapted, kept, strict=True):
                module.base_layer.weight.data = weight + module.get_delta_weight("default").detach()
                module.merged_adapters = ["default"]  # PEFT's mark: its forward then runs the base layer alone
            yield
        finally:
            for module, weight in zip(adapted, kept, strict=True):
                module.base_layer.weight.data = weight
                module.merged_adapters = []

    def is_projector(self, parameter: str) -> bool:
        return "multi_modal_projector" in parameter

    def published_name(self, parameter: str) -> str:
        return published_name(parameter)

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Merged weights under published names and processor into an existing folder; the adapter beside them."""
        write_published(folder, self.model, weights)
        self.processor.save_pretrained(folder)
        (folder / MARK).write_text(json.dumps({"family": "tiny"}))
        if self.lora:
            (folder / "adapter").mkdir()
            self.save_adapter(folder / "adapter")

    def save_adapter(self, folder: Path) -> None:
        """The adapter as PEFT loads it, into an existing folder."""
        prefix = "base_model.model."
        adapter = {
            prefix + name.replace(".default.", "."): value.detach().contiguous()
            for name, value in self.model.named_parameters()
            if ".lora_" in name
        }
        save_file(adapter, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        self.model.peft_config["default"].save_pretrained(folder)


def encode_windows(tower: nn.Module, windows: Sequence[tuple[Tensor, int]]) -> list[Tensor]:
    """The encoder over windows cut to their sound: [frames out, H] each, equal to those of windows padded to 30 s.

    Positions behind the sound are masked in every attention, so leaving them out changes nothing; the convolutions
    see one frame ahead, hence the margin of silence in `windows` (log-mel [80, frames], frames of sound).
    """
    first = tower.conv1.weight
    mels, sound = [mel for mel, _ in windows], torch.tensor([frames for _, frames in windows], device=first.device)
    width = max(mel.shape[1] for mel in mels)
    width += width % 2
    batch = torch.stack([nn.functional.pad(mel, (0, width - mel.shape[1])) for mel in mels]).to(first)
    hidden = nn.functional.gelu(tower.conv2(nn.functional.gelu(tower.conv1(batch)))).permute(0, 2, 1)
    places = torch.arange(hidden.shape[1], device=first.device)
    hidden = hidden + tower.embed_positions(places)
    heard = (sound - 1) // 2 + 1
    mask = (places < heard[:, None])[:, None, None, :]
    mask = mask.expand(-1, 1, hidden.shape[1], -1)
    for layer in tower.layers:
        hidden = layer(hidden, mask)
    hidden = tower.layer_norm(tower.avg_pooler(hidden.permute(0, 2, 1)).permute(0, 2, 1))
    return [row[: max(0, int(frames - 2) // 2 + 1)] for row, frames in zip(hidden, heard, strict=True)]


@lru_cache(maxsize=4096)
def _frames_out(samples: int) -> int:
    """Placeholders for an audio: as the processor counts them, over all windows at once."""
    window = WINDOW_S * RATE_HZ
    full, rest = divmod(samples, window)
    mel = full * (window // HOP) + -(-rest // HOP)
    return max(0, ((mel - 1) // 2 + 1 - 2) // 2 + 1) if mel else 0


def _key(sample: Sample) -> str:
    audio = sample.audio
    return f"{audio.path}:{audio.start_s}:{audio.end_s}" if audio else sample.id
