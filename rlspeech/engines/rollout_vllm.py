"""Rollouts by a vLLM engine: an audio is sent once a group, long queues are streamed, weights come while it lives."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rlspeech.config_engines import VllmConfig
from rlspeech.engines import vllm_shared_memory
from rlspeech.engines.vllm_engine import Request, on_gpu, stream
from rlspeech.errors import UserError
from rlspeech.protocols import Learner, Sampling, Student
from rlspeech.types import Completion, Prompt, Rollout, Sample

if TYPE_CHECKING:
    from vllm import LLM, CompletionOutput, RequestOutput, SamplingParams
    from vllm.lora.request import LoRARequest

log = logging.getLogger(__name__)

NEVER = -100.0  # vLLM's largest bias against a token: its probability is below the least float
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


class OtherPrompt(RuntimeError):
    """vLLM reads another prompt than the learner."""


def _still() -> None:
    """Where nobody wants to know."""


@dataclass
class VllmRollouts:
    """`on_progress` is called at every step of the engine. `student` renders prompts; its weights are not used."""

    llm: LLM
    student: Student
    settings: VllmConfig
    on_progress: Callable[[], None] = _still
    bucket_mib: int = 512  # weights handed over at a time
    version: int = 0
    adapter: LoRARequest | None = None  # applied to every reply
    _sent: set[str] = field(default_factory=set)  # names of the update under way
    _joined: bool = False

    def generate(self, samples: Sequence[Sample], prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """Replies hang on `sampling.seed` and the sample's id, not on the batch or the worker that it comes to.

        Raises UserError where a prompt and its reply do not fit into the engine, OtherPrompt where vLLM and the
        learner read different ones,
        FloatingPointError where its model gives no numbers.
        """
        for sample, prompt in zip(samples, prompts, strict=True):
            check_length(sample, prompt, sampling.max_tokens, self.settings)
        seeds = _seeds(samples, sampling.seed)
        order = _by_audio(prompts)
        asked = (
            Request(self.student.vllm_input(prompts[at]), self.params(sampling, seeds[at]), self.adapter)
            for at in order
        )
        found: dict[int, list[Completion]] = {}
        for place, output in stream(self.llm, asked, on_progress=self.on_progress):
            at = order[place]
            _check_prompt(samples[at], prompts[at], output)
            replies = [self._completion(one) for one in sorted(output.outputs, key=lambda one: one.index)]
            found[at] = replies * (sampling.n // len(replies))
        return [
            Rollout(sample, prompt, completion)
            for at, (sample, prompt) in enumerate(zip(samples, prompts, strict=True))
            for completion in found[at]
        ]

    def load_weights(self, learner: Learner, version: int) -> None:
        """Of a learner in this process: what learns, merged."""
        self.begin_update()
        for bucket in _buckets(learner.weights(), self.bucket_mib * 2**20):
            self._sent |= {name for name, _ in bucket}
            self.receive({"tensors": bucket})
        self.end_update(version)

    def join_transfer(self, init_info: Mapping[str, Any]) -> None:
        """What the sender's side of vLLM's weight-transfer API says at its start; `Layout.transfer` is its backend."""
        self.llm.init_weight_transfer_engine({"init_info": dict(init_info)})
        self._joined = True

    def leave_transfer(self) -> None:
        self.llm.shutdown_weight_transfer_engine()
        self._joined = False

    def begin_update(self) -> None:
        """Then come `update` or `receive`, as often as need be, and `end_update`. No reply is written meanwhile."""
        if not self._joined:
            self.join_transfer({})
        self._sent = set()
        self.llm.start_weight_update()

    def update(self, bucket: Path) -> None:
        """A safetensors file with published names, as another process has left it in shared memory."""
        self._sent |= {name for name, _ in vllm_shared_memory.read(bucket)}
        self.receive({"file": str(bucket)})

    def receive(self, update_info: Mapping[str, Any]) -> None:
        """One `update_weights` of vLLM's weight-transfer API."""
        self.llm.update_weights({"update_info": dict(update_info)})
        self.on_progress()

    def end_update(self, version: int) -> None:
        """What is fused with the parameters that came is read from the checkpoint; nothing old is left in a cache."""
        for file, names in vllm_shared_memory.beside(self._sent, self._folder()).items():
            self.receive({"file": str(file), "names": names})
        self.llm.finish_weight_update(str(version))
        self.forget()
        self.version = version

    def load_adapter(self, folder: Path, version: int) -> None:
        """LoRA factors as PEFT saves them, which vLLM applies itself: `Layout.adapter_rank` has to be set.

        Other safetensors files of the folder hold what learns besides, under published names. The folder may go after.
        """
        from vllm.lora.request import LoRARequest

        others = [file for file in sorted(folder.glob("*.safetensors")) if file.name not in ADAPTER_FILES]
        if others:
            self.begin_update()
            for file in others:
                self.update(file)
            self.end_update(version)
        with TemporaryDirectory(dir=folder) as place:
            self._publish_adapter(folder, Path(place))
            self.llm.llm_engine.add_lora(LoRARequest("policy", 1, place, load_inplace=True))
            self.adapter = LoRARequest("policy", 1, place)
        self.forget()
        self.version = version

    def sleep(self) -> None:
        """Leaves the GPU to others: the weights wait in the host's memory, the KV cache is dropped."""
        if on_gpu():
            self.llm.sleep(level=1)
        else:
            log.debug("sleep: an engine on a CPU has no GPU to leave; nothing is done")

    def wake(self) -> None:
        if on_gpu():
            self.llm.wake_up()

    def _folder(self) -> Path:
        return Path(self.llm.llm_engine.model_config.model)

    def forget(self) -> None:
        """What was computed with the weights before. Without the last, old audio embeddings are served in silence."""
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM's prefix cache is in use and keeps what the weights before have made")
        self.llm.reset_mm_cache()
        self.llm.llm_engine.reset_encoder_cache()

    def _publish_adapter(self, folder: Path, place: Path) -> None:
        """The adapter with the parameters' published names, by which vLLM knows them."""
        from safetensors.torch import save_file

        config, weights = ADAPTER_FILES
        prefix = "base_model.model."
        named = {
            prefix + self.student.published_name(name.removeprefix(prefix)): value
            for name, value in vllm_shared_memory.read(folder / weights)
        }
        save_file(named, place / weights, metadata={"format": "pt"})
        (place / config).write_bytes((folder / config).read_bytes())

    def params(self, sampling: Sampling, seed: int) -> SamplingParams:
        """How vLLM is to write the replies to one prompt."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            n=sampling.n if sampling.temperature > 0 else 1,  # greedy replies are all the same
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            seed=seed if sampling.temperature > 0 else None,
            logprobs=0,  # of the token that was drawn
            flat_logprobs=True,
            logit_bias={self.student.placeholder_id: NEVER},
            ignore_eos=True,  # the family's end token alone ends a reply
            stop_token_ids=[self.student.end_token_id],
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _completion(self, output: CompletionOutput) -> Completion:
        if output.finish_reason not in ("stop", "length"):
            raise RuntimeError(f"vLLM ended a reply by {output.finish_reason!r}")
        token_ids, logprobs = tuple(output.token_ids), tuple(output.logprobs.logprobs)
        if len(token_ids) != len(logprobs):
            raise RuntimeError(f"vLLM gave {len(logprobs)} log-probs of {len(token_ids)} tokens")
        if not all(map(isfinite, logprobs)):  # to a learner, no number is a log-prob that nobody knows
            raise FloatingPointError(f"vLLM's model, with weights of version {self.version}, gives no numbers")
        text = self.student.tokenizer.decode(token_ids, skip_special_tokens=True).strip()
        return Completion(token_ids, logprobs, text, output.finish_reason, self.version)


def check_length(sample: Sample, prompt: Prompt, max_tokens: int, settings: VllmConfig) -> None:
    """Raises UserError where a prompt and its longest reply do not fit into an engine."""
    if len(prompt.token_ids) + max_tokens > settings.max_model_len:
        raise UserError(
            f"{sample.id}: a prompt of {len(prompt.token_ids)} tokens and a reply of up to {max_tokens} "
            f"are more than vllm.max_model_len = {settings.max_model_len}"
        )


def _check_prompt(sample: Sample, prompt: Prompt, output: RequestOutput) -> None:
    theirs = tuple(output.prompt_token_ids)
    if theirs != prompt.token_ids:
        at = next(
            (at for at, pair in enumerate(zip(theirs, prompt.token_ids, strict=False)) if pair[0] != pair[1]), None
        )
        raise OtherPrompt(
            f"{sample.id}: vLLM reads a prompt of {len(theirs)} tokens, the learner one of {len(prompt.token_ids)}; "
            f"they differ from token {min(len(theirs), len(prompt.token_ids)) if at is None else at} on"
        )


def _seeds(samples: Sequence[Sample], seed: int) -> list[int]:
    """One a prompt, of 62 bits: vLLM gives the i-th of a prompt's replies the seed + i."""
    times: Counter[str] = Counter()
    seeds = []
    for sample in samples:
        key = f"{seed}/{times[sample.id]}/{sample.id}".encode()
        seeds.append(int.from_bytes(blake2b(key, digest_size=8).digest()) >> 2)
        times[sample.id] += 1
    return seeds


def _by_audio(prompts: Sequence[Prompt]) -> list[int]:
    """Indices with the prompts of one audio next to one another, audios in the order of their first prompts.

    >>> _by_audio([Prompt((1,), audio_key=key) for key in "abab"])
    [0, 2, 1, 3]
    """
    first: dict[Any, int] = {}
    for at, prompt in enumerate(prompts):
        first.setdefault(prompt.audio_key or at, at)
    return sorted(range(len(prompts)), key=lambda at: (first[prompts[at].audio_key or at], at))


def _buckets(weights: Iterable[tuple[str, Tensor]], size: int) -> Iterator[list[tuple[str, Tensor]]]:
    bucket: list[tuple[str, Tensor]] = []
    filled = 0
    for name, value in weights:
        bucket.append((name, value))
        filled += value.nbytes
        if filled >= size:
            yield bucket
            bucket, filled = [], 0
    if bucket:
        yield bucket
