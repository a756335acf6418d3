"""The simulator asleep, as vLLM's development mode has it: levels, parts of memory, what runs and what waits."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from penstock.loadtests.sim.faults import SLEEP_PATHS
from tests.support.procs import wait_until
from tests.support.sim import Simulator, simulator

ASKED = {"prompt": "x", "max_tokens": 8}
LONG = {"prompt": "y", "max_tokens": 100_000, "ignore_eos": True}


@pytest.fixture
def sim() -> Iterator[Simulator]:
    with simulator("--decode-ms", "1") as sim:
        yield sim


@pytest.fixture
def http(sim: Simulator) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=sim.url, timeout=30, trust_env=False) as http:
        yield http


def text(http: httpx.Client, body: dict[str, Any] = ASKED) -> str:
    said: str = http.post("/v1/completions", json=body).json()["choices"][0]["text"]
    return said


def reload(http: httpx.Client) -> httpx.Response:
    return http.post("/collective_rpc", json={"method": "reload_weights"})


def test_a_request_to_a_sleeping_server_is_answered_when_it_wakes(sim: Simulator, http: httpx.Client):
    said = text(http)
    assert http.post("/sleep?level=1").json() == {"status": "sleeping", "level": 1}
    assert http.get("/is_sleeping").json() == {"is_sleeping": True}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(text, http)
        wait_until(lambda: sim.stats()["engine"]["waiting"] == 1)
        assert http.post("/wake_up").json() == {"status": "awake", "tags": None}
        assert asked.result(30) == said
    assert http.get("/is_sleeping").json() == {"is_sleeping": False}


def test_after_level_two_the_answers_are_wrong_until_the_weights_are_loaded_again(http: httpx.Client):
    said = text(http)
    http.post("/sleep?level=2")
    http.post("/wake_up")
    assert text(http) == "!" * 8
    reload(http)
    assert text(http) == said


def test_a_server_woken_in_parts_runs_nothing_before_the_last_one(sim: Simulator, http: httpx.Client):
    said = text(http)
    http.post("/sleep?level=2")
    assert reload(http).status_code == 500  # to memory that is not there
    assert http.post("/wake_up?tags=weights").json() == {"status": "sleeping", "tags": ["weights"]}
    assert http.post("/wake_up?tags=weights").status_code == 200  # it only logs that this makes no sense
    assert reload(http).status_code == 200
    assert http.get("/is_sleeping").json() == {"is_sleeping": True}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(text, http)
        wait_until(lambda: sim.stats()["engine"]["waiting"] == 1)
        assert http.post("/wake_up?tags=kv_cache").json() == {"status": "awake", "tags": ["kv_cache"]}
        assert asked.result(30) == said
    assert sim.stats()["sleep"] | {"waking_s": 0} == {
        "sleeps": 1,
        "wakes": 1,
        "reloads": 1,
        "waking_s": 0,
        "startup_s": 0,
    }


def begun(http: httpx.Client, seen: threading.Event) -> str:
    """The end of a long stream."""
    last = ""
    with http.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as answer:
        for line in answer.iter_lines():
            seen.set()
            if "finish_reason" in line:
                last = line
    return last


def test_by_default_a_sleep_aborts_what_runs(sim: Simulator, http: httpx.Client):
    seen = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(begun, http, seen)
        assert seen.wait(30)
        http.post("/sleep?level=1")
        assert '"finish_reason":"abort"' in stream.result(30)
    assert sim.stats()["engine"]["running"] == 0


def test_a_sleep_that_waits_has_what_runs_come_to_its_end_and_what_waits_stay(
    sim: Simulator, http: httpx.Client
):
    seen = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        stream = pool.submit(begun, http, seen)
        assert seen.wait(30)
        sleep = pool.submit(http.post, "/sleep?level=1&mode=wait")
        wait_until(lambda: sim.stats()["in_flight"] == 2)
        late = pool.submit(text, http)
        wait_until(lambda: sim.stats()["engine"]["waiting"] == 1)
        assert not sleep.done()
        http.post("/sleep?level=0&mode=abort")  # ends the long one
        assert '"finish_reason":"abort"' in stream.result(30)
        assert sleep.result(30).status_code == 200
        http.post("/wake_up")
        assert late.result(30)


def test_a_sleep_of_an_unknown_mode_or_level_is_refused(http: httpx.Client):
    assert http.post("/sleep?level=3").status_code == 400
    assert http.post("/sleep?mode=gently").status_code == 400
    assert http.get("/is_sleeping").json() == {"is_sleeping": False}


def test_without_the_development_mode_there_is_no_sleep():
    with simulator("--no-dev-mode") as sim, httpx.Client(base_url=sim.url, trust_env=False) as http:
        assert http.post("/sleep").status_code == 404
        assert http.post("/wake_up").status_code == 404
        assert http.get("/is_sleeping").status_code == 404
        assert reload(http).status_code == 404


@pytest.mark.parametrize("kind", SLEEP_PATHS)
def test_a_fault_of_sleep_strikes_its_own_step_alone(sim: Simulator, http: httpx.Client, kind: str):
    def status(step: str) -> int:
        if step == "reload_fails":
            return reload(http).status_code
        return http.post(SLEEP_PATHS[step]).status_code

    sim.faults({"kind": kind, "count": 1})
    steps = ["reload_fails", "sleep_fails", "wake_fails"]
    assert [status(step) for step in steps] == [500 if step == kind else 200 for step in steps]
    assert sim.stats()["paths"][SLEEP_PATHS[kind]]["outcomes"] == {f"fault:{kind}": 1}


def test_a_wake_may_lie_hang_or_end_the_server(sim: Simulator, http: httpx.Client):
    http.post("/sleep")
    sim.faults({"kind": "wake_fails", "how": "lies"})
    assert http.post("/wake_up").status_code == 200
    assert http.get("/is_sleeping").json() == {"is_sleeping": True}
    sim.faults({"kind": "wake_fails", "how": "hangs"})
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(http.post, "/wake_up")
        wait_until(lambda: sim.stats()["in_flight"] == 1)
        sim.faults({})
        assert asked.result(30).status_code == 500
    sim.faults({"kind": "wake_fails", "how": "dies"})
    with pytest.raises(httpx.RemoteProtocolError):
        http.post("/wake_up")
    assert wait_until(lambda: sim.proc.exit_status()) == -9
