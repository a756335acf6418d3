"""`admin.on_api_port`: a worker hands requests for admin paths to the controller's private Unix socket.

Strategy: the rare request pays, with a connection of its own. Who may ask is the controller's to decide: the
request's Authorization travels along with its query, content type and body, nothing else of it does.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httptools

from .answer import Answer, Refused
from .question import read_body

TIMEOUT_S = 10.0
_MAX_ANSWER_BYTES = 64 * 1024 * 1024

#: What may stand in a request line as it came (RFC 3986); the path arrives decoded, so it is encoded again.
_IN_QUERY = "".join(map(chr, range(0x21, 0x7F)))


class Forward:
    """Serves what the controller listening at `socket_path` answers."""

    __slots__ = ("_socket",)

    def __init__(self, socket_path: Path) -> None:
        self._socket = str(socket_path)

    async def serve(self, scope: Any, proto: Any, request_id: str) -> int:
        """Answer one request for an admin path; returns the status that was sent."""
        head = scope.method == "HEAD"
        try:
            body = await read_body(scope, proto) if scope.method == "POST" else b""
            async with asyncio.timeout(TIMEOUT_S):
                answer = await self._ask(scope, body)
        except Refused as refused:
            answer = refused.answer
        except (OSError, TimeoutError, httptools.HttpParserError):
            answer = Refused(
                503,
                "the controller does not answer; it is being replaced",
                "controller_unavailable",
                headers=(("retry-after", "1"),),
            ).answer
        headers = [*answer.fields, ("x-request-id", request_id)]
        proto.response_bytes(answer.status, headers, b"" if head else answer.body)
        return answer.status

    async def _ask(self, scope: Any, body: bytes) -> Answer:
        reader, writer = await asyncio.open_unix_connection(self._socket)
        try:
            writer.write(_request(scope, body))
            answer = _Answer()
            while not answer.complete:
                data = await reader.read(65_536)
                if not data:
                    raise ConnectionResetError("the answer is cut")
                answer.feed(data)
            return Answer(bytes(answer.body), answer.content_type, answer.status)
        finally:
            writer.close()


def _request(scope: Any, body: bytes) -> bytes:
    # of an answer to HEAD the parser would wait for the body that its length announces
    method = "GET" if scope.method == "HEAD" else scope.method
    target = quote(scope.path, safe="/")
    if scope.query_string:
        target += f"?{quote(scope.query_string, safe=_IN_QUERY)}"
    lines = [f"{method} {target} HTTP/1.1", "host: controller", "connection: close"]
    for name in ("authorization", "content-type"):
        value = scope.headers.get(name)
        if value is not None:
            lines.append(f"{name}: {value}")
    if method == "POST":
        lines.append(f"content-length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace") + body


class _Answer:
    """An HTTP response as it arrives."""

    def __init__(self) -> None:
        self.complete = False
        self.content_type = "application/json"
        self.body = bytearray()
        self._parser = httptools.HttpResponseParser(self)

    @property
    def status(self) -> int:
        return int(self._parser.get_status_code())

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)
        if len(self.body) > _MAX_ANSWER_BYTES:
            raise ConnectionResetError("the answer is too large")

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self.content_type = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True
