"""Only the listed paths are served; vLLM's dev and admin endpoints are out of reach, however they are spelled."""

from __future__ import annotations

import re
import socket
from urllib.parse import urlsplit

import pytest

from ..support.gateway import Gateway
from .bodies import PATHS
from .target import Target

DEV = (
    *("/sleep", "/wake_up", "/is_sleeping", "/collective_rpc", "/reset_prefix_cache", "/reset_mm_cache"),
    *("/pause", "/resume", "/is_paused", "/server_info", "/scale_elastic_ep", "/is_scaling_elastic_ep"),
    *("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/start_profile", "/stop_profile"),
    *("/invocations", "/inference/v1/generate", "/release_kv_cache_memory", "/fault_tolerance/apply"),
    *("/tokenizer_info", "/load", "/version", "/openapi.json", "/docs", "/ping", "/metrics", "/sim/stats"),
    *(
        "/v1/chat/completions/render",
        "/v1/chat/completions/batch",
        "/admin",
        "/gateway/status",
        "/debug/pprof",
    ),
)

TRICKS = (
    *(
        "//sleep",
        "/./sleep",
        "/sleep/",
        "/Sleep",
        "/SLEEP",
        "/sleep;x=1",
        "/sleep?level=1",
        "/sleep%00",
        "/sleep%20",
    ),
    *(
        "/v1/../sleep",
        "/v1//../sleep",
        "/v1/%2e%2e/sleep",
        "/v1/..%2fsleep",
        "/v1/..%5csleep",
        "/v1/..\\sleep",
    ),
    *("/%2fsleep", "/%2Fsleep", "/%73leep", "/%2573leep", "/..%2fsleep", "/%2e%2e%2fsleep", "/%c0%afsleep"),
    *("/health/../sleep", "/v1/models/../../sleep", "/v1/models/..%2f..%2fsleep", "/ready/../sleep"),
    *(
        "/v1/chat/completions/../../../sleep",
        "/v1/chat/completions/..%2f..%2f..%2fsleep",
        "/v1/messages/../../sleep",
    ),
    *("/v1/responses/../../sleep", "/v1/responses/..%2f..%2fsleep", "/v1/responses/%2e%2e%2f%2e%2e%2fsleep"),
    *(
        "/v1/responses/..",
        "/v1/responses/.",
        "/v1/responses/../sleep/cancel",
        "/v1/responses/..%2f..%2fsleep/cancel",
    ),
    *(
        "/v1/responses/resp_1/../../../sleep",
        "/v1/responses/resp_1/sleep",
        "/v1/responses/resp_1%2f..%2f..%2f..%2fsleep",
    ),
    *(
        "/v1/responses/x%0d%0a%0d%0aPOST%20/sleep",
        "/v1/responses/x%20HTTP/1.1%0d%0a",
        "/v1/responses/x%3fy=/sleep",
    ),
    *(
        "/v1/responses//sleep",
        "/v1/responses/x%23/sleep",
        "/v1/responses/..;/..;/sleep",
        "/v1/responses/%2573leep",
    ),
    *("http://elsewhere/sleep", "http://elsewhere//sleep", "//elsewhere/sleep", "/?/sleep", "/*", "*"),
)

ALLOWED = re.compile(
    rf"^({'|'.join(map(re.escape, PATHS))}|/v1/responses/(?!\.{{1,2}}(/|$))[A-Za-z0-9._~-]+(/cancel)?)(\?.*)?$"
)
"""What may reach a backend; a dot segment may not, for somebody on the way could resolve it."""


def knock(target: Target, method: str, path: str) -> int:
    """Sends a request line as it stands, which no client library would; the status, 0 for a closed door."""
    url = urlsplit(target.url)
    head = (
        f"{method} {path} HTTP/1.1\r\nhost: {url.netloc}\r\nauthorization: Bearer {target.key}\r\n"
        "content-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"
    )
    with socket.create_connection((url.hostname, url.port), timeout=30) as sock:
        sock.sendall(head.encode("latin-1"))
        answer = b""
        try:
            while more := sock.recv(65536):
                answer += more
        except ConnectionResetError:
            pass
    found = re.match(rb"HTTP/1\.[01] (\d{3}) ", answer)
    return int(found[1]) if found else 0


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", DEV)
def test_a_dev_path_is_not_found(target: Target, guarded: Gateway, method: str, path: str) -> None:
    before = len(target.tap.exchanges())
    assert knock(target, method, path) == 404
    assert target.tap.exchanges()[before:] == []


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT"])
@pytest.mark.parametrize("path", TRICKS)
def test_no_spelling_reaches_a_dev_path(target: Target, guarded: Gateway, method: str, path: str) -> None:
    before = len(target.tap.exchanges())
    assert knock(target, method, path) in (0, 400, 404, 405)
    reached = [exchange.target for exchange in target.tap.exchanges()[before:]]
    assert [path for path in reached if not ALLOWED.match(path) or "sleep" in path] == []


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "OPTIONS", "HEAD", "PATCH", "PROPFIND"])
def test_other_methods_reach_no_backend(target: Target, guarded: Gateway, method: str) -> None:
    before = len(target.tap.exchanges())
    for path in ("/sleep", "/v1/chat/completions", "/v1/responses/resp_1"):
        assert knock(target, method, path) in (0, 400, 404, 405)
    assert target.tap.exchanges()[before:] == []


def test_health_and_ready_answer_by_themselves(target: Target, guarded: Gateway) -> None:
    assert target.ask("GET", "/health").status == 200
    assert target.ask("GET", "/ready").status == 200
