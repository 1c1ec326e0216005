"""Requests to a vLLM server: many at once, tried again where the network or the server fails, refused in one line.

The key is read from an environment variable and goes into one header of requests to the one host that was named:
redirects are not followed, and no message, log or repr holds it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import httpx

from rlspeech.errors import UserError

log = logging.getLogger(__name__)

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0  # before the first further try; it doubles with each
LONGEST_RETRY_AFTER_S = 300.0  # what a server may ask us to wait
CONNECT_S = 10.0
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def _as_it_is(answer: Any) -> Any:
    return answer


class Request(NamedTuple):
    path: str  # from the server's root
    body: dict[str, Any] | None = None  # None: GET
    read: Callable[[Any], Any] = _as_it_is  # what the JSON of the answer becomes, at once: it may be large
    about: str = ""  # the sample, for messages


class Refused(Exception):
    """The server does not take this request (400, 404, ...): the caller knows what it asked for and what to do."""

    def __init__(self, request: Request, status: int, message: str) -> None:
        super().__init__(f"{request.path}: status {status}: {message}")
        self.request, self.status, self.message = request, status, message


@dataclass
class Client:
    """`root` is the server's address without /v1. Not for use inside a running event loop: it starts its own."""

    root: str
    timeout_s: float
    retries: int
    requests: int  # under way at once
    key_env: str
    _key: str = field(default="", repr=False)
    _jitter: random.Random = field(default_factory=random.Random, repr=False)  # spreads tries; no result depends on it

    @classmethod
    def of(cls, url: str, *, timeout_s: float, retries: int, requests: int, key_env: str) -> Client:
        """Raises UserError where the URL is none, or holds what belongs elsewhere."""
        if "@" in url or "?" in url:  # not repeated: a key may be in it
            raise UserError(f"teacher: a URL with @ or ?; give the key in the environment variable {key_env} instead")
        try:
            parts = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise UserError(f"teacher {url}: {error}; give an address such as http://127.0.0.1:8000") from None
        if parts.scheme not in ("http", "https") or not parts.host:
            raise UserError(f"teacher {url}: no address of a server, such as http://127.0.0.1:8000")
        root = str(parts.copy_with(fragment=None)).rstrip("/").removesuffix("/v1")
        return cls(root, timeout_s, retries, requests, key_env, _key_from(key_env))

    def ask(self, requests: Sequence[Request]) -> list[Any]:
        """What was read of the answers, in the order of the requests. The first failure ends them all.

        Raises Refused, or UserError where the caller could not say more.
        """

        async def one(client: httpx.AsyncClient, free: asyncio.Semaphore, request: Request) -> Any:
            async with free:
                answer = await self._answer(client, request)
            try:
                return request.read(answer)
            except (KeyError, TypeError, IndexError, AttributeError) as error:
                what = f"answers {request.path} in another form than vLLM's ({type(error).__name__}: {error})"
                raise UserError(f"teacher {self.root}: {what}") from error

        async def every() -> list[Any]:
            free = asyncio.Semaphore(self.requests)
            async with self._connections() as client:
                return await asyncio.gather(*(one(client, free, request) for request in requests))

        return asyncio.run(every())

    def _connections(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(self.timeout_s, connect=min(CONNECT_S, self.timeout_s)),
            limits=httpx.Limits(max_connections=self.requests),
            follow_redirects=False,
            trust_env=httpx.URL(self.root).host not in LOOPBACK,  # no proxy on the way to this machine
        )

    async def _answer(self, client: httpx.AsyncClient, request: Request) -> Any:
        for attempt in range(self.retries + 1):
            asked_wait_s = 0.0
            try:
                response = await self._try(client, request)
            except (httpx.TimeoutException, TimeoutError):
                trouble = f"no answer within {self.timeout_s:g} s"
            except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
                trouble = f"no connection ({self._clean(str(error) or type(error).__name__)})"
            except httpx.HTTPError as error:
                raise UserError(f"teacher {self.root}: {self._clean(str(error) or type(error).__name__)}") from None
            else:
                if response.status_code != 429 and response.status_code < 500:
                    return self._json(request, response)
                trouble = f"status {response.status_code}: {self._message(response)}"
                asked_wait_s = retry_after_s(response.headers.get("Retry-After", ""))
            if attempt < self.retries:
                wait_s = max(asked_wait_s, self._back_off_s(attempt))
                note = "teacher %s: %s; try %d of %d in %.1f s"
                log.warning(note, self.root, trouble, attempt + 2, self.retries + 1, wait_s)
                await asyncio.sleep(wait_s)
        raise UserError(f"teacher {self.root}: {trouble}, after {self.retries + 1} tries; is the server running?")

    async def _try(self, client: httpx.AsyncClient, request: Request) -> httpx.Response:
        """One try; httpx counts its time-outs between bytes, `timeout_s` is of the whole."""
        method = "GET" if request.body is None else "POST"
        async with asyncio.timeout(self.timeout_s):
            return await client.request(method, self.root + request.path, json=request.body)

    def _back_off_s(self, attempt: int) -> float:
        return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt) * self._jitter.uniform(0.5, 1.0)

    def _json(self, request: Request, response: httpx.Response) -> Any:
        status = response.status_code
        if status in (401, 403):
            what = "refuses the key in" if self._key else "wants a key: set"
            raise UserError(f"teacher {self.root}: {what} the environment variable {self.key_env} (status {status})")
        if response.is_redirect:
            place = self._clean(response.headers.get("Location", ""))
            raise UserError(f"teacher {self.root}: redirects to {place}, which is not followed; give the last address")
        if not response.is_success:
            raise Refused(request, status, self._message(response))
        try:
            return response.json()
        except ValueError:
            raise UserError(f"teacher {self.root}: answers {request.path} with no JSON; is it a vLLM server?") from None

    def _message(self, response: httpx.Response) -> str:
        """What the server says of an error: vLLM's {"error": {"message": ...}}, FastAPI's {"detail": ...}, or text."""
        try:
            said = response.json()
        except ValueError:
            said = response.text
        for name in ("error", "message", "detail"):
            said = said.get(name, said) if isinstance(said, dict) else said
        return self._clean(str(said))

    def _clean(self, text: str) -> str:
        """One line of reasonable length; a server that repeats the key does not get it into our messages."""
        text = text.replace(self._key, "...") if self._key else text
        return " ".join(text.split())[:300]


def _key_from(key_env: str) -> str:
    key = os.environ.get(key_env, "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"{key_env}: the key in this environment variable has characters that no key has")
    return key


def retry_after_s(header: str) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date (RFC 9110, 10.2.3); 0 where it says nothing.

    >>> retry_after_s("7"), retry_after_s(""), retry_after_s("soon"), retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT")
    (7.0, 0.0, 0.0, 0.0)
    """
    try:
        asked_s = float(header) if header.strip().isdigit() else _until(header)
    except ValueError:
        return 0.0
    return min(max(asked_s, 0.0), LONGEST_RETRY_AFTER_S)


def _until(date: str) -> float:
    when = parsedate_to_datetime(date)
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp()
