"""The admin port's application: metrics, status, and whether the controller is alive.

Strategy: few requests, small answers, one table of paths. With a key configured every path but `/health` wants it,
compared in constant time, and without it even the existence of a path is not told. What is unknown is 404, in the
same envelope as everywhere.

Refuses to know how the answers are made: they are functions it is given.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

METRICS = "/metrics"
STATUS = "/gateway/status"
HEALTH = "/health"
PATHS = frozenset((METRICS, STATUS))
"""The paths that the API port serves too when `admin.on_api_port` is set; its `/health` is the worker's own."""

ERROR_HEADERS = (("content-type", "application/json"),)


def error_body(message: str, code: str, kind: str = "invalid_request_error") -> bytes:
    """An error in the OpenAI envelope."""
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": code}})


class AdminApp:
    """Serves `answers`: path to a function that returns content type and body."""

    __slots__ = ("_answers", "_key")

    def __init__(self, answers: Mapping[str, Callable[[], tuple[str, bytes]]], key: str | None) -> None:
        self._answers = answers
        self._key = key.encode() if key is not None else None

    async def __rsgi__(self, scope: Any, proto: Any) -> None:
        """Serve one request. A body is neither expected nor read."""
        if scope.proto != "http":
            proto.close(404)
            return
        status, headers, body = self._answer(scope.method, scope.path, scope.headers.get("authorization"))
        if scope.method == "HEAD":
            body = b""
        proto.response_bytes(status, headers, body)

    def _answer(
        self, method: str, path: str, authorization: str | None
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        if path != HEALTH and not self._allowed(authorization):
            body = error_body("the admin key is missing or wrong", "invalid_api_key", "authentication_error")
            return 401, [*ERROR_HEADERS, ("www-authenticate", "Bearer")], body
        answer = self._answers.get(path)
        if answer is None:
            return 404, [*ERROR_HEADERS], error_body(f"no such path: {path}", "not_found")
        if method not in ("GET", "HEAD"):
            body = error_body(f"{path} answers to GET", "method_not_allowed")
            return 405, [*ERROR_HEADERS, ("allow", "GET, HEAD")], body
        content_type, body = answer()
        return 200, [("content-type", content_type), ("cache-control", "no-store")], body

    def _allowed(self, authorization: str | None) -> bool:
        if self._key is None:
            return True
        scheme, _, given = (authorization or "").partition(" ")
        return hmac.compare_digest(given.strip().encode(), self._key) and scheme.lower() == "bearer"
