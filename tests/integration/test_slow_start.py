"""What the controller knows reaches the choice: slow starts, and what servers say of themselves."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from penstock.cache.table import UP, BackendState, BackendTable
from penstock.workers import store

from ..support.dataplane import DataPlane, data_plane
from ..support.gateway import Gateway, gateway
from ..support.procs import wait_until
from ..support.sim import Simulator, simulator

CHAT = "/v1/chat/completions"
HOUR_S = 3600


@pytest.fixture(scope="module")
def sims() -> Iterator[tuple[Simulator, Simulator]]:
    with simulator(model="m", canned=True) as one, simulator(model="m", max_seqs=1, decode_ms=5) as two:
        yield one, two


def _name(sim: Simulator) -> str:
    return f"127.0.0.1:{sim.port}"


def _config(sims: tuple[Simulator, Simulator], policy: str, **health: object) -> dict[str, object]:
    backends = [{"url": sim.url} for sim in sims]
    return {
        "models": {"m": {"backends": backends, "policy": policy}},
        "health": {"interval_s": 0.1, "slow_start_s": HOUR_S, **health},
    }


def _asked(url: str, count: int, client: httpx.Client) -> Counter[str]:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    found: Counter[str] = Counter()
    for _ in range(count):
        answer = client.post(url + CHAT, json=body)
        answer.raise_for_status()
        found[answer.headers["x-penstock-backend"]] += 1
    return found


def _row(plane: DataPlane, number: int, **fields: int) -> None:
    """Say something of a backend as the controller would, and have it read."""
    backend = plane.worker.fleet.backends[number]
    row = BackendState(health=UP, identity=store.identity(backend.identity), **fields)
    BackendTable(plane.segment).write(backend.index, row)
    backend.since_s = float("-inf")  # time as a test has it may go back
    plane.call(lambda: plane.worker.swap(plane.published))


def test_the_share_of_a_backend_that_came_up_rises_to_what_is_its_own(
    sims: tuple[Simulator, Simulator],
) -> None:
    with data_plane(_config(sims, "weighted_round_robin")) as plane, httpx.Client(timeout=30) as client:
        old, new = map(_name, sims)
        url = f"http://127.0.0.1:{plane.port}"
        _row(plane, 0)
        shares = []
        for age_s in (0, HOUR_S // 2, HOUR_S):
            _row(plane, 1, since_ns=time.monotonic_ns() - age_s * 10**9)
            found = _asked(url, 44, client)
            assert found[old] + found[new] == 44
            shares.append(found[new])
        # 0.1, 0.55 and 1 against 1
        assert [abs(got - want) <= 1 for got, want in zip(shares, (4, 16, 22), strict=True)] == [True] * 3, (
            shares
        )


def test_backends_that_came_up_together_are_not_held_back(sims: tuple[Simulator, Simulator]) -> None:
    with data_plane(_config(sims, "least_connections")) as plane, httpx.Client(timeout=30) as client:
        now_ns = time.monotonic_ns()
        for number in range(2):
            _row(plane, number, since_ns=now_ns)
        found = _asked(f"http://127.0.0.1:{plane.port}", 20, client)
        assert found == {_name(sim): 10 for sim in sims}


def test_what_waits_in_a_server_counts_as_long_as_it_was_said_lately(
    sims: tuple[Simulator, Simulator],
) -> None:
    with (
        data_plane(_config(sims, "least_connections", interval_s=HOUR_S)) as plane,
        httpx.Client(timeout=30) as client,
    ):
        url, now_ns = f"http://127.0.0.1:{plane.port}", time.monotonic_ns()
        _row(plane, 1, waiting=9, updated_ns=now_ns)
        assert _asked(url, 10, client) == {_name(sims[0]): 10}
        _row(plane, 1, waiting=9, updated_ns=now_ns - 4 * HOUR_S * 10**9)
        assert len(_asked(url, 10, client)) == 2


def test_a_backend_that_recovers_begins_anew_and_the_others_do_not(sims: tuple[Simulator, Simulator]) -> None:
    one, two = map(_name, sims)
    with gateway(_config(sims, "least_connections", fall=1)) as gate:
        wait_until(lambda: _known(gate)[two]["health"] == "up", what="up")
        assert _known(gate)[one]["since_s"] == pytest.approx(_known(gate)[two]["since_s"], rel=0.5)
        sims[1].faults({"faults": [{"kind": "status", "path": "/health"}]})
        wait_until(lambda: _known(gate)[two]["health"] == "down", what="down")
        at_most = _known(gate)[two]["since_s"]
        sims[1].reset()
        wait_until(lambda: _known(gate)[two]["health"] == "up", what="up again")
        known = _known(gate)
        assert known[two]["since_s"] < at_most < known[one]["since_s"]
        assert 0.1 <= known[two]["ramp"] <= known[one]["ramp"] < 1


def test_a_server_that_others_keep_busy_is_left_alone(sims: tuple[Simulator, Simulator]) -> None:
    one, two = sims
    stop = threading.Event()
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 20,
        "ignore_eos": True,
    }

    def occupy() -> None:
        with httpx.Client(timeout=60) as client:
            while not stop.is_set():
                client.post(two.url + CHAT, json=body)

    config = _config(sims, "least_connections", slow_start_s=0)
    with gateway(config) as gate, httpx.Client(timeout=60) as client:
        assert len(_asked(gate.url, 10, client)) == 2
        busy = [threading.Thread(target=occupy) for _ in range(3)]
        try:
            for thread in busy:
                thread.start()
            wait_until(lambda: _known(gate)[_name(two)]["waiting"] >= 1, what="somebody waits there")
            wait_until(
                lambda: set(_asked(gate.url, 2, client)) == {_name(one)}, what="the hint at the worker"
            )
            assert _asked(gate.url, 20, client) == {_name(one): 20}
        finally:
            stop.set()
            for thread in busy:
                thread.join(30)


def _known(gate: Gateway) -> dict[str, dict[str, Any]]:
    backends = httpx.get(f"{gate.admin_url}/gateway/backends", trust_env=False).json()["backends"]
    return {one["backend"]: one for one in backends}
