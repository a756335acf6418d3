"""The admin application, asked without a server."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.workers.admin import AdminApp

ANSWERS = {"/metrics": lambda: ("text/plain", b"m 1\n"), "/health": lambda: ("application/json", b"{}")}


class _Proto:
    def __init__(self) -> None:
        self.said: tuple[int, dict[str, str], bytes] | None = None

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.said = status, dict(headers), body


async def _ask(path: str, *, key: str | None = None, method: str = "GET", **headers: str) -> tuple[int, Any]:
    proto = _Proto()
    scope = SimpleNamespace(proto="http", method=method, path=path, headers=headers)
    await AdminApp(ANSWERS, key).__rsgi__(scope, proto)
    assert proto.said is not None
    return proto.said[0], proto.said[2]


async def test_known_paths_are_answered() -> None:
    assert await _ask("/metrics") == (200, b"m 1\n")


async def test_unknown_paths_are_404_in_the_usual_envelope() -> None:
    status, body = await _ask("/sleep")
    assert status == 404
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "given", [None, "Bearer", "Bearer wrong", "Basic right", "right", "Bearer right2", "Bearer \xff"]
)
async def test_with_a_key_configured_every_other_one_is_401(given: str | None) -> None:
    headers = {} if given is None else {"authorization": given}
    assert (await _ask("/metrics", key="right", **headers))[0] == 401
    assert (await _ask("/nothing", key="right", **headers))[0] == 401


async def test_the_right_key_is_let_in_and_health_needs_none() -> None:
    assert (await _ask("/metrics", key="right", authorization="bearer right"))[0] == 200
    assert (await _ask("/health", key="right"))[0] == 200


async def test_other_methods_are_405() -> None:
    assert (await _ask("/metrics", method="POST"))[0] == 405
    assert await _ask("/metrics", method="HEAD") == (200, b"")
