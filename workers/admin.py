"""The admin port's application: metrics, status, the cache, backends, pools, and whether the controller is alive.

Strategy: few requests, small answers, one table of paths and their methods. With a key configured every path but
`/health` wants it, compared in constant time, and without it even the existence of a path is not told. No page in a
browser may change anything. What is unknown is 404, in the same envelope as everywhere. A path that ends in a slash
stands for all that lie right below it.

Refuses to know how the answers are made: they are functions it is given.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from .answer import Answer, Refused
from .question import Question, read_body

log = logging.getLogger(__name__)

METRICS = "/metrics"
STATUS = "/gateway/status"
CACHE_STATS = "/gateway/cache/stats"
CACHE_FLUSH = "/gateway/cache/flush"
CACHE_ENTRIES = "/gateway/cache/entries/"
BACKENDS = "/gateway/backends"
BACKENDS_DRAIN = "/gateway/backends/drain"
BACKENDS_UNDRAIN = "/gateway/backends/undrain"
POOLS = "/gateway/pools"
POOLS_WAKE = f"{POOLS}/wake"
POOLS_STOP = f"{POOLS}/stop"
POOLS_SWITCH = f"{POOLS}/switch"
PROXY_AVAILABLE = "/proxy/models/available"
PROXY_RUNNING = "/proxy/models/running"
PROXY_SWITCH = "/proxy/models/switch"
PROXY_START = "/proxy/operations/start"
PROXY_STOP = "/proxy/operations/stop"
PROXY_STATS = "/proxy/stats"
PROXY_METRICS = "/proxy/metrics"
PROXY_VERSION = "/proxy/version"
HEALTH = "/health"
_ON_API_PORT = frozenset(
    (
        *(METRICS, STATUS, CACHE_STATS, CACHE_FLUSH, BACKENDS, BACKENDS_DRAIN, BACKENDS_UNDRAIN),
        *(POOLS, POOLS_WAKE, POOLS_STOP, POOLS_SWITCH),
        *(PROXY_AVAILABLE, PROXY_RUNNING, PROXY_SWITCH, PROXY_START, PROXY_STOP),
        *(PROXY_STATS, PROXY_METRICS, PROXY_VERSION),
    )
)

_NO_STORE = ("cache-control", "no-store")

Handler = Callable[[Question], Awaitable[Answer]]
Routes = Mapping[str, Mapping[str, Handler]]
"""Path to method to what answers; only `POST` has a body, and who has `GET` has `HEAD`."""


def is_admin_path(path: str) -> bool:
    """Whether the API port serves a path too when `admin.on_api_port` is set; its `/health` is the worker's own."""
    return path in _ON_API_PORT or path.startswith(CACHE_ENTRIES)


class AdminApp:
    """Serves `routes`; Refused, raised by one of them, is answered as it says."""

    __slots__ = ("_key", "_routes")

    def __init__(self, routes: Routes, key: str | None) -> None:
        self._routes = routes
        self._key = key.encode() if key is not None else None

    async def __rsgi__(self, scope: Any, proto: Any) -> None:
        """Serve one request."""
        if scope.proto != "http":
            proto.close(404)
            return
        try:
            answer = await self._answer(scope, proto)
        except Refused as refused:
            answer = refused.answer
        except Exception:
            log.exception("admin_failed path=%s", scope.path)
            answer = Refused(
                500, "the controller failed; its log says why", "internal_error", kind="server_error"
            ).answer
        body = b"" if scope.method == "HEAD" else answer.body
        proto.response_bytes(answer.status, [*answer.fields, _NO_STORE], body)

    async def _answer(self, scope: Any, proto: Any) -> Answer:
        path, headers = scope.path, scope.headers
        if path != HEALTH and not self._allowed(headers.get("authorization")):
            raise Refused(
                401,
                "the admin key is missing or wrong",
                "invalid_api_key",
                kind="authentication_error",
                headers=(("www-authenticate", "Bearer"),),
            )
        folder, slash, rest = path.rpartition("/")
        methods = self._routes.get(path) if rest else None
        if methods is not None:
            rest = ""
        elif rest:
            methods = self._routes.get(folder + slash)
        if methods is None:
            raise Refused(404, f"no such path: {path}", "not_found")
        handler = methods.get("GET" if scope.method == "HEAD" else scope.method)
        if handler is None:
            allowed = [*methods, "HEAD"] if "GET" in methods else [*methods]
            raise Refused(
                405,
                f"{path} answers to {' and '.join(methods)}",
                "method_not_allowed",
                headers=(("allow", ", ".join(allowed)),),
            )
        if scope.method == "POST" and headers.get("origin") is not None:
            # a browser says so of what a page sends, and there is no page of ours: it is somebody else's
            raise Refused(403, "web pages may not change anything here", "origin_not_allowed")
        body = await read_body(scope, proto) if scope.method == "POST" else b""
        content_type = headers.get("content-type") or ""
        return await handler(
            Question(rest, scope.query_string, content_type, body, lambda: proto.client_disconnect())
        )

    def _allowed(self, authorization: str | None) -> bool:
        if self._key is None:
            return True
        scheme, _, given = (authorization or "").partition(" ")
        return hmac.compare_digest(given.strip().encode(), self._key) and scheme.lower() == "bearer"
