"""A request for an admin path, and how its body is read: bounded in size and in time, wherever it arrives.

RSGI gives no bounds of its own, and a body that breaks off looks like a good one but for one more empty chunk
(`docs/architecture.md`, "What the server host leaves to us").
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from granian.rsgi import ProtocolClosed

from .answer import Refused

MAX_BODY_BYTES = 16 * 1024
BODY_TIMEOUT_S = 10.0


async def _never() -> None:
    await asyncio.get_running_loop().create_future()


@dataclass(frozen=True, slots=True)
class Question:
    """rest: what follows the path of a route that ends in a slash. query: without the question mark. gone: waits until
    the client has left.
    """

    rest: str = ""
    query: str = ""
    content_type: str = ""
    body: bytes = b""
    gone: Callable[[], Awaitable[None]] = _never

    def flag(self, name: str) -> bool:
        """Whether the query says `name=true`."""
        return parse_qs(self.query).get(name) == ["true"]


async def read_body(scope: Any, proto: Any, timeout_s: float = BODY_TIMEOUT_S) -> bytes:
    """The body of an RSGI request. Raises Refused: 400 when it breaks off, 408 when late, 413 over MAX_BODY_BYTES."""
    length = scope.headers.get("content-length")
    if length is not None and not (length.isascii() and length.isdigit()):
        raise Refused(400, "Content-Length is not a number", "body_broken")
    if length is not None and int(length) > MAX_BODY_BYTES:
        raise _too_large()
    try:
        async with asyncio.timeout(timeout_s):
            body = await _gather(proto)
    except TimeoutError:
        raise Refused(408, f"the body has not come within {timeout_s:g} s", "body_timeout") from None
    except ProtocolClosed:
        raise _broken() from None
    if length is not None and len(body) != int(length):
        raise _broken()
    return body


async def _gather(proto: Any) -> bytes:
    chunks = bytearray()
    empty = 0
    async for chunk in proto:
        chunks += chunk
        empty = 0 if chunk else empty + 1
        if len(chunks) > MAX_BODY_BYTES:
            raise _too_large()
        if empty > 1:
            raise _broken()
    return bytes(chunks)


def _too_large() -> Refused:
    return Refused(413, f"the body is over {MAX_BODY_BYTES} bytes", "body_too_large")


def _broken() -> Refused:
    return Refused(400, "the body broke off", "body_broken")
