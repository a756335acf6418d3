"""The access log: a line of JSON for each request, handed to a thread that writes them."""

from __future__ import annotations

import msgspec

from ..config.structs import Access
from .line_file import LineFile
from .outlet import Outlet

#: Bytes that may wait to be written: a second of 10,000 requests, and some more.
_WAITING_BYTES = 8 << 20
_EVERY_S = 0.1
_BATCH = 1_000  # turns of the loop; what is left is taken the next time


class Line(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One request. No body, no query, no key and no other field of its head; what is 0 or empty is left out.

    ``time``: when it ended. ``ms``: from its head to its last byte; what was waited for meanwhile: ``body_ms`` the
    client's body, ``redis_ms`` L2, ``queue_ms`` a place, ``wake_ms`` servers to wake, ``upstream_ms`` a backend until
    its answer began. ``key`` is the key's id.
    """

    time: str
    request_id: str
    client: str
    method: str
    path: str
    status: int
    ms: float
    first_byte_ms: float | None = None
    model: str = ""
    error: str = ""
    cache: str = ""
    cache_reason: str = ""
    backend: str = ""
    attempts: int = 0
    fallback: str = ""
    body_ms: float | None = None
    redis_ms: float | None = None
    queue_ms: float | None = None
    wake_ms: float | None = None
    upstream_ms: float | None = None
    request_bytes: int = 0
    response_bytes: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tenant: str = ""
    key: str = ""
    trace_id: str = ""


class AccessLog:
    """One worker's. ``sample``: the share of requests to be written."""

    def __init__(self, settings: Access) -> None:
        self.settings = settings
        self.sample = settings.sample
        self._file = LineFile(settings.path)
        self.outlet: Outlet[bytes] = Outlet(
            "access-log", self._write, most=_WAITING_BYTES, every_s=_EVERY_S, batch=_BATCH
        )
        self._encode = msgspec.json.Encoder().encode_lines

    def put(self, lines: list[Line]) -> None:
        """To be written soon; never waits."""
        data = self._encode(lines)
        self.outlet.offer(data, len(data), len(lines))

    def _write(self, turns: list[bytes]) -> int:
        return self._file.write(b"".join(turns))
