"""`admin.on_api_port`: a worker hands requests for admin paths to the controller's private Unix socket.

Strategy: the rare request pays, with a connection of its own. Who may ask is the controller's to decide: the
request's Authorization travels along, nothing else of it does.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httptools

from .admin import ERROR_HEADERS, error_body

TIMEOUT_S = 10.0
_MAX_ANSWER_BYTES = 64 * 1024 * 1024


class Forward:
    """Serves what the controller listening at `socket_path` answers."""

    __slots__ = ("_socket",)

    def __init__(self, socket_path: Path) -> None:
        self._socket = str(socket_path)

    async def serve(self, scope: Any, proto: Any, request_id: str) -> int:
        """Answer one request for an admin path; returns the status that was sent."""
        own = ("x-request-id", request_id)
        # of an answer to HEAD the parser would wait for the body that its length announces
        head = scope.method == "HEAD"
        method = "GET" if head else scope.method
        try:
            async with asyncio.timeout(TIMEOUT_S):
                answer = await self._ask(method, scope.path, scope.headers.get("authorization"))
        except (OSError, TimeoutError, httptools.HttpParserError):
            body = error_body(
                "the controller does not answer; it is being replaced", "controller_unavailable"
            )
            proto.response_bytes(503, [*ERROR_HEADERS, ("retry-after", "1"), own], b"" if head else body)
            return 503
        headers = [("content-type", answer.content_type), own]
        proto.response_bytes(answer.status, headers, b"" if head else bytes(answer.body))
        return answer.status

    async def _ask(self, method: str, path: str, authorization: str | None) -> _Answer:
        reader, writer = await asyncio.open_unix_connection(self._socket)
        try:
            lines = [f"{method} {path} HTTP/1.1", "host: controller", "connection: close"]
            if authorization is not None:
                lines.append(f"authorization: {authorization}")
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace"))
            answer = _Answer()
            while not answer.complete:
                data = await reader.read(65_536)
                if not data:
                    raise ConnectionResetError("the answer is cut")
                answer.feed(data)
            return answer
        finally:
            writer.close()


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
