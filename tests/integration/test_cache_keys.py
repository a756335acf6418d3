"""What makes two requests the same question, seen from outside: HIT or MISS, before a real backend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from penstock.gateway.caller import Caller
from penstock.gateway.endpoints import Endpoint
from penstock.gateway.raw import Out, RawRequest

from ..support.dataplane import DataPlane, data_plane, published
from ..support.lines import CHAT, Answer, Line, ask, calls, question
from ..support.sim import Simulator, simulator
from ..unit.requests import SMALLEST
from .test_cache_store import joined


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with simulator() as running:
        yield running


def config(url: str, **of_a_model: Any) -> dict[str, Any]:
    backends = [{"url": url}]
    return {
        "listen": {"host": "127.0.0.1"},
        "cache": {"mode": "all"},
        "models": {
            "m": {"backends": backends, "aliases": ["alias", "other-alias"], **of_a_model},
            "n": {"backends": backends},
        },
    }


@pytest.fixture(scope="module")
def plane(sim: Simulator) -> Iterator[DataPlane]:
    with data_plane(config(sim.url)) as running:
        yield running


def said(plane: DataPlane, body: dict[str, Any] | bytes, path: str = CHAT) -> str | None:
    answer = ask(plane.port, body, path)
    assert answer.status == 200, answer.body
    return answer.cache


OTHERS: dict[str, dict[str, Any]] = {
    "another text": {"messages": [{"role": "user", "content": "something else"}]},
    "another limit": {"max_tokens": 9},
    "a sampling parameter": {"top_p": 0.5},
    "a field that nobody knows": {"x_never_heard_of": 1},
    "such a field with another value": {"x_never_heard_of": 2},
    "such a field that says nothing": {"x_never_heard_of": None},
    "a stream": {"stream": True},
    "a stream with usage": {"stream": True, "stream_options": {"include_usage": True}},
    "a stream with usage throughout": {
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    },
    "another model": {"model": "n"},
    "more than one choice": {"n": 2},
    "a seed": {"seed": 1},
}


def test_whatever_changes_the_question_is_another_question(plane: DataPlane) -> None:
    assert said(plane, question("apart")) == "MISS"
    for what, fields in OTHERS.items():
        assert said(plane, question("apart", **fields)) == "MISS", what
    for what, fields in OTHERS.items():
        assert said(plane, question("apart", **fields)) == "HIT-L1", what


DENIED: dict[str, Any] = {
    "user": "somebody",
    "metadata": {"trace": "1"},
    "request_id": "r-1",
    "session_id": "s-1",
    "priority": 1,
    "cache": {"ttl": 60},
}


def test_fields_that_say_who_asks_do_not(plane: DataPlane) -> None:
    assert said(plane, question("who")) == "MISS"
    for name, value in DENIED.items():
        assert said(plane, question("who", **{name: value})) == "HIT-L1", name
    assert said(plane, question("who", **DENIED)) == "HIT-L1"


def test_order_white_space_and_escapes_do_not(plane: DataPlane) -> None:
    body = question("größer 🗼", top_p=1.0)
    assert said(plane, body) == "MISS"
    turned = {name: body[name] for name in reversed(body)}
    turned["messages"] = [{name: m[name] for name in reversed(m)} for m in body["messages"]]
    spaced = msgspec.json.format(msgspec.json.encode(turned), indent=3)
    escaped = spaced.replace("größer".encode(), rb"gr\u00f6\u00dfer").replace("🗼".encode(), rb"\ud83d\uddfc")
    assert escaped != spaced
    slashed = msgspec.json.encode(body).replace(b'"model"', rb'"\u006dodel"')
    for variant in (msgspec.json.encode(turned), spaced, escaped, slashed):
        assert said(plane, variant) == "HIT-L1", variant


def test_an_alias_is_the_model_that_it_stands_for(plane: DataPlane) -> None:
    assert said(plane, question("alias", model="alias")) == "MISS"
    for name in ("m", "other-alias", "alias"):
        assert said(plane, question("alias", model=name)) == "HIT-L1"


def test_the_query_counts(plane: DataPlane) -> None:
    body = question("query")
    assert said(plane, body) == "MISS"
    assert said(plane, body, CHAT + "?a=1") == "MISS"
    assert said(plane, body, CHAT + "?a=2") == "MISS"
    for target in (CHAT, CHAT + "?a=1", CHAT + "?a=2"):
        assert said(plane, body, target) == "HIT-L1"


def test_every_endpoint_that_takes_json_is_cached_and_apart_from_every_other(
    plane: DataPlane, sim: Simulator
) -> None:
    before = calls(sim)
    answers: dict[str, Answer] = {}
    for path, fields in SMALLEST.items():
        answers[path] = ask(plane.port, {"model": "m", **fields}, path)
        assert (answers[path].status, answers[path].cache) == (200, "MISS"), path
    assert calls(sim) == before + len(SMALLEST)
    for path, fields in SMALLEST.items():
        again = ask(plane.port, {"model": "m", **fields}, path)
        assert (again.cache, again.body) == ("HIT-L1", answers[path].body), path
        assert again.header("content-type") == answers[path].header("content-type")
    assert calls(sim) == before + len(SMALLEST)


def test_a_namespace_is_apart(plane: DataPlane) -> None:
    spaces = [None, "one", "two", "On\u00e9"]
    bodies = [question("space", **({"cache": {"namespace": s}} if s else {})) for s in spaces]
    assert [said(plane, body) for body in bodies] == ["MISS"] * len(spaces)
    assert [said(plane, body) for body in bodies] == ["HIT-L1"] * len(spaces)


def test_a_version_tag_makes_old_answers_unseen_and_its_return_shows_them_again(sim: Simulator) -> None:
    with data_plane(config(sim.url)) as plane:
        body = question("version")
        assert [said(plane, body), said(plane, body)] == ["MISS", "HIT-L1"]

        def tagged(**model: Any) -> None:
            text = msgspec.yaml.encode({**config(sim.url, **model)}).decode()
            new = published(text)
            plane.call(lambda: plane.worker.swap(new))

        tagged(version="2")
        assert [said(plane, body), said(plane, body)] == ["MISS", "HIT-L1"]
        tagged()
        assert said(plane, body) == "HIT-L1"


class Tenanted:
    """Stands where the pipeline stands and says whose a request is, by a header, as keys do."""

    def __init__(self, plane: DataPlane) -> None:
        self._serve = plane.worker.pipeline.serve

    def __call__(self, endpoint: Endpoint, raw: RawRequest, out: Out, life: Any, _: Caller) -> Any:
        lines = dict(line.split(": ", 1) for line in raw.forwarded.splitlines())
        return self._serve(endpoint, raw, out, life, Caller(lines["x-tenant"]))


def test_tenants_never_see_each_others_answers_nor_join_each_others_flights(sim: Simulator) -> None:
    with data_plane(config(sim.url)) as plane:
        plane.worker.pipeline.serve = Tenanted(plane)  # type: ignore[method-assign]

        def of(tenant: str, **more: Any) -> str | None:
            return ask(plane.port, question("mine", **more), headers={"x-tenant": tenant}).cache

        space = {"namespace": "shared"}
        for more in ({}, {"stream": True}, {"cache": space}):
            assert [of("a", **more), of("b", **more)] == ["MISS", "MISS"]
            assert [of("a", **more), of("b", **more)] == ["HIT-L1", "HIT-L1"]
        # a name that ends where another's namespace begins
        assert of("a", cache={"namespace": "bc"}) == "MISS"
        assert of("ab", cache={"namespace": "c"}) == "MISS"

        before = calls(sim)
        sim.faults({"kind": "hang", "stage": "headers"})
        lines = [
            Line(plane.port).put(question("together"), headers={"x-tenant": tenant})
            for tenant in ("a", "b", "a", "b")
        ]
        plane.wait_for(requests=4, calls=2)
        joined(plane, 2)
        sim.faults({})
        assert sorted(line.receive().cache or "" for line in lines) == ["COALESCED"] * 2 + ["MISS"] * 2
        assert calls(sim) == before + 2
        for line in lines:
            line.socket.close()


CHOICES: dict[str, tuple[dict[str, Any], int]] = {
    "one prompt": ({"prompt": "a"}, 1),
    "two prompts": ({"prompt": ["a", "b"]}, 2),
    "two choices of two prompts": ({"prompt": ["a", "b"], "n": 2}, 4),
    "one prompt of tokens": ({"prompt": [100, 101]}, 1),
    "two prompts of tokens": ({"prompt": [[100, 101], [102]]}, 2),
}


@pytest.mark.parametrize("what", CHOICES)
def test_a_stream_of_several_choices_is_kept_when_all_of_them_are_there(plane: DataPlane, what: str) -> None:
    fields, count = CHOICES[what]
    body = {"model": "m", "stream": True, "max_tokens": 4, **fields}
    first, again = (ask(plane.port, body, "/v1/completions") for _ in range(2))
    assert (first.cache, again.cache) == ("MISS", "HIT-L1")
    assert first.body.count(b'"finish_reason":"') == count
    assert again.body == first.body
