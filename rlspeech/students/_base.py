"""What student families share: a chat prompt with placeholders, encoder and projector in front of a decoder, LoRA.

A family is a subclass of `Family` that says what is its own: `rlspeech/students/qwen2_audio.py` is a short one.

B rows, T tokens, F audio frames (one a placeholder), H encoder's hidden size, D the language model's, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, ProcessorMixin, WhisperFeatureExtractor

from rlspeech.errors import UserError
from rlspeech.students._checkpoint import read_model, write_model
from rlspeech.students._context import Room
from rlspeech.students._rewrite import Conversion
from rlspeech.types import Prompt, Sample, Waveform

RATE_HZ = 16_000
LINEAR_LAYERS = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
CACHED_BYTES = 2**30  # encoder outputs kept while the encoder is frozen: of Phi-4-multimodal, 11 times 30 minutes
SILENCE = Prompt((), (np.zeros(RATE_HZ // 10, np.float32),), "silence")  # heard where there is nothing to hear


@dataclass
class Family:
    """A loaded student. Its model is trained in place."""

    ARCHITECTURES: ClassVar[tuple[str, ...]] = ()  # of config.json; strings alone: they are read without an import
    MODEL: ClassVar[type[PreTrainedModel]]
    EXTRACTOR: ClassVar[Any] = WhisperFeatureExtractor
    AUDIO: ClassVar[str]  # the token that stands for one audio embedding
    END: ClassVar[str] = "<|im_end|>"  # the token that ends a reply
    TOWER: ClassVar[str] = "model.audio_tower"  # modules of MODEL
    PROJECTOR: ClassVar[str] = "model.multi_modal_projector"
    DECODER: ClassVar[str] = "model.language_model"
    PUBLISHED: ClassVar[Mapping[str, str]] = {  # beginnings of the model's own names, and of published ones
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
        "model.audio_tower.": "audio_tower.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    }
    UNREAD: ClassVar[tuple[str, ...]] = ()  # beginnings of published names that are no part of the student
    FIXED: ClassVar[tuple[str, ...]] = ("embed_positions",)  # parts of the encoder that never learn
    frame_s: ClassVar[float] = 0.04
    framewise: ClassVar[bool] = True  # the projector reads each frame on its own
    several: ClassVar[bool] = True  # a prompt may hold more than one audio
    CONVERSIONS: ClassVar[Mapping[str, Conversion]] = {}  # of `rlspeech convert`, by what --to calls it

    model: Any
    folder: Path
    tokenizer: Any
    extractor: Any
    settings: Mapping[str, Any]  # of the family's processor
    lora: Mapping[str, Any] | None = None
    always_encode: bool = False  # set by a learner whose ranks meet in the tower or the projector: see `embed`
    most_passes: Callable[[int], int] = int  # set by a learner whose ranks meet in every layer of the tower
    windows_at_once: int = 16  # bounds the memory of the encoder
    _frames: dict[str, Tensor] = field(default_factory=dict)  # encoder outputs by audio_key

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype = torch.float32, weights: bool = True) -> Self:
        """Raises UserError where the tokenizer has not the family's tokens, or the weights are not whole."""
        cls.check_layout(folder)
        tokenizer = cls.read_tokenizer(folder)
        vocabulary = tokenizer.get_vocab()
        for token, what in ((cls.AUDIO, "stands for audio"), (cls.END, "ends a reply")):
            if token not in vocabulary:
                raise UserError(f"{folder}: its tokenizer has no token {token}, which {what} in {cls.family()}")
        extractor = cls.EXTRACTOR.from_pretrained(folder)
        model = read_model(cls.MODEL, folder, dtype, weights=weights, unread=cls.UNREAD)
        audio_id = cls.audio_id(model.config)
        if audio_id != vocabulary[cls.AUDIO]:
            raise UserError(
                f"{folder}: its config.json has {audio_id} for audio, "
                f"its tokenizer {vocabulary[cls.AUDIO]} ({cls.AUDIO}); the two are not of one model"
            )
        return cls(model.eval().requires_grad_(False), folder, tokenizer, extractor, cls.read_settings(folder))

    @classmethod
    def check_layout(cls, folder: Path) -> None:
        """Raises UserError where a folder has to be converted before it can be loaded."""

    @classmethod
    def family(cls) -> str:
        """Of a file's name."""
        return cls.__module__.split(".")[-1]

    @classmethod
    def read_tokenizer(cls, folder: Path) -> Any:
        return AutoTokenizer.from_pretrained(folder)

    @classmethod
    def read_settings(cls, folder: Path) -> Mapping[str, Any]:
        """Of the family's processor, with its chat template."""
        return ProcessorMixin.get_processor_dict(folder)[0]

    @classmethod
    def audio_id(cls, config: Any) -> int:
        return config.audio_token_id

    @property
    def placeholder_id(self) -> int:
        return self.audio_id(self.model.config)

    @property
    def end_token_id(self) -> int:
        return self.tokenizer.convert_tokens_to_ids(self.END)

    @property
    def tower(self) -> nn.Module:
        return self.model.get_submodule(self.TOWER)

    @property
    def projector(self) -> nn.Module:
        return self.model.get_submodule(self.PROJECTOR)

    @property
    def decoder(self) -> nn.Module:
        """The language model: embeddings in, hidden states out."""
        return self.model.get_submodule(self.DECODER)

    def head(self) -> Tensor:
        return self.model.lm_head.weight

    # What a family says of its audio

    @property
    def longest_s(self) -> float | None:
        """The longest audio that its processor takes, without cutting it off in silence."""
        return None

    @property
    def piece(self) -> int | None:
        """Samples that its processor takes at once: longer audio is put to it in pieces. None: as a whole."""
        return None

    def frames_of(self, samples: int) -> int:
        """Placeholders of a piece of audio; 0 where it is too short to hear."""
        raise NotImplementedError

    def passes(self, waves: Sequence[np.ndarray]) -> int:
        """Times that `hear` goes through the tower. One piece of silence is one pass."""
        return len(waves)

    def hear(self, waves: Sequence[np.ndarray]) -> list[Tensor]:
        """Encoder output [F, H] of each piece, F as `frames_of` says."""
        raise NotImplementedError

    def project(self, frames: Tensor) -> Tensor:
        """Encoder frames [..., H] as the language model reads them [..., D]."""
        return self.projector(frames)

    def messages(self, sample: Sample, *, audios: int) -> list[dict[str, Any]]:
        """The chat that the family's template renders."""
        audio = [{"type": "audio"}] * audios
        return [{"role": "user", "content": [*audio, {"type": "text", "text": sample.instruction}]}]

    # Prompts

    def render(self, sample: Sample, audio: Waveform | Sequence[Waveform] | None, *, reply_tokens: int = 0) -> Prompt:
        """The sample as the family's chat format has it, placeholders expanded: the ids that its processor gives.

        Raises UserError where audio is too short to hear, or more than the family hears in one prompt, and where the
        prompt and a reply of `reply_tokens` do not fit into the model's context.
        """
        for token in self.special_tokens():
            if token in sample.instruction:
                raise UserError(f"{sample.id}: the instruction holds {token}, which stands for something else")
        audios = () if audio is None else (audio,) if isinstance(audio, Waveform) else tuple(audio)
        if len(audios) > 1 and not self.several:
            raise UserError(f"{sample.id}: {len(audios)} audios; {self.family()} hears one in a prompt")
        frames = [self._frames_of(sample, one) for one in audios]
        ids = self.prompt_ids(sample, frames)
        room = Room(
            self.model.config.get_text_config().max_position_embeddings, self.frame_s, self._placeholders, RATE_HZ
        )
        room.check(sample, audios, text=len(ids) - sum(frames), frames=sum(frames), reply_tokens=reply_tokens)
        if not audios:
            return Prompt(tuple(ids))
        return Prompt(tuple(ids), tuple(one.samples for one in audios), _key(sample))

    def special_tokens(self) -> Sequence[str]:
        """Texts that the tokenizer does not read as text."""
        return self.tokenizer.all_special_tokens

    def prompt_ids(self, sample: Sample, frames: Sequence[int]) -> list[int]:
        """`frames`: placeholders of each audio."""
        text = self.tokenizer.apply_chat_template(
            self.messages(sample, audios=len(frames)),
            chat_template=self.settings.get("chat_template"),  # None: the tokenizer's own
            tokenize=False,
            add_generation_prompt=True,
        )
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        counts = iter(frames)
        return [token for one in ids for token in ([one] * next(counts) if one == self.placeholder_id else [one])]

    def _frames_of(self, sample: Sample, audio: Waveform) -> int:
        frames = self._placeholders(audio.samples)
        if frames < 1:
            heard = f"{audio.duration_s:.3f} s of audio is too short to hear"
            raise UserError(f"{sample.id}: {heard}; {self.frame_s:.2g} s is the least")
        if self.longest_s is not None and audio.duration_s > self.longest_s:
            raise UserError(f"{sample.id}: {audio.duration_s:.0f} s of audio; {self.longest_s:.0f} s fit")
        return frames

    def _placeholders(self, wave: np.ndarray) -> int:
        return sum(self.frames_of(len(piece)) for piece in self.pieces(wave))

    def pieces(self, wave: np.ndarray) -> list[np.ndarray]:
        """The audio as the processor takes it, in order. A rest that is too short for a frame is left out."""
        if self.piece is None:
            return [wave]
        cut = [wave[start : start + self.piece] for start in range(0, len(wave), self.piece)]
        return [piece for piece in cut if self.frames_of(len(piece))] or cut[:1]

    def first_position(self, prompt: Prompt) -> int:
        return 0

    def vllm_input(self, prompt: Prompt) -> dict[str, Any]:
        """One placeholder a piece of audio, which vLLM expands; it caches what it has heard under `audio_key`."""
        if prompt.features is None:
            return {"prompt_token_ids": list(prompt.token_ids)}
        pieces = [self.pieces(wave) for wave in prompt.features]
        audio = [(piece, RATE_HZ) for cut in pieces for piece in cut]
        keys = [f"{prompt.audio_key}#{number}" for number in range(len(audio))]
        one = len(audio) == 1
        return {
            "prompt_token_ids": self._one_a_piece(prompt.token_ids, pieces),
            "multi_modal_data": {"audio": audio[0] if one else audio},
            "multi_modal_uuids": {"audio": prompt.audio_key if one else keys},
        }

    def _one_a_piece(self, token_ids: Sequence[int], pieces: Sequence[Sequence[np.ndarray]]) -> list[int]:
        """The prompt with one placeholder a piece. Two audios may stand without a token between them."""
        ids, at = [], 0
        for cut in pieces:
            first = token_ids.index(self.placeholder_id, at)
            ids += [*token_ids[at:first], *[self.placeholder_id] * len(cut)]
            at = first + sum(self.frames_of(len(piece)) for piece in cut)
        return [*ids, *token_ids[at:]]

    def collate(self, prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
        """Prompts with the audio of each row; `embed` encodes it."""
        return tuple(prompts)

    # From audio to embeddings

    def embed(self, input_ids_BT: Tensor, features: Sequence[Prompt]) -> Tensor:
        """Input embeddings [B, T, D]: the audio of row b at the placeholders of row b; rows without audio have none.

        With `always_encode` a batch without audio sends silence through tower and projector and adds nothing of it:
        ranks that gather parameters or sum gradients there would otherwise wait for one another for ever.
        """
        is_sound_BT = input_ids_BT == self.placeholder_id
        embeddings = self.model.get_input_embeddings()(input_ids_BT.masked_fill(is_sound_BT, 0))
        heard = [prompt for prompt in features if prompt.features is not None]
        if not heard and not self.always_encode:
            return embeddings
        audio = self.project(torch.cat(self.encode(heard or [SILENCE]))).to(embeddings.dtype)
        if not heard:
            return embeddings + 0 * audio.sum()
        return embeddings.masked_scatter(is_sound_BT[..., None].expand_as(embeddings), audio)

    def encode(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        """Encoder output [F, H] of what each prompt hears.

        It is remembered while the encoder is frozen, but not with `always_encode`.
        """
        for part in (self.tower, self.projector):
            part.eval()  # no dropout, and the norms' own means: as the sampler has it
        if self.always_encode or self._encoder_learns():
            return self._encode([prompt.features or () for prompt in prompts])
        missing = {p.audio_key: p.features or () for p in prompts if p.audio_key not in self._frames}
        with torch.no_grad():
            found = dict(zip(missing, self._encode(list(missing.values())), strict=True)) if missing else {}
        found |= {p.audio_key: self._frames[p.audio_key] for p in prompts if p.audio_key in self._frames}
        self._frames |= found
        while sum(kept.nbytes for kept in self._frames.values()) > CACHED_BYTES and len(self._frames) > len(found):
            self._frames.pop(next(iter(self._frames)))
        return [found[prompt.audio_key] for prompt in prompts]

    def _encoder_learns(self) -> bool:
        named = self.tower.named_parameters(prefix=self.TOWER)
        return any(value.requires_grad and not self.is_projector(name) for name, value in named)

    def _encode(self, heard: Sequence[Sequence[np.ndarray]]) -> list[Tensor]:
        pieces = [[piece for wave in waves for piece in self.pieces(wave)] for waves in heard]
        flat = [piece for cut in pieces for piece in cut]
        idle = self.most_passes(self.passes(flat)) - self.passes(flat)
        encoded = self.hear(flat)
        for _ in range(idle):  # ranks gather a layer's parameters together, or wait for ever
            encoded[0] = encoded[0] + 0 * self.hear(SILENCE.features)[0].sum()
        frames = iter(encoded)
        return [torch.cat([next(frames) for _ in cut]) for cut in pieces]

    # What learns, and how it is saved

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
            for name, value in self.tower.named_parameters():
                value.requires_grad_(train_encoder and not any(part in name for part in self.FIXED))
        elif lora is None:
            for name, value in self.model.named_parameters():
                value.requires_grad_(self.is_decoder(name))
        else:
            self._add_lora(lora)
        for name, value in self.model.named_parameters():
            if self.is_projector(name):
                value.requires_grad_(train_projector)

    def _add_lora(self, lora: Mapping[str, Any]) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        self.lora = lora
        settings = LoraConfig(
            r=lora["rank"], lora_alpha=lora["alpha"], lora_dropout=lora["dropout"], target_modules=self.adapted
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

    @property
    def adapted(self) -> str | list[str]:
        """Pattern or names of the modules that LoRA is put on."""
        return rf"{self.DECODER}\..*\.({LINEAR_LAYERS})"

    def is_decoder(self, parameter: str) -> bool:
        """Of the language model, its embedding and its output projection."""
        return parameter.startswith((f"{self.DECODER}.", "lm_head."))

    def is_projector(self, parameter: str) -> bool:
        """Of the model's own name, or of the published one."""
        own = f"{self.PROJECTOR}."
        return parameter.startswith((own, self.published_name(own)))

    def published_name(self, parameter: str) -> str:
        for ours, theirs in self.PUBLISHED.items():
            if parameter.startswith(ours):
                return theirs + parameter.removeprefix(ours)
        return parameter

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Merged weights under published names and processor into an existing folder; the adapter beside them."""
        write_model(folder, self.folder, {self.published_name(name): value for name, value in weights.items()})
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


def _key(sample: Sample) -> str:
    audios = (sample.audio, *sample.more_audio) if sample.audio else ()
    return " ".join(f"{audio.path}:{audio.start_s}:{audio.end_s}" for audio in audios) or sample.id
