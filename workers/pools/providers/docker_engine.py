"""The Docker Engine API over its Unix socket: one call, its answer, and the faults that either may have.

Strategy: `/_ping` says the newest version that the engine speaks; asked is that one, or the newest known here where
the engine knows more. It is asked anew before each piece of work, so that an engine which was replaced meanwhile is
met in its own version. Answers are read up to a bound; whatever goes wrong is one line, with the engine's own words
where it has any. Source: https://docs.docker.com/reference/api/engine/. Refuses to know what containers are for.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx
import msgspec

from ..quote import one_line, said
from .base import ProviderFault

OLDEST, NEWEST = (1, 40), (1, 51)
"""Versions that are spoken: from Docker 19.03, the first with device requests, on."""
_CALL_S = 15.0
_MOST_BYTES = 8 << 20
_VERSION = re.compile(r"(\d{1,3})\.(\d{1,3})")


class EngineRefused(ProviderFault):
    """The engine answered with a status that is not one of those expected."""

    def __init__(self, what: str, status: int, body: bytes) -> None:
        super().__init__(f"docker: {what}: {status}{said(body)}")
        self.status = status


class Answer:
    """What the engine answered, whole."""

    __slots__ = ("body", "status")

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self.body = body

    def json(self) -> Any:
        """The decoded body. Raises ProviderFault."""
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, RecursionError):
            raise ProviderFault("docker: the engine's answer is not JSON") from None


class DockerEngine:
    """One engine. Every method raises ProviderFault; call_s: how long an answer may take where nothing else is said."""

    def __init__(self, socket: str, call_s: float = _CALL_S) -> None:
        self._socket = socket.removeprefix("unix://")
        self._call_s = call_s
        self._version = ""
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(
                uds=self._socket, limits=httpx.Limits(max_keepalive_connections=0)
            ),
            trust_env=False,
            timeout=None,
            headers={"accept-encoding": "identity", "connection": "close"},
        )

    async def negotiate(self) -> None:
        """Find out which version of the API to speak."""
        async with self._stream("GET", "/_ping", None, self._call_s, "ping") as answer:
            found = _VERSION.fullmatch(answer.headers.get("api-version", ""))
            if answer.status_code != 200 or found is None:
                raise ProviderFault(
                    f"docker: what answers at {self._socket} does not say which API it speaks"
                )
        version = int(found[1]), int(found[2])
        if version < OLDEST:
            raise ProviderFault(
                f"docker: the engine speaks API {found[0]}; {OLDEST[0]}.{OLDEST[1]} is needed (Docker 19.03)"
            )
        major, minor = min(version, NEWEST)
        self._version = f"/v{major}.{minor}"

    async def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: object = None,
        accept: tuple[int, ...] = (200,),
        timeout_s: float | None = None,
        what: str,
    ) -> Answer:
        """One call and its whole answer. what: for the fault, such as `start penstock-a-b-0`.

        Raises EngineRefused for a status that is not in `accept`, ProviderFault for everything else.
        """
        seconds = self._call_s if timeout_s is None else timeout_s
        payload = None if body is None else msgspec.json.encode(body)
        async with self._stream(method, self._version + path, query, seconds, what, payload) as answer:
            got = bytearray()
            async for piece in answer.aiter_raw(65_536):
                got += piece
                if len(got) > _MOST_BYTES:
                    raise ProviderFault(f"docker: {what}: an answer of more than {_MOST_BYTES} bytes")
        if answer.status_code not in accept:
            raise EngineRefused(what, answer.status_code, bytes(got))
        return Answer(answer.status_code, bytes(got))

    @asynccontextmanager
    async def stream(
        self, method: str, path: str, query: Mapping[str, str], *, what: str
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The pieces of an answer as they come, without a deadline. Raises EngineRefused unless it is 200."""
        async with self._stream(method, self._version + path, query, None, what) as answer:
            if answer.status_code != 200:
                got = bytearray()
                async for piece in answer.aiter_raw(4096):
                    got += piece
                    if len(got) >= 4096:
                        break
                raise EngineRefused(what, answer.status_code, bytes(got))
            yield answer.aiter_raw(65_536)

    @asynccontextmanager
    async def _stream(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        timeout_s: float | None,
        what: str,
        payload: bytes | None = None,
    ) -> AsyncIterator[httpx.Response]:
        headers = {} if payload is None else {"content-type": "application/json"}
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._client.stream(
                    method, "http://docker" + path, params=query, content=payload, headers=headers
                ) as answer,
            ):
                yield answer
        except TimeoutError:
            raise ProviderFault(f"docker: {what}: the engine did not answer within {timeout_s:g} s") from None
        except (httpx.HTTPError, httpx.StreamError, OSError) as fault:
            said_ = one_line(str(fault)) or type(fault).__name__
            raise ProviderFault(f"docker: {what}: no answer at {self._socket}: {said_}") from None

    async def close(self) -> None:
        """Close the client."""
        await self._client.aclose()


def segment(text: str) -> str:
    """`text` as one segment of a path."""
    return quote(text, safe="")
