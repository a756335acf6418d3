"""What a request may say about caching, in all its ways and all combinations, and what it is told when it errs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from penstock.cache.outcome import NoCache

from ..conformance.tap import Tap, tap
from ..support.dataplane import DataPlane, data_plane
from ..support.lines import CHAT, Answer, Line, ask, calls, question
from ..support.procs import wait_until
from ..support.sim import Simulator, simulator
from ..unit.requests import form


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with simulator() as running:
        yield running


@pytest.fixture(scope="module")
def front(sim: Simulator) -> Iterator[Tap]:
    with tap(sim.url) as running:
        yield running


MODES = ("deterministic", "all", "opt_in", "off")


@pytest.fixture(scope="module")
def plane(front: Tap) -> Iterator[DataPlane]:
    models = {mode: {"cache": {"mode": mode}, "backends": [{"url": front.url}]} for mode in MODES}
    config = {
        "listen": {"host": "127.0.0.1"},
        "cache": {"mode": "all", "l1": {"ttl_s": 1000}},
        "models": {"m": {"backends": [{"url": front.url}]}, **models},
    }
    with data_plane(config) as running:
        yield running


class Time:
    """Stands in for the wall clock of the cache: it stands still but for what is let pass."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self._recall = plane.worker.pipeline._recall
        self._true = self._recall.now_ms
        self._now_ms = self._true()
        self._recall.now_ms = lambda: self._now_ms

    def pass_by(self, seconds: float) -> None:
        """On the loop, where what was just answered is kept by the end of its turn."""

        def forth() -> None:
            self._now_ms += round(seconds * 1000)

        self._plane.call(forth)

    def right(self) -> None:
        self._recall.now_ms = self._true


@pytest.fixture
def time(plane: DataPlane) -> Iterator[Time]:
    moved = Time(plane)
    yield moved
    moved.right()


def outcome(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    return f"{answer.cache} {answer.reason}" if answer.reason else str(answer.cache)


CONTROL = (None, "no-cache", "no-store", "no-cache, no-store", "max-age=2", "max-age=100", "No-Cache")
TTL = (None, "0", "50")
BODY: tuple[dict[str, Any] | None, ...] = (
    None,
    {},
    {"no-cache": True},
    {"no-store": True},
    {"no-cache": True, "no-store": True},
    {"no-cache": False, "no-store": False},
    {"s-maxage": 2},
    {"s-maxage": 100},
    {"ttl": 0},
    {"ttl": 50},
    {"use-cache": True},
)
AGE_S = 5


def expected(control: str | None, ttl: str | None, wish: dict[str, Any] | None) -> tuple[str, bool]:
    """What a request with these directives is told about an answer five seconds old; whether it stored its own."""
    words, wish = (control or "").lower(), wish or {}
    reads = "no-cache" not in words and not wish.get("no-cache")
    life = wish.get("ttl", float(ttl) if ttl else 1000)
    writes = "no-store" not in words and not wish.get("no-store") and life > 0
    young = "max-age=2" not in words and wish.get("s-maxage") != 2
    if reads and young:
        return "HIT-L1", False
    return ("MISS", True) if writes else ("BYPASS no_store", False)


def test_every_combination_of_directives_does_what_each_of_them_says(plane: DataPlane, time: Time) -> None:
    combinations = list(itertools.product(CONTROL, TTL, BODY))
    with Line(plane.port) as line:
        for i in range(len(combinations)):
            assert outcome(line.ask(question(f"combined {i}"))) == "MISS"
        time.pass_by(AGE_S)
        for i, (control, ttl, wish) in enumerate(combinations):
            headers = {"cache-control": control} if control else {}
            if ttl:
                headers["x-penstock-cache-ttl"] = ttl
            body = question(f"combined {i}", **({} if wish is None else {"cache": wish}))
            told, stored = expected(control, ttl, wish)
            assert outcome(line.ask(body, headers=headers)) == told, (control, ttl, wish)
            again = line.ask(question(f"combined {i}"))
            assert again.cache == "HIT-L1"
            assert (int(again.header("age") or -1) < AGE_S) is stored, (control, ttl, wish)


def test_an_answer_that_nobody_had_is_stored_unless_that_was_forbidden(plane: DataPlane) -> None:
    combinations = list(itertools.product(CONTROL, TTL, BODY))
    with Line(plane.port) as line:
        for i, (control, ttl, wish) in enumerate(combinations):
            headers = {"cache-control": control} if control else {}
            if ttl:
                headers["x-penstock-cache-ttl"] = ttl
            body = question(f"new {i}", **({} if wish is None else {"cache": wish}))
            words = (control or "").lower()
            life = (wish or {}).get("ttl", float(ttl) if ttl else 1000)
            stores = "no-store" not in words and not (wish or {}).get("no-store") and life > 0
            told = "MISS" if stores else "BYPASS no_store"
            assert outcome(line.ask(body, headers=headers)) == told, (control, ttl, wish)
            assert (line.ask(question(f"new {i}")).cache == "HIT-L1") is stores, (control, ttl, wish)


LIVES: dict[str, tuple[dict[str, str], dict[str, Any], float]] = {
    "the header": ({"x-penstock-cache-ttl": "7"}, {}, 7),
    "the body": ({}, {"cache": {"ttl": 0.5}}, 0.5),
    "the body over the header": ({"x-penstock-cache-ttl": "700"}, {"cache": {"ttl": 3}}, 3),
    "nobody": ({}, {}, 1000),
}


@pytest.mark.parametrize("who", LIVES)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_lives_as_long_as_was_said(plane: DataPlane, time: Time, who: str, stream: bool) -> None:
    headers, fields, life_s = LIVES[who]
    body = question(f"life by {who}", stream=stream)
    assert ask(plane.port, {**body, **fields}, headers=headers).cache == "MISS"
    time.pass_by(life_s - 0.4)
    hit = ask(plane.port, body)
    assert (hit.cache, hit.header("age")) == ("HIT-L1", str(int(life_s - 0.4)))
    time.pass_by(0.4)
    assert ask(plane.port, body).cache == "MISS"


def test_a_life_ends_by_the_real_clock_too(plane: DataPlane, sim: Simulator) -> None:
    body = question("a short life")
    assert ask(plane.port, {**body, "cache": {"ttl": 0.2}}).cache == "MISS"
    before = calls(sim)
    wait_until(lambda: ask(plane.port, {**body, "cache": {"no-store": True}}).cache == "BYPASS")
    assert calls(sim) == before + 1


def test_of_two_greatest_ages_the_smaller_counts(plane: DataPlane, time: Time) -> None:
    body = question("two ages")
    assert ask(plane.port, body).cache == "MISS"
    time.pass_by(10)
    wish = {"cache": {"s-maxage": 20}}
    assert ask(plane.port, {**body, **wish}, headers={"cache-control": "max-age=15"}).cache == "HIT-L1"
    assert ask(plane.port, {**body, **wish}, headers={"cache-control": "max-age=5"}).cache == "MISS"


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        (True, "cache"),
        ([], "cache"),
        ("no-cache", "cache"),
        ({"no-cache": 1}, "cache.no-cache"),
        ({"no-store": "yes"}, "cache.no-store"),
        ({"use-cache": None}, "cache.use-cache"),
        ({"ttl": "60"}, "cache.ttl"),
        ({"ttl": -1}, "cache.ttl"),
        ({"ttl": True}, "cache.ttl"),
        ({"ttl": 30 * 86_400 + 1}, "cache.ttl"),
        ({"s-maxage": None}, "cache.s-maxage"),
        ({"s-max-age": {}}, "cache.s-max-age"),
        ({"namespace": ""}, "cache.namespace"),
        ({"namespace": "x" * 129}, "cache.namespace"),
        ({"namespace": 1}, "cache.namespace"),
    ],
)
def test_a_directive_in_the_body_that_makes_no_sense_is_refused_by_its_path(
    plane: DataPlane, sim: Simulator, wish: Any, param: str
) -> None:
    before = calls(sim)
    for model in ("m", "off"):
        answer = ask(plane.port, question("odd", model=model, cache=wish))
        assert (answer.status, answer.json()["error"]["param"]) == (400, param)
    assert calls(sim) == before


@pytest.mark.parametrize("ttl", ["-1", "1.5", "soon", "2592001", "9" * 40])
def test_a_life_in_the_header_that_makes_no_sense_is_refused(plane: DataPlane, ttl: str) -> None:
    answer = ask(plane.port, question("odd"), headers={"x-penstock-cache-ttl": ttl})
    assert (answer.status, answer.json()["error"]["param"]) == (400, "x-penstock-cache-ttl")


def test_of_cache_control_what_is_not_understood_is_ignored(plane: DataPlane) -> None:
    body = question("control")
    assert ask(plane.port, body).cache == "MISS"
    for value in ("max-age=soon", "max-age", "only-if-cached", "no-transform, ,=", "public;no-cache", "²"):
        assert ask(plane.port, body, headers={"cache-control": value}).cache == "HIT-L1", value


def test_the_backend_gets_the_question_without_what_was_said_about_caching(
    plane: DataPlane, front: Tap
) -> None:
    headers = {
        "cache-control": "no-cache",
        "x-penstock-cache-ttl": "60",
        "x-penstock-anything": "1",
        "x-request-id": "stripped",
    }
    wish = {"namespace": "n", "ttl": 3, "s-maxage": 2, "x-future": [1]}
    body = question("stripped ü", cache=wish, metadata={"cache": "kept"}, odd={"b": 1e-7, "a": [None, -0.0]})
    assert ask(plane.port, body, headers=headers).cache == "MISS"
    seen = front.of("stripped").request
    del body["cache"]
    assert msgspec.json.decode(seen.body) == body
    names = {name for name, _ in seen.headers}
    said = {name for name in names if name.startswith("x-penstock") or name == "cache-control"}
    assert said == {"x-penstock-via"}  # of the gateway's own, against loops
    assert seen.values("content-length") == [str(len(seen.body)).encode()]

    plain = msgspec.json.format(msgspec.json.encode(question("untouched")), indent=5)
    assert ask(plane.port, plain, headers={"x-request-id": "untouched"}).cache == "MISS"
    assert front.of("untouched").request.body == plain


# ---- the reasons

_FORM, _FORM_TYPE = form(("model", b"all"))
SOUND = {"content-type": _FORM_TYPE}
SAMPLED = {"temperature": 0.7}
REASONS: dict[str, list[tuple[str, str, dict[str, Any] | bytes, dict[str, str]]]] = {
    # model and path, body, headers
    "off": [("off", CHAT, question(), {}), ("off", "/v1/embeddings", {"model": "off", "input": "x"}, {})],
    "body_too_large": [("all", CHAT, question(padding="x" * (1 << 20)), {})],
    "multipart": [("all", "/v1/audio/transcriptions", _FORM, SOUND)],
    "nondeterministic": [
        ("deterministic", CHAT, question(**SAMPLED), {}),
        ("deterministic", CHAT, question(temperature=None), {}),
        ("deterministic", "/v1/completions", {"prompt": "x"}, {}),
        ("deterministic", CHAT, question(cache={"ttl": 60}, **SAMPLED), {}),
    ],
    "not_opted_in": [
        ("opt_in", CHAT, question(), {}),
        ("opt_in", CHAT, question(), {"cache-control": "max-age=60"}),
        ("opt_in", CHAT, question(cache={"use-cache": False}), {}),
        ("opt_in", CHAT, question(cache={"no-cache": True}), {}),
    ],
    "stateful": [
        ("all", "/v1/responses", {"input": "x", "store": True}, {}),
        ("all", "/v1/responses", {"input": "x", "previous_response_id": "resp_1", "store": False}, {}),
    ],
    "no_store": [("all", CHAT, question(), {"cache-control": "no-cache, no-store"})],
}


@pytest.mark.parametrize("reason", [one.value for one in NoCache])
def test_each_reason_is_told_where_it_holds_and_nothing_is_kept(
    plane: DataPlane, sim: Simulator, reason: str
) -> None:
    for model, path, body, headers in REASONS[reason]:
        sent = body if isinstance(body, bytes) else {**body, "model": model}
        before = calls(sim)
        for _ in range(2):
            answer = ask(plane.port, sent, path, headers)
            assert (answer.cache, answer.reason) == ("BYPASS", reason), sent
            assert answer.header("x-penstock-backend")
            assert answer.header("age") is None
        assert calls(sim) == before + 2


def test_a_body_just_within_the_limit_is_cached(plane: DataPlane) -> None:
    body = question("long", padding="")
    room = (1 << 20) - len(msgspec.json.encode(body))
    body["padding"] = "x" * room
    assert len(msgspec.json.encode(body)) == 1 << 20
    assert [ask(plane.port, body).cache for _ in range(2)] == ["MISS", "HIT-L1"]


def test_a_reason_is_given_on_a_bypass_alone(plane: DataPlane) -> None:
    body = question("reason")
    for _ in range(2):
        assert ask(plane.port, body).reason is None
