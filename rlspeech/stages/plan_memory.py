"""Memory of each role from sizes and settings alone.

In bytes: P parameters of a model, b bytes each; L of them learn; s sequences of T tokens in a forward pass; N ranks.

In one process (transformers, torch):
    weights       P b, and for the adapter rank x (inputs + outputs) of every linear layer, b each
    gradients     L b
    optimizer     2 L b: AdamW's two moments, in the type of the weights
    activations   17 b s T hidden layers: arXiv 2205.05198, equation 1 (there b = 2), without its scores of attention,
                  which a fused attention does not hold; nothing is recomputed. Without gradients, one layer's.
    KV cache      2 layers kv_heads head_dim b for each token of each sequence that is written
The student that writes shares its weights with the student that learns.

A rank of DeepSpeed (ZeRO, arXiv 1910.02054, figure 1): stage 1 divides the optimizer by N, stage 2 also the gradients,
stage 3 also the weights.
    optimizer     12 L: a float32 copy of the weights and two moments. In float32 8 L, where DeepSpeed keeps no copy:
                  in stages 0 and 3 that are not offloaded. Offloaded, it lies in the host's memory, with float32
                  gradients, 4 L.
    activations   checkpointed: b s T hidden for the input of each layer, and one layer's 17 b s T hidden. In stage 3
                  also the parameters that are gathered for use, of which DeepSpeed holds 10^9 at most.

A vLLM engine on n GPUs holds P b / n of the language model and the whole of the rest (encoders) on each, and takes the
remainder of its share of the GPU for the KV cache: 1 to 3 GiB less than shown, for activations of its own. It starts
only if the KV cache holds one sequence of max_model_len. On a CPU the KV cache is as large as is set.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from rlspeech.catalog import BYTES, Entry
from rlspeech.config import AlignConfig, OnPolicyStage, SftConfig
from rlspeech.config_engines import DeepspeedConfig, VllmConfig
from rlspeech.stages.machine import GIB

LearningConfig = AlignConfig | SftConfig | OnPolicyStage

INSTRUCTION_TOKENS = 64
SPOKEN_TOKENS_PER_S = 4  # of a transcript
ANSWER_TOKENS = 128  # of a reference, where nothing limits it
GATHERED_BILLIONS = 1.0  # DeepSpeed's default of stage3_max_live_parameters
CERTAIN = ("weights", "gradients", "optimizer", "runtime")
COLUMNS = ("weights", "gradients", "optimizer", "activations", "KV cache", "runtime")


@dataclass(frozen=True)
class Role:
    """Memory of one part of the stage, in GiB by column of the table; empty where the model's shape is not known.

    `reserved`: a vLLM engine, which takes its KV cache when it starts, whole.
    """

    name: str
    memory_gib: Mapping[str, float]
    reserved: bool = False

    @property
    def total_gib(self) -> float:
        return sum(self.memory_gib.values())

    @property
    def certain_gib(self) -> float:
        """Without what is an estimate: activations, and a KV cache that grows with what is written."""
        columns = (*CERTAIN, "KV cache") if self.reserved else CERTAIN
        return sum(self.memory_gib.get(column, 0.0) for column in columns)


@dataclass(frozen=True)
class Lengths:
    """Tokens of the longest prompts and replies."""

    audio_s: float
    heard: int  # the student's prompt
    read: int  # the teacher's prompt
    reply: int

    @classmethod
    def of(cls, config: LearningConfig, student: Entry | None, audio_s: float) -> "Lengths":
        rate = (student.audio_tokens_per_s if student else None) or 25.0
        return cls(
            audio_s,
            heard=int(audio_s * rate) + INSTRUCTION_TOKENS,
            read=int(audio_s * SPOKEN_TOKENS_PER_S) + INSTRUCTION_TOKENS,
            reply=config.sampling.max_tokens if isinstance(config, OnPolicyStage) else ANSWER_TOKENS,
        )

    @property
    def student(self) -> int:
        return self.heard + self.reply

    @property
    def teacher(self) -> int:
        return self.read + self.reply


def gib(billions: float, bytes_each: int) -> float:
    """
    >>> gib(70.6, 2)  # 141.2e9 bytes
    131.50274753570557
    """
    return billions * 1e9 * bytes_each / GIB


def learnt(config: LearningConfig, entry: Entry) -> tuple[float, float]:
    """Parameters of the adapter, and of all that learns, in billions."""
    lora = None if isinstance(config, AlignConfig) else config.lora
    adapter = entry.lora_parameters(lora.rank) if lora else 0.0
    projector = 2 * entry.hidden**2 / 1e9  # two layers as wide as the language model, about
    if isinstance(config, AlignConfig):
        return adapter, max(entry.rest, projector) if config.train_encoder else projector
    return adapter, projector + (adapter if lora else entry.parameters - entry.rest)


def learner_gib(config: LearningConfig, entry: Entry, tokens: int) -> dict[str, float]:
    """Of torch in this process."""
    adapter, learns = learnt(config, entry)
    replies = config.replies_learned if isinstance(config, OnPolicyStage) else 1
    return {
        "weights": gib(entry.parameters + adapter, entry.bytes_each),
        "gradients": gib(learns, entry.bytes_each),
        "optimizer": gib(2 * learns, entry.bytes_each),
        "activations": activations_gib(entry, config.optim.micro_batch * replies, tokens),
    }


def teacher_gib(entry: Entry, sequences: int, tokens: int) -> dict[str, float]:
    """Of transformers in this process."""
    return {
        "weights": gib(entry.parameters, entry.bytes_each),
        "activations": activations_gib(entry, sequences, tokens) / entry.layers,
        "KV cache": kv_gib(entry, sequences, tokens),
    }


def activations_gib(
    entry: Entry, sequences: int, tokens: int, *, bytes_each: int | None = None, checkpointed: bool = False
) -> float:
    """
    >>> from rlspeech.catalog import entries
    >>> activations_gib(entries()["llama-8b"], 8, 1024)  # 34 bytes * 4096 * 32 layers are 4.25 MiB a token
    34.0
    >>> activations_gib(entries()["llama-8b"], 8, 1024, checkpointed=True)  # 2 * 4096 * 32 and 34 * 4096 bytes a token
    3.0625
    """
    inputs = (bytes_each or entry.bytes_each) * sequences * tokens * entry.hidden / GIB  # of one layer
    return (entry.layers + 17) * inputs if checkpointed else 17 * entry.layers * inputs


def kv_gib(entry: Entry, sequences: int, tokens: int, *, bytes_each: int | None = None) -> float:
    """
    >>> from rlspeech.catalog import entries
    >>> kv_gib(entries()["llama-8b"], 8, 1024)  # 2 * 32 * 8 * 128 * 2 bytes are 128 KiB a token
    1.0
    """
    token = 2 * entry.layers * entry.kv_heads * entry.head_dim * (bytes_each or entry.bytes_each)
    return token * sequences * tokens / GIB


@dataclass(frozen=True)
class Rank:
    """Memory of one rank of DeepSpeed, in GiB by column: on its device, and what it offloads to the host."""

    device_gib: Mapping[str, float]
    host_gib: Mapping[str, float]


def zero_gib(parameters: float, learns: float, *, ranks: int, settings: DeepspeedConfig, bytes_each: int) -> Rank:
    """Weights, gradients and optimizer of one of the `ranks`; parameters in billions.

    >>> plain = DeepspeedConfig(zero=1)  # 16 bits: 2 P + 2 P + 12 P / N bytes
    >>> zero_gib(7.5, 7.5, ranks=64, settings=plain, bytes_each=2).device_gib["optimizer"] * GIB / 1e9
    1.40625
    """
    stage = settings.zero
    copied = bytes_each < 4 or stage in (1, 2) or settings.offload_optimizer
    device = {
        "weights": gib(parameters, bytes_each) / (ranks if stage == 3 else 1),
        "gradients": gib(learns, bytes_each) / (ranks if stage >= 2 else 1),
        "optimizer": gib(learns, 12 if copied else 8) / (ranks if stage >= 1 else 1),
    }
    host: dict[str, float] = {}
    if settings.offload_parameters:
        host["weights"] = device.pop("weights")
    if settings.offload_optimizer:
        host |= {"gradients": gib(learns, 4) / ranks, "optimizer": device.pop("optimizer")}
    return Rank(device, host)


def rank_gib(config: OnPolicyStage, entry: Entry, tokens: int, *, ranks: int, on_gpu: bool) -> Rank:
    """Memory of one of the `ranks` that the student learns with."""
    settings = config.deepspeed
    adapter, learns = learnt(config, entry)
    bytes_each = BYTES[settings.dtype or ("bfloat16" if on_gpu else "float32")]
    held = zero_gib(entry.parameters + adapter, learns, ranks=ranks, settings=settings, bytes_each=bytes_each)
    audios = min(config.optim.micro_batch, -(-config.optim.batch // ranks))
    activations = activations_gib(
        entry,
        audios * config.replies_learned,
        tokens,
        bytes_each=bytes_each,
        checkpointed=settings.activation_checkpointing,
    )
    if settings.zero == 3:
        activations += gib(min(GATHERED_BILLIONS, entry.parameters + adapter), bytes_each)
    return Rank({**held.device_gib, "activations": activations}, held.host_gib)


@dataclass(frozen=True)
class VllmEngine:
    """A vLLM engine on `tensor_parallel` devices; its numbers are those of each device."""

    entry: Entry
    settings: VllmConfig
    gpu_gib: float | None  # of the smallest of its GPUs; None on a CPU
    tensor_parallel: int = 1
    adapter: float = 0.0  # billions of parameters of a LoRA adapter that it applies itself

    @property
    def bytes_each(self) -> int:
        if self.settings.dtype != "auto":
            return BYTES[self.settings.dtype]
        return 4 if self.gpu_gib is None else self.entry.bytes_each

    @property
    def weights_gib(self) -> float:
        split = self.entry.parameters - self.entry.rest + self.adapter
        return gib(split / self.tensor_parallel + self.entry.rest, self.bytes_each)

    @property
    def share_gib(self) -> float | None:
        """What it may fill of a GPU."""
        return None if self.gpu_gib is None else self.settings.gpu_memory_utilization * self.gpu_gib

    @property
    def cache_gib(self) -> float:
        """Of the KV cache."""
        return self.settings.kv_cache_gib if self.share_gib is None else max(0.0, self.share_gib - self.weights_gib)

    def sequence_gib(self, tokens: int) -> float:
        """KV cache of one sequence. Where there are fewer KV heads than devices, devices hold the same ones."""
        one = kv_gib(self.entry, 1, tokens, bytes_each=self.bytes_each)
        return one * max(1, self.entry.kv_heads // self.tensor_parallel) / self.entry.kv_heads

    @property
    def divides(self) -> bool:
        """Whether vLLM can split the heads so."""
        n, kv = self.tensor_parallel, self.entry.kv_heads
        return self.entry.heads % n == 0 and (kv % n == 0 or n % kv == 0)

    @property
    def memory_gib(self) -> dict[str, float]:
        return {"weights": self.weights_gib, "KV cache": self.cache_gib}
