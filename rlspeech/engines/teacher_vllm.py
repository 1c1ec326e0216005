"""A teacher in a vLLM engine: its most probable tokens at every token of a reply, beginnings read once.

T tokens of a reply, K top tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rlspeech.engines.teacher_text import Reading
from rlspeech.engines.thoughts import answer_of
from rlspeech.engines.vllm_engine import Request, stream
from rlspeech.errors import UserError
from rlspeech.types import Answer, Completion, Sample, Scored

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput, SamplingParams


def _still() -> None:
    """Where nobody wants to know."""


@dataclass
class VllmTeacher:
    """`on_progress` is called at every step of the engine."""

    llm: LLM
    reading: Reading
    top_k: int
    on_progress: Callable[[], None] = _still

    @property
    def tokenizer(self) -> Any:
        return self.llm.get_tokenizer()

    def messages(self, sample: Sample) -> list[dict[str, str]]:
        return self.reading.messages(sample)

    def head(self) -> None:
        """None: vLLM tells its top tokens."""

    def score(self, samples: Sequence[Sample], replies: Sequence[Completion]) -> list[Scored]:
        """Log-probs of the replies' own token ids and the K best tokens at each: student and teacher share a tokenizer.

        Raises UserError where a prompt and its reply are longer than vllm.max_model_len.
        """
        prompts = [self._prompt(sample) for sample in samples]
        order = self._order(samples)
        found: dict[int, Scored] = {}
        left = order
        for cached in (True, False):
            asked = [
                Request(self._with_reply(samples[at], prompts[at], replies[at]), self._scoring(cached)) for at in left
            ]
            again = []
            for place, output in stream(self.llm, asked, on_progress=self.on_progress):
                at = left[place]
                # Of tokens from its cache vLLM has nothing to tell: where they are a reply's, it reads them anew.
                if (output.num_cached_tokens or 0) >= len(prompts[at]):
                    again.append(at)
                else:
                    found[at] = self._scored(output, len(prompts[at]), replies[at])
            left = again
        return [found[at] for at in range(len(samples))]

    def reply(self, samples: Sequence[Sample], *, max_tokens: int) -> list[Answer]:
        """What it answers itself, greedily, without its thoughts."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        how = SamplingParams(
            temperature=0.0, max_tokens=max_tokens, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )
        order = self._order(samples)
        asked = []
        for at in order:
            prompt = self._prompt(samples[at])
            self._check_length(samples[at], len(prompt) + max_tokens)
            asked.append(Request({"prompt_token_ids": prompt}, how))
        found: dict[int, Answer] = {}
        for place, output in stream(self.llm, asked, on_progress=self.on_progress):
            (written,) = output.outputs
            text = answer_of(self.tokenizer, written.token_ids)
            found[order[place]] = Answer(text, ended=written.finish_reason == "stop")
        return [found[at] for at in range(len(samples))]

    def _order(self, samples: Sequence[Sample]) -> list[int]:
        """Samples that begin alike follow one another, so that what they share is still in the cache."""
        return sorted(range(len(samples)), key=lambda at: (self.reading.beginning(samples[at]), at))

    def _prompt(self, sample: Sample) -> list[int]:
        return self.reading.prompt_ids(self.tokenizer, sample)

    def _with_reply(self, sample: Sample, prompt: list[int], reply: Completion) -> dict[str, Any]:
        self._check_length(sample, len(prompt) + len(reply.token_ids) + 1)
        return {"prompt_token_ids": [*prompt, *reply.token_ids]}

    def _scoring(self, cached: bool) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=self.top_k,
            flat_logprobs=True,
            detokenize=False,
            skip_reading_prefix_cache=not cached,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _scored(self, output: RequestOutput, start: int, reply: Completion) -> Scored:
        """A position holds the token itself, then the K best: of these the token is one where it is among them."""
        told: Any = output.prompt_logprobs
        count = len(reply.token_ids)
        begin, width = told.start_indices[start], self.top_k + 1
        values = torch.tensor(told.logprobs[begin : begin + count * width]).view(count, width)
        ids = torch.tensor(told.token_ids[begin : begin + count * width]).view(count, width)
        if ids[:, 0].tolist() != list(reply.token_ids):
            raise RuntimeError("vLLM tells the log-probs of other tokens than those of the reply")
        spans = tuple((token, token + 1) for token in range(count))
        return Scored(
            spans, values[:, 0].clone(), topk_ids=ids[:, 1:].contiguous(), topk_logprobs=values[:, 1:].contiguous()
        )

    def _check_length(self, sample: Sample, tokens: int) -> None:
        longest = self.llm.llm_engine.model_config.max_model_len
        if tokens > longest:
            raise UserError(
                f"{sample.id}: the teacher's prompt and the reply are {tokens} tokens; vllm.max_model_len = {longest}"
            )
