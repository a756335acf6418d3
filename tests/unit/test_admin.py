"""The admin application, asked without a server."""

import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from granian.rsgi import ProtocolClosed

from penstock.workers.admin import AdminApp, is_admin_path
from penstock.workers.answer import Answer, Refused
from penstock.workers.question import MAX_BODY_BYTES, Question, read_body


async def _metrics(_: Question) -> Answer:
    return Answer(b"m 1\n", "text/plain")


async def _echo(question: Question) -> Answer:
    return Answer.of([question.rest, question.query, question.content_type, question.body.decode()])


async def _refuse(_: Question) -> Answer:
    raise Refused(400, "not so", "invalid_request", param="key")


async def _break(_: Question) -> Answer:
    raise RuntimeError("a secret of the inside")


ROUTES = {
    "/metrics": {"GET": _metrics},
    "/health": {"GET": _metrics},
    "/set": {"POST": _echo},
    "/both": {"GET": _metrics, "POST": _echo},
    "/things/": {"GET": _echo},
    "/refused": {"GET": _refuse},
    "/broken": {"GET": _break},
}


class _Proto:
    """A request whose body comes in these chunks; an exception among them is raised."""

    def __init__(self, *chunks: bytes | Exception) -> None:
        self.said: tuple[int, dict[str, str], bytes] | None = None
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.said = status, dict(headers), body


def _scope(method: str, path: str, query: str = "", **headers: str) -> SimpleNamespace:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return SimpleNamespace(proto="http", method=method, path=path, query_string=query, headers=fields)


async def _ask(
    path: str,
    *,
    key: str | None = None,
    method: str = "GET",
    query: str = "",
    body: bytes = b"",
    **headers: str,
) -> tuple[int, Any]:
    status, _, said = await _whole(path, key=key, method=method, query=query, body=body, **headers)
    return status, said


async def _whole(
    path: str,
    *,
    key: str | None = None,
    method: str = "GET",
    query: str = "",
    body: bytes = b"",
    **headers: str,
) -> tuple[int, dict[str, str], bytes]:
    proto = _Proto(body, b"")
    await AdminApp(ROUTES, key).__rsgi__(_scope(method, path, query, **headers), proto)
    assert proto.said is not None
    return proto.said


async def test_known_paths_are_answered() -> None:
    assert await _ask("/metrics") == (200, b"m 1\n")


async def test_unknown_paths_are_404_in_the_usual_envelope() -> None:
    for path in ("/sleep", "/things", "/things/", "/things/a/b", "/metrics/", "/metrics/x"):
        status, body = await _ask(path)
        assert status == 404
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "given", [None, "Bearer", "Bearer wrong", "Basic right", "right", "Bearer right2", "Bearer \xff"]
)
async def test_with_a_key_configured_every_other_one_is_401(given: str | None) -> None:
    headers = {} if given is None else {"authorization": given}
    for method, path in (("GET", "/metrics"), ("GET", "/nothing"), ("POST", "/set"), ("GET", "/things/1")):
        assert (await _ask(path, key="right", method=method, **headers))[0] == 401


async def test_the_right_key_is_let_in_and_health_needs_none() -> None:
    assert (await _ask("/metrics", key="right", authorization="bearer right"))[0] == 200
    assert (await _ask("/health", key="right"))[0] == 200


async def test_other_methods_are_405_and_the_answer_names_those_there_are() -> None:
    for method, path, allowed in (
        ("POST", "/metrics", "GET, HEAD"),
        ("GET", "/set", "POST"),
        ("HEAD", "/set", "POST"),
        ("DELETE", "/both", "GET, POST, HEAD"),
        ("POST", "/things/1", "GET, HEAD"),
    ):
        status, headers, _ = await _whole(path, method=method)
        assert (status, headers["allow"]) == (405, allowed)


async def test_head_is_a_get_without_its_body() -> None:
    for path in ("/metrics", "/both", "/things/1"):
        assert await _ask(path, method="HEAD") == (200, b"")


async def test_a_post_hands_over_its_body_and_a_path_below_a_route_its_rest() -> None:
    status, said = await _ask("/set", method="POST", body=b"{}", content_type="application/json", query="a=1")
    assert (status, json.loads(said)) == (200, ["", "a=1", "application/json", "{}"])
    status, said = await _ask("/things/a b")
    assert (status, json.loads(said)) == (200, ["a b", "", "", ""])


async def test_what_a_handler_refuses_is_answered_as_it_says() -> None:
    status, said = await _ask("/refused")
    assert status == 400
    assert json.loads(said)["error"] == {
        "message": "not so",
        "type": "invalid_request_error",
        "param": "key",
        "code": "invalid_request",
    }


async def test_a_handler_that_breaks_is_500_and_keeps_its_insides_to_itself() -> None:
    status, said = await _ask("/broken")
    assert status == 500
    assert b"secret" not in said


async def _refusal(*chunks: bytes | Exception, **headers: str) -> int:
    with pytest.raises(Refused) as caught:
        await read_body(_scope("POST", "/set", **headers), _Proto(*chunks))
    return caught.value.answer.status


async def test_a_body_is_bounded_and_one_that_breaks_off_is_told_from_one_that_ends() -> None:
    most = b"x" * MAX_BODY_BYTES
    assert await read_body(_scope("POST", "/"), _Proto(most[:9], most[9:], b"")) == most
    assert await read_body(_scope("POST", "/", content_length="2"), _Proto(b"ab", b"")) == b"ab"
    assert await _refusal(most, b"x") == 413
    assert await _refusal(content_length=str(MAX_BODY_BYTES + 1)) == 413
    assert await _refusal(content_length="two") == 400
    assert await _refusal(b"a", b"", content_length="2") == 400
    assert await _refusal(b"a", b"", b"") == 400
    assert await _refusal(b"a", ProtocolClosed()) == 400


async def test_a_body_that_does_not_come_is_given_up() -> None:
    class Silent:
        def __aiter__(self) -> "Silent":
            return self

        async def __anext__(self) -> bytes:
            import asyncio

            await asyncio.Event().wait()
            raise StopAsyncIteration

    with pytest.raises(Refused) as caught:
        await read_body(_scope("POST", "/set"), Silent(), timeout_s=0.01)
    assert caught.value.answer.status == 408


def test_the_api_port_has_all_of_it_but_health() -> None:
    for path in ("/metrics", "/gateway/status", "/gateway/cache/stats", "/gateway/cache/entries/00"):
        assert is_admin_path(path)
    assert not is_admin_path("/health")
    assert not is_admin_path("/gateway/cache")


async def test_a_web_page_may_look_and_change_nothing() -> None:
    page = {"origin": "https://elsewhere.example"}
    assert (await _ask("/both", **page))[0] == 200
    status, body = await _ask("/both", method="POST", **page)
    assert (status, json.loads(body)["error"]["code"]) == (403, "origin_not_allowed")
