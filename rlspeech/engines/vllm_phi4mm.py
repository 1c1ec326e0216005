"""Phi-4-multimodal in transformers' native format for vLLM, which itself reads that of the hub's remote code only.

The language model is vLLM's own; the encoder is transformers' own, run by the code that the student runs. Vision is
not loaded. An adapter in `speech-lora` beside the weights is merged as they are loaded. Long prompts are read by the
long frequencies of LongRoPE, short ones by the short ones, as in training: vLLM lets a model give its own position ids
where it has M-RoPE, so its config says that it has. This module is a plug-in under vllm.general_plugins.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Phi4MultimodalAudioModel, Phi4MultimodalFeatureExtractor

from rlspeech.engines.vllm_audio import Hearing, processing
from rlspeech.errors import UserError
from rlspeech.students._conformer import STRIDE, encode, log_mel, samples_of
from rlspeech.students._longrope import LongRope
from rlspeech.students._phi4mm_lora import SPEECH, adapter_settings, adapter_tensors
from rlspeech.students.phi4mm import ADAPTED, HEARING, PROJECTION

ARCHITECTURE = "Phi4MultimodalForCausalLM"
MODEL = "Phi4Multimodal"
WINDOWS_AT_ONCE = 4
ROWS = 3  # of position ids, which M-RoPE has; here they are all the same
Weights = Iterable[tuple[str, Tensor]]
AUDIO = Hearing(
    extractor=Phi4MultimodalFeatureExtractor.from_pretrained,
    features=log_mel,
    placeholders=lambda frames: -(-frames // STRIDE),
    samples=samples_of,
    audio_id=lambda config: config.audio_config.audio_token_id,
)


def register() -> None:
    """Makes the model known to vLLM in this process; once is enough, and more does no harm."""
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    MODELS_CONFIG_MAP[ARCHITECTURE] = _settings()
    if ARCHITECTURE not in ModelRegistry.models:
        ModelRegistry.register_model(ARCHITECTURE, f"{__name__}:{MODEL}")


def __getattr__(name: str) -> Any:
    """vLLM asks for the class by its name; it is made where vLLM is imported."""
    if name == MODEL:
        return _model()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _settings() -> type:
    from vllm.model_executor.models.config import VerifyAndUpdateConfig

    class Settings(VerifyAndUpdateConfig):
        @staticmethod
        def verify_and_update_model_config(model_config: Any) -> None:
            config = model_config.hf_config
            config.mrope_section = [0] * ROWS
            if (config.sliding_window or 0) >= config.max_position_embeddings:
                config.sliding_window = None  # a window over all there can be

    return Settings


class Tower(Phi4MultimodalAudioModel):
    def forward(self, mels: Sequence[Tensor]) -> list[Tensor]:
        """Encoder output [F, H] of each audio's features [M, mel bins]."""
        return encode(self, mels, at_once=WINDOWS_AT_ONCE)


class Projector(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(config.audio_config.hidden_size, config.hidden_size)
        self.linear_2 = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, frames: Tensor) -> Tensor:
        return self.linear_2(nn.functional.gelu(self.linear_1(frames)))


class Rotary(nn.Module):
    """Queries and keys turned by their positions, of which those from `context` on are of the long frequencies."""

    def __init__(self, rope: LongRope, head_size: int, longest: int) -> None:
        super().__init__()
        self.context, self.longest, self.head_size = rope.context, longest, head_size
        positions = torch.arange(longest)
        angles = [torch.cat(rope.angles(start + positions), dim=-1) for start in (0, rope.context)]
        self.register_buffer("angles", torch.cat(angles).float(), persistent=False)

    def forward(self, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        at = torch.where(positions >= self.context, positions - self.context + self.longest, positions)
        cos, sin = self.angles[at].to(query.dtype)[:, None].chunk(2, dim=-1)
        return self._turned(query, cos, sin), self._turned(key, cos, sin)

    def _turned(self, given: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads = given.unflatten(-1, (-1, self.head_size))
        half = cos.shape[-1]
        first, second, rest = heads.split([half, half, self.head_size - 2 * half], dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1).flatten(-2)


def _language_model(vllm_config: Any, prefix: str, rope: LongRope) -> Any:
    """vLLM's Llama, which is Phi-4-mini with its queries, keys and values in one matrix, and turned by LongRoPE."""
    from vllm.model_executor.models.llama import LlamaAttention, LlamaDecoderLayer, LlamaModel

    class Attention(LlamaAttention):
        def _init_rotary_emb(self, config: Any, quant_config: Any) -> None:
            self.rotary_emb = None  # one for all layers is given below

    layer: Any = partial(LlamaDecoderLayer, attn_layer_type=Attention)
    model = LlamaModel(vllm_config=vllm_config, prefix=prefix, layer_type=layer)
    head_size = model.layers[0].self_attn.head_dim
    rotary = Rotary(rope, head_size, vllm_config.model_config.max_model_len)
    for one in model.layers:
        one.self_attn.rotary_emb = rotary
    return model


@cache
def _model() -> type:
    from vllm.model_executor.layers.logits_processor import LogitsProcessor
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
    from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsMRoPE, SupportsMultiModal
    from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, maybe_prefix
    from vllm.multimodal import MULTIMODAL_REGISTRY

    class Phi4Multimodal(nn.Module, SupportsMultiModal, SupportsMRoPE, SupportsLoRA):
        packed_modules_mapping = {"qkv_proj": ["qkv_proj"], "gate_up_proj": ["gate_up_proj"]}  # noqa: RUF012
        hf_to_vllm_mapper = WeightsMapper(
            orig_to_new_prefix={
                f"{HEARING}.encoder.": "audio_tower.",
                **{ours: f"multi_modal_projector.linear_{number}." for number, ours in enumerate(PROJECTION, start=1)},
                "model.embed_tokens_extend.": None,  # vision, and hearing beside it
            }
        )

        def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
            super().__init__()
            self.config = config = vllm_config.model_config.hf_config
            self.rope = LongRope.of(config)
            self.to_merge = _own_adapter(vllm_config)
            with self._mark_tower_model(vllm_config, "audio"):
                self.audio_tower = _plain_tower(Tower(config.audio_config))
                self.multi_modal_projector = Projector(config)
            with self._mark_language_model(vllm_config):
                self.model = _language_model(vllm_config, maybe_prefix(prefix, "model"), self.rope)
            self.lm_head = ParallelLMHead(config.vocab_size, config.hidden_size, prefix=maybe_prefix(prefix, "lm_head"))
            if config.tie_word_embeddings:
                self.lm_head = self.lm_head.tie_weights(self.model.embed_tokens)
            self.logits_processor = LogitsProcessor(config.vocab_size)
            self.make_empty_intermediate_tensors = self.model.make_empty_intermediate_tensors

        get_placeholder_str = classmethod(_placeholder_text)
        get_mrope_input_positions = _positions
        embed_multimodal = _embed_audio

        def forward(
            self,
            input_ids: Tensor | None,
            positions: Tensor,
            intermediate_tensors: Any = None,
            inputs_embeds: Tensor | None = None,
            **_: object,
        ) -> Any:
            return self.model(input_ids, positions[0], intermediate_tensors, inputs_embeds=inputs_embeds)

        def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
            return self.logits_processor(self.lm_head, hidden_states)

        def load_weights(self, weights: Weights) -> set[str]:
            merge, self.to_merge = self.to_merge, None  # what comes into the living engine is merged
            loader = AutoWeightsLoader(self)
            return loader.load_weights(merge(weights) if merge else weights, mapper=self.hf_to_vllm_mapper)

    processor, info, dummies = processing(AUDIO)
    return MULTIMODAL_REGISTRY.register_processor(processor, info=info, dummy_inputs=dummies)(Phi4Multimodal)


def _placeholder_text(cls: type, modality: str, i: int) -> str | None:
    return "<|audio|>"


def _positions(self: Any, input_tokens: Sequence[int], mm_features: Sequence[Any]) -> tuple[Tensor, int]:
    first = self.rope.first_position(list(input_tokens), self.config.audio_config.audio_token_id)
    return (torch.arange(len(input_tokens)) + first).expand(ROWS, -1), first


def _embed_audio(self: Any, **given: Any) -> tuple[Tensor, ...]:
    mels = given.get("audio_features")
    return () if mels is None else tuple(map(self.multi_modal_projector, self.audio_tower(list(mels))))


def _plain_tower(tower: Tower) -> Tower:
    """vLLM loads parameters: the mean and the scale of the features are buffers in transformers."""
    norm: Any = tower.encoder_embedding
    for name, value in dict(norm.named_buffers()).items():
        delattr(norm, name)
        norm.register_parameter(name, nn.Parameter(value, requires_grad=False))
    return tower.requires_grad_(False)


def _own_adapter(vllm_config: Any) -> Callable[[Weights], Weights] | None:
    """What merges the adapter of the model's folder; None where it has none."""
    folder = Path(vllm_config.model_config.model) / SPEECH
    if not folder.is_dir():
        return None
    if vllm_config.lora_config is not None:
        raise UserError(
            f"{folder}: vLLM cannot put an adapter on the one that the model has; use cluster.sync = merged"
        )
    return partial(_merged, folder)


def _merged(folder: Path, weights: Weights) -> Iterator[tuple[str, Tensor]]:
    """Sums are taken in float32 and have the dtype of their base."""
    adapted = re.compile(rf"({ADAPTED})\.weight")
    factors = adapter_tensors(folder)
    settings = adapter_settings(folder)
    scale = settings["alpha"] / settings["rank"]
    for name, value in weights:
        found = adapted.fullmatch(name)
        if found is None:
            yield name, value
        else:
            down, up = (factor.to(value.device).float() for factor in factors[found[1]])
            yield name, (value.float() + scale * (up @ down)).to(value.dtype)
