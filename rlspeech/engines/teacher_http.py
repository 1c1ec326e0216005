"""A text teacher behind the URL of a vLLM server: it scores the replies' own token ids by `prompt_logprobs`."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch

from rlspeech.engines.teacher_text import INSTEAD, Reading, vocabulary_lines
from rlspeech.engines.thoughts import answer_of, begun_by, closing_of
from rlspeech.engines.vllm_client import Client, Refused, Request
from rlspeech.errors import UserError
from rlspeech.types import Answer, Completion, Sample, Scored

log = logging.getLogger(__name__)

PROMPTS_KEPT = 4096  # rendered prompts
PROBE = "Grüße: 3.14 café, naïve;\tdon't stop! 東京 ...\n\nRésumé no. 42 (x²) — “ok”"
PROBED_AT_ONCE = 8192  # tokens; some proxies take no more than a megabyte
TOO_LONG = re.compile("context length|max_model_len|max_tokens must be at least 1|longer than the maximum", re.I)
GREEDY = {"temperature": 0.0, "top_p": 1.0, "repetition_penalty": 1.0}  # not the checkpoint's own defaults


@dataclass
class HttpTeacher:
    """The server's own chat template makes the prompts; its tokenizer is the student's, which is checked.

    Every method raises UserError in one line where the server is not reached, or refuses (see vllm_client).
    """

    client: Client
    reading: Reading
    model: str
    served: Mapping[str, int | None]  # longest prompt and reply of each model, in tokens; None: the server tells none
    top_k: int
    tokenizer: Any = field(repr=False)  # the server's
    begun: str = ""  # how the server's chat template begins the answer, where that is inside a thought
    _prompts: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False)

    @classmethod
    def connect(
        cls,
        url: str,
        reading: Reading,
        *,
        tokenizer: Any,
        top_k: int = 64,
        timeout_s: float = 120.0,
        retries: int = 4,
        requests: int = 16,
        api_key_env: str = "RLSPEECH_TEACHER_KEY",
    ) -> HttpTeacher:
        """Asks for model and tokenizer, and scores a few tokens: what would be refused later is refused now.

        `url` with or without /v1; `#name` at its end chooses one of several models, otherwise it is the first.
        `tokenizer` is the teacher's: the student's own, or that of reading.tokenizer. Raises UserError where the server
        has no such model, has another tokenizer, or does not tell the `top_k` most probable tokens.
        """
        address, _, name = url.partition("#")
        client = Client.of(address, timeout_s=timeout_s, retries=retries, requests=requests, key_env=api_key_env)
        served = _served(client)
        teacher = cls(client, reading, name or next(iter(served)), served, top_k, tokenizer)
        if teacher.model not in served:
            raise UserError(f"teacher {client.root}: no model {name!r}; it serves {', '.join(served)}")
        teacher._check_tokenizer()
        chat = teacher.messages(Sample("the first request", PROBE, transcript=PROBE))
        teacher.begun = teacher._thought(chat)
        (prompt,) = teacher._rendered([chat])
        teacher._score([prompt[:4]], [prompt[4:8]], ["the first request"])
        log.info(
            "teacher %s: model %s, %s tokens", client.root, teacher.model, served[teacher.model] or "any number of"
        )
        return teacher

    def messages(self, sample: Sample) -> list[dict[str, str]]:
        return self.reading.messages(sample)

    def head(self) -> None:
        """None: a served teacher tells its top tokens."""

    def score(self, samples: Sequence[Sample], replies: Sequence[Completion]) -> list[Scored]:
        """Log-probs [T] of each reply's own token ids, and the top K [T, K] at each of them, best first."""
        prompts = self._rendered([self.messages(sample) for sample in samples])
        return self._score(prompts, [reply.token_ids for reply in replies], [sample.id for sample in samples])

    def reply(self, samples: Sequence[Sample], *, max_tokens: int) -> list[Answer]:
        """What it answers itself, greedily, without its thoughts."""
        settings = {"model": self.model, "max_tokens": max_tokens, "return_token_ids": True, **GREEDY}
        prompts = self._rendered([self.messages(sample) for sample in samples])
        requests = [
            Request("/v1/completions", {**settings, "prompt": list(prompt)}, self._written, sample.id)
            for sample, prompt in zip(samples, prompts, strict=True)
        ]
        return self._ask(requests)

    def _score(
        self, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], names: Sequence[str]
    ) -> list[Scored]:
        settings = {"model": self.model, "max_tokens": 1, "prompt_logprobs": self.top_k, **GREEDY}
        requests = []
        for prompt, reply, name in zip(prompts, replies, names, strict=True):
            ids = [*prompt, *reply]
            longest = self.served[self.model]
            if longest is not None and len(ids) >= longest:  # the server writes one more token
                raise UserError(self._too_long(name, f"{len(ids) + 1} tokens where it reads {longest}"))
            read = partial(self._read_scores, reply)
            requests.append(Request("/v1/completions", {**settings, "prompt": ids}, read, name))
        return self._ask(requests)

    def _read_scores(self, reply: Sequence[int], answer: Any) -> Scored:
        told = answer["choices"][0].get("prompt_logprobs") if answer.get("choices") else None
        if told is None:
            raise UserError(f"teacher {self.client.root}: answers without prompt_logprobs; is it a vLLM server?")
        scored = scored_reply(told, reply, self.top_k)
        if scored is None:
            raise UserError(
                f"teacher {self.client.root}: tells fewer than {self.top_k} tokens at a position; lower reading.top_k"
            )
        return scored

    def _written(self, answer: Any) -> Answer:
        (written,) = answer["choices"]
        ids = written.get("token_ids")
        if ids is None:
            raise UserError(f"teacher {self.client.root}: answers without token_ids; vLLM 0.10.2 or later tells them")
        return Answer(answer_of(self.tokenizer, ids), ended=written.get("finish_reason") == "stop")

    def _rendered(self, chats: Sequence[list[dict[str, str]]]) -> list[tuple[int, ...]]:
        """Token ids of each chat with the beginning of the answer, by the server's template; each chat is sent once."""
        keys = [json.dumps(chat) for chat in chats]
        new = {key: chat for key, chat in zip(keys, chats, strict=True) if key not in self._prompts}
        found = self._ask([self._chat(chat, add_generation_prompt=True) for chat in new.values()])
        known = self._prompts | {key: self._answering(ids) for key, ids in zip(new, found, strict=True)}
        self._prompts = dict(list(known.items())[-PROMPTS_KEPT:])
        return [known[key] for key in keys]

    def _chat(self, chat: list[dict[str, str]], *, add_generation_prompt: bool) -> Request:
        about = {"model": self.model, "add_generation_prompt": add_generation_prompt}
        options = {"chat_template_kwargs": dict(self.reading.template_options)} if self.reading.template_options else {}
        return Request("/tokenize", {**about, **options, "messages": chat}, _ids)

    def _thought(self, chat: list[dict[str, str]]) -> str:
        """How the server's chat template begins the answer to such chats, where it does so inside a thought."""
        asked = [self._chat(chat, add_generation_prompt=begin) for begin in (False, True)]
        begun = begun_by(*(self.tokenizer.decode(ids) for ids in self._ask(asked)))
        return begun if closing_of(begun) else ""

    def _answering(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """The prompt with its thought at an end. A template may begin one for some chats only (/no_think)."""
        lengths = range(1, len(self.begun) + 1)
        last = next((n for n in lengths if self.tokenizer.decode(ids[-n:]).endswith(self.begun)), None)
        if last is None:
            return ids
        said, closing = self.tokenizer.decode(ids[-last:]), closing_of(self.begun)
        same, whole, alone = (
            tuple(self.tokenizer(text, add_special_tokens=False).input_ids) for text in (said, said + closing, closing)
        )
        return ids[:-last] + whole if same == ids[-last:] else ids + alone

    def _check_tokenizer(self) -> None:
        """The whole vocabulary as text, and a chat in the server's template, have the same ids here and there."""
        tokenizer = self.tokenizer
        texts, here = _vocabulary(tokenizer)
        asked = [{"prompt": text, "add_special_tokens": False} for text in texts]
        requests = [Request("/tokenize", {"model": self.model, **one}, _ids) for one in asked]
        chat = {"messages": [{"role": "user", "content": PROBE}], "return_token_strs": True}
        named = Request("/tokenize", {"model": self.model, **chat}, lambda answer: (_ids(answer), answer["token_strs"]))
        (ids, names), *there = self._ask([named, *requests])
        if there != here or tokenizer.convert_ids_to_tokens(ids) != names:
            raise UserError(
                f"teacher {self.client.root}: {self.model} has another tokenizer than the student; "
                "name it in reading.tokenizer"
            )

    def _ask(self, requests: Sequence[Request]) -> list[Any]:
        try:
            return self.client.ask(requests)
        except Refused as refused:
            raise UserError(self._why(refused)) from None

    def _why(self, refused: Refused) -> str:
        """The line about a request that the server does not like."""
        server, said = f"teacher {self.client.root}", refused.message
        if refused.status == 404 and refused.request.path == "/tokenize" and self.model not in said:
            return (
                f"{server}: has no /tokenize ({said}); a vLLM server has it, and a proxy before it must let it through"
            )
        if refused.status == 404:
            return f"{server}: {said} ({refused.request.path}); it serves {', '.join(self.served)}"
        if "logprobs" in said:
            remedy = f"start it with --max-logprobs {self.top_k} or more, or lower reading.top_k"
            return f"{server}: refuses the {self.top_k} most probable tokens ({said}); {remedy}"
        if TOO_LONG.search(said):
            return self._too_long(refused.request.about, said)
        if refused.request.path == "/tokenize" and self.reading.system is not None:
            return f"{server}: its chat template does not take this chat ({said}); {INSTEAD}"
        about = f"{refused.request.about}: " if refused.request.about else ""
        return f"{server}: {about}status {refused.status}: {said}"

    def _too_long(self, sample: str, what: str) -> str:
        remedy = "start it with a larger --max-model-len, shorten the prompt, or leave the sample out"
        return f"{sample}: too long for teacher {self.client.root} ({what}); {remedy}"


def scored_reply(told: Sequence[Mapping[str, Any] | None], reply: Sequence[int], top_k: int) -> Scored | None:
    """The reply's part of vLLM's prompt_logprobs: a mapping a position, token id -> its logprob and rank from 1.

    A token as written that is not among the top K is told besides them. None where fewer than K are told.
    """
    logprobs, ids, values = [], [], []
    for token, entries in zip(reply, told[len(told) - len(reply) :], strict=True):
        assert entries is not None, "only the first token of all has none before it"
        best = sorted(entries.items(), key=lambda entry: entry[1]["rank"])[:top_k]
        if len(best) < top_k:
            return None
        logprobs.append(entries[str(token)]["logprob"])
        ids.append([int(name) for name, _ in best])
        values.append([entry["logprob"] for _, entry in best])
    return Scored(
        tuple((token, token + 1) for token in range(len(reply))),
        torch.tensor(logprobs, dtype=torch.float32),
        topk_ids=torch.tensor(ids, dtype=torch.int64).reshape(len(reply), top_k),
        topk_logprobs=torch.tensor(values, dtype=torch.float32).reshape(len(reply), top_k),
    )


def _served(client: Client) -> dict[str, int | None]:
    """Names of the models that a server has, the first one first, with the most tokens that each reads."""
    try:
        (models,) = client.ask([Request("/v1/models", read=_lengths)])
    except Refused as refused:
        raise UserError(
            f"teacher {client.root}: no list of models at /v1/models (status {refused.status}); "
            "give the address of a vLLM server, such as http://127.0.0.1:8000"
        ) from None
    if not models:
        raise UserError(f"teacher {client.root}: serves no model")
    return models


@lru_cache(maxsize=1)
def _vocabulary(tokenizer: Any) -> tuple[list[str], list[tuple[int, ...]]]:
    """Texts with a line for each token, some thousands at a time, and their ids."""
    whole = list(vocabulary_lines(tokenizer))
    starts = range(0, len(whole), PROBED_AT_ONCE)
    texts = ["\n".join([PROBE, *whole[start : start + PROBED_AT_ONCE]]) for start in starts]
    return texts, [tuple(tokenizer(text, add_special_tokens=False).input_ids) for text in texts]


def _lengths(answer: Any) -> dict[str, int | None]:
    return {model["id"]: model.get("max_model_len") for model in answer["data"]}


def _ids(answer: Any) -> tuple[int, ...]:
    return tuple(answer["tokens"])
