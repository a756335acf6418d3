"""Models that stand in for one that cannot be had: when they do, what they are asked, and that it is not kept."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from penstock.cache.rows import read_counters

from ..support.dataplane import DataPlane, data_plane
from ..support.gateway import gateway
from ..support.procs import free_port, wait_until
from ..support.sim import Simulator, simulator
from .test_keys import create

CHAT = "/v1/chat/completions"
HOUR_S = 3600


@pytest.fixture(scope="module")
def sims() -> Iterator[tuple[Simulator, Simulator]]:
    """Each knows but its own model."""
    with (
        simulator("--no-any-model", model="a") as one,
        simulator("--no-any-model", model="b", record=4) as two,
    ):
        yield one, two


@pytest.fixture(autouse=True)
def _reset(sims: tuple[Simulator, Simulator]) -> Iterator[None]:
    yield
    for sim in sims:
        sim.reset()


def _config(first: str, second: str, **more: Any) -> dict[str, Any]:
    asked = {"backends": [{"url": first}], "aliases": ["also-a"], "fallbacks": ["b"], **more.pop("asked", {})}
    return {"models": {"a": asked, "b": {"backends": [{"url": second}]}}, **more}


@contextmanager
def _plane(
    first: str, sims: tuple[Simulator, Simulator], **more: Any
) -> Iterator[tuple[DataPlane, httpx.Client]]:
    with data_plane(_config(first, sims[1].url, **more)) as plane:
        url = f"http://127.0.0.1:{plane.port}"
        with httpx.Client(base_url=url, timeout=30, trust_env=False, verify=False) as client:
            yield plane, client


def _dead() -> str:
    return f"http://127.0.0.1:{free_port()}"


def _body(model: str = "a", **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 2,
        "temperature": 0,
        **more,
    }


def _fallbacks(plane: DataPlane) -> dict[str, int]:
    """How often each cause sent a request from a to b."""
    found = {}
    for name, cells in read_counters(plane.segment, 0):
        family, labels = msgspec.msgpack.decode(name)
        if family == "penstock_fallbacks_total":
            assert labels[:2] == ["a", "b"]
            found[labels[2]] = cells[0]
    return found


def _is_of_b(answer: httpx.Response) -> bool:
    return answer.status_code == 200 and answer.headers["x-penstock-fallback"] == "b"


def test_another_model_answers_when_none_can_be_reached_or_is_healthy(
    sims: tuple[Simulator, Simulator],
) -> None:
    with _plane(_dead(), sims, breaker={"failures": 2, "open_s": HOUR_S}) as (plane, client):
        answers = [client.post(CHAT, json=_body()) for _ in range(4)]
        assert all(map(_is_of_b, answers))
        assert {answer.json()["model"] for answer in answers} == {"b"}
        assert _fallbacks(plane) == {"upstream_broken": 2, "no_healthy_backend": 2}
        own = client.post(CHAT, json=_body("b"))
        assert own.status_code == 200
        assert "x-penstock-fallback" not in own.headers


@pytest.mark.parametrize("status", [502, 503])
def test_what_is_safe_to_ask_again_is_asked_of_another_model(
    sims: tuple[Simulator, Simulator], status: int
) -> None:
    sims[0].faults({"kind": "status", "status": status})
    with _plane(sims[0].url, sims) as (_, client):
        assert _is_of_b(client.post(CHAT, json=_body()))
        assert _is_of_b(client.post(CHAT, json=_body(stream=True)))


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ({"kind": "status", "status": 500}, 500),
        ({"kind": "status", "status": 429}, 429),
        ({"kind": "status", "status": 400}, 400),
        ({"kind": "reset_after_headers"}, 502),
        ({"kind": "hang"}, 504),
    ],
    ids=["500", "429", "400", "reset", "hang"],
)
def test_what_may_have_been_acted_on_is_asked_of_nobody_else(
    sims: tuple[Simulator, Simulator], fault: dict[str, Any], status: int
) -> None:
    sims[0].faults(fault)
    with _plane(sims[0].url, sims, asked={"timeouts": {"first_byte_s": 0.2}}) as (plane, client):
        answer = client.post(CHAT, json=_body())
        assert answer.status_code == status
        assert "x-penstock-fallback" not in answer.headers
        assert not _fallbacks(plane)
        assert sims[1].stats()["paths"].get(CHAT) is None


def test_a_full_queue_sends_them_on(sims: tuple[Simulator, Simulator]) -> None:
    sims[0].faults({"kind": "hang"})
    asked = {"max_concurrent": 1, "max_queue": 0}
    with ThreadPoolExecutor(1) as thread, _plane(sims[0].url, sims, asked=asked) as (plane, client):
        first = thread.submit(client.post, CHAT, json=_body())
        plane.wait_for(running=1, calls=1)
        assert _is_of_b(client.post(CHAT, json=_body()))
        assert _fallbacks(plane) == {"queue_full": 1}
        sims[0].faults({})
        assert first.result(30).json()["model"] == "a"


@pytest.mark.parametrize("answers", [True, False], ids=["503", "refused"])
def test_retries_that_are_spent_are_spent_for_other_models_too(
    sims: tuple[Simulator, Simulator], answers: bool
) -> None:
    sims[0].faults({"kind": "status", "status": 503})
    with _plane(sims[0].url if answers else _dead(), sims) as (_, client):
        found = [client.post(CHAT, json=_body()).status_code for _ in range(40)]
        assert set(found) == {200, 503 if answers else 502}
        assert found.count(200) <= 10 + 40 / 5  # what is kept of the budget, and a fifth


def test_every_kind_of_body_names_the_model_that_answers(sims: tuple[Simulator, Simulator]) -> None:
    with _plane(_dead(), sims) as (_, client):
        assert _is_of_b(client.post(CHAT, json=_body("also-a")))
        assert _is_of_b(client.post(CHAT, json=_body(cache={"no-store": True})))
        long = _body(messages=[{"role": "user", "content": "word " * 250_000}])
        assert len(msgspec.json.encode(long)) > 1 << 20
        assert _is_of_b(client.post(CHAT, json=long))
        form = client.post(
            "/v1/audio/transcriptions",
            data={"model": "also-a"},
            files={"file": ("a.wav", b"RIFF" * 64, "audio/wav")},
        )
        assert _is_of_b(form)


def test_a_body_in_which_that_cannot_be_said_gets_the_first_model_s_own_failure(
    sims: tuple[Simulator, Simulator],
) -> None:
    with _plane(_dead(), sims) as (plane, client):
        said = _body(messages=[{"role": "user", "content": "word " * 250_000}], metadata={"model": "a"})
        answer = client.post(CHAT, json=said)
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_broken")
        assert not _fallbacks(plane)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_what_another_model_said_is_given_to_all_who_wait_and_never_kept(
    sims: tuple[Simulator, Simulator], stream: bool
) -> None:
    sims[0].faults({"kind": "status", "status": 503})
    sims[1].faults({"kind": "hang"})
    body = _body(stream=stream)
    with _plane(sims[0].url, sims, cache={"mode": "all"}) as (plane, client):
        answers: list[httpx.Response] = []

        def ask() -> None:
            answers.append(
                httpx.post(f"http://127.0.0.1:{plane.port}{CHAT}", json=body, timeout=30, trust_env=False)
            )

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: sims[1].stats()["in_flight"] == 1, what="the one call")
        plane.wait_for(requests=3)
        sims[1].faults({})
        for thread in threads:
            thread.join(30)
        assert sorted(answer.headers["x-penstock-cache"] for answer in answers) == [
            "COALESCED",
            "COALESCED",
            "MISS",
        ]
        assert len({answer.content for answer in answers}) == 1
        sims[0].faults({})
        again = client.post(CHAT, json=body)
        assert again.headers["x-penstock-cache"] == "MISS"
        assert "x-penstock-fallback" not in again.headers
        assert client.post(CHAT, json=body).headers["x-penstock-cache"] == "HIT-L1"
        assert client.post(CHAT, json=_body("b", stream=stream)).headers["x-penstock-cache"] == "MISS"


def test_models_in_the_place_of_one_that_a_key_may_use_need_no_leave_of_their_own(
    sims: tuple[Simulator, Simulator], tmp_path: Path
) -> None:
    keys = tmp_path / "keys.yaml"
    config = {**_config(_dead(), sims[1].url), "keys": {"file": str(keys)}}
    with gateway(config) as gate:
        _, secret = create(gate.file, "--models", "a")
        headers = {"authorization": f"Bearer {secret}"}
        with httpx.Client(base_url=gate.url, headers=headers, timeout=30, trust_env=False) as client:
            wait_until(lambda: _is_of_b(client.post(CHAT, json=_body())), what="the key counts")
            assert client.post(CHAT, json=_body("b")).status_code == 403
        assert gate.metric("penstock_fallbacks_total", model="a", to="b") == 1
