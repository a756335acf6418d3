"""Breakers over a whole gateway of two workers: what opens one, what does not, the one probe, and the way back."""

import math
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import msgspec
import pytest

from ..support.dataplane import data_plane
from ..support.gateway import Gateway, gateway
from ..support.procs import wait_until
from ..support.scripted import Peer, scripted
from ..support.sim import Simulator, simulator
from ..support.wire import Wire

CHAT = "/v1/chat/completions"
LIMIT = 5
HOUR_S = 3600

#: fault of the simulator, the status that its client sees
BROKEN: dict[str, tuple[dict[str, Any], int]] = {
    "refuses": ({"kind": "refuse", "seconds": HOUR_S}, 502),
    "resets": ({"kind": "reset_before_headers"}, 502),
    "hangs": ({"kind": "hang"}, 504),
    "500": ({"kind": "status", "status": 500}, 500),
    "502": ({"kind": "status", "status": 502}, 502),
    "503": ({"kind": "status", "status": 503}, 503),
    "breaks off": ({"kind": "cut_mid_stream", "how": "rst"}, 502),
}
#: a model of its own each, so that one gateway does for all
NAMES = [*BROKEN, "well"]


def _body(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, **more}


#: on a connection of its own each time, so that either worker may get it
_CLIENT = httpx.Client(timeout=30, trust_env=False, verify=False, headers={"connection": "close"})


def _ask(gate: Gateway, model: str, **more: Any) -> httpx.Response:
    return _CLIENT.post(gate.url + CHAT, json=_body(model, **more))


def _asked(sim: Simulator) -> int:
    return int(sim.stats()["paths"].get(CHAT, {}).get("total", 0))


def _is_open(gate: Gateway, model: str) -> bool:
    return gate.metric("penstock_backend_breaker_open", model=model) == 1


def _refused(answer: httpx.Response) -> bool:
    """Whether it says that no backend is healthy."""
    return answer.status_code == 503 and answer.json()["error"].get("code") == "no_healthy_backend"


def _all_refused(gate: Gateway, model: str, count: int = 12) -> bool:
    return all(_refused(_ask(gate, model)) for _ in range(count))


def _config(sims: dict[str, list[Simulator]], open_s: float) -> dict[str, Any]:
    models = {
        name: {
            "backends": [{"url": sim.url} for sim in servers],
            "timeouts": {"first_byte_s": 0.3},
            "policy": "weighted_round_robin",
        }
        for name, servers in sims.items()
    }
    return {
        "models": models,
        "breaker": {"failures": LIMIT, "open_s": open_s},
        "health": {"interval_s": HOUR_S, "slow_start_s": 4},  # after the first probe they have no say
        "workers": {"count": 2},
    }


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with simulator(model="m") as made:
        yield made


@pytest.fixture(autouse=True)
def _no_faults(sim: Simulator) -> Iterator[None]:
    yield
    if sim.proc.exit_status() is None:
        sim.reset()


@pytest.fixture(scope="module")
def site(sim: Simulator) -> Iterator[Gateway]:
    """A breaker that has opened stays so here."""
    with simulator() as refusing:
        servers = {name: [refusing if name == "refuses" else sim] for name in NAMES}
        with gateway(_config(servers, HOUR_S)) as gate:
            refusing.faults(BROKEN["refuses"][0])
            yield gate


@pytest.mark.parametrize("how", BROKEN)
def test_failures_in_a_row_on_either_worker_open_it_and_nothing_more_goes_there(
    site: Gateway, sim: Simulator, how: str
) -> None:
    fault, status = BROKEN[how]
    if how != "refuses":
        sim.faults(fault)
    for count in range(LIMIT):
        assert count + 1 < LIMIT or not _is_open(site, how)
        if how == "breaks off":
            assert b'"error"' in _ask(site, how, stream=True).content
        else:
            assert _ask(site, how).status_code == status
    assert _is_open(site, how)
    if how.isdigit():  # a bad answer is a fault of its backend's that can be seen
        assert site.metric("penstock_upstream_faults_total", model=how, kind=how) == LIMIT
    # one more may go there where the word is late
    wait_until(lambda: _all_refused(site, how), what="the word at both workers")
    before = _asked(sim) if how != "refuses" else 0
    faults = site.metric("penstock_upstream_faults_total", model=how)
    assert _all_refused(site, how, 20)
    assert site.metric("penstock_upstream_faults_total", model=how) == faults
    if how != "refuses":
        assert _asked(sim) == before
    answer = _ask(site, how)
    wait_ms = int(answer.headers["retry-after-ms"])
    assert (HOUR_S - 120) * 1000 < wait_ms <= HOUR_S * 1000
    assert int(answer.headers["retry-after"]) == math.ceil(wait_ms / 1000)
    assert answer.headers["x-should-retry"] == "false"  # no client waits for an hour
    told = httpx.get(f"{site.admin_url}/gateway/status", trust_env=False).json()
    assert told["models"][how]["backends"][0]["breaker"] == "open"


@pytest.mark.parametrize("status", [400, 404, 422, 429])
def test_what_a_client_did_wrong_never_opens_one(site: Gateway, sim: Simulator, status: int) -> None:
    sim.faults({"kind": "status", "status": status})
    assert {_ask(site, "well").status_code for _ in range(3 * LIMIT)} == {status}
    assert not _is_open(site, "well")


@pytest.mark.parametrize("stream", [False, True], ids=["before the head", "in the stream"])
def test_a_client_that_leaves_never_opens_one(site: Gateway, sim: Simulator, stream: bool) -> None:
    sim.faults({"kind": "hang", "stage": "stream" if stream else "headers", "after": 1})
    before = site.metric("penstock_requests_total", model="well", status="499")
    body = msgspec.json.encode(_body("well", stream=stream))
    wires = [Wire(site.port) for _ in range(2 * LIMIT)]
    for wire in wires:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\n"
        wire.send(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        if stream:
            assert wire.read(1)
    if not stream:
        wait_until(lambda: sim.stats()["in_flight"] == len(wires), what="all under way")
    for wire in wires:
        wire.reset()
    left = before + len(wires)
    wait_until(
        lambda: site.metric("penstock_requests_total", model="well", status="499") == left, what="all left"
    )
    assert not _is_open(site, "well")


def test_one_probe_on_the_node_closes_it_and_its_share_begins_small(sim: Simulator) -> None:
    config = _config({"m": [sim]}, open_s=2)
    with simulator() as other:
        config["models"]["m"] |= {"timeouts": {"first_byte_s": 30}}
        config["models"]["m"]["backends"].append({"url": other.url})
        with gateway(config) as gate:
            _open_it(gate, sim)
            sim.reset()
            sim.faults({"kind": "hang"})
            clients = [httpx.Client(base_url=gate.url, timeout=30, trust_env=False) for _ in range(12)]
            with ThreadPoolExecutor(2 * len(clients)) as threads:
                waiting = []

                def probed() -> bool:
                    waiting.append(threads.submit(_ask, gate, "m"))
                    return int(sim.stats()["in_flight"]) > 0

                wait_until(probed, what="a probe")
                answers = list(threads.map(lambda one: one.post(CHAT, json=_body("m")), clients))
                assert {a.headers["x-penstock-backend"] for a in answers} == {f"127.0.0.1:{other.port}"}
                told = sim.stats()
                assert (told["in_flight"], told["most_in_flight"], _asked(sim)) == (1, 1, 0)
                wait_until(lambda: _ramps(gate)[other.port] == 1, what="the other's slow start is over")
                sim.faults({})
                assert {one.result(30).status_code for one in waiting} == {200}
            wait_until(lambda: not _is_open(gate, "m"), what="closed")
            found = Counter(
                client.post(CHAT, json=_body("m")).headers["x-penstock-backend"] for client in clients * 4
            )
            assert 0 < found[f"127.0.0.1:{sim.port}"] < found.total() / 3, found
            for client in clients:
                client.close()


def _ramps(gate: Gateway) -> dict[int, float]:
    told = _CLIENT.get(f"{gate.admin_url}/gateway/backends").json()["backends"]
    return {int(one["url"].rpartition(":")[2]): one["ramp"] for one in told}


def _open_it(gate: Gateway, sim: Simulator) -> None:
    sim.faults({"kind": "status", "status": 500})
    wait_until(lambda: _ask(gate, "m").status_code and _is_open(gate, "m"), what="open")


def test_a_probe_that_is_lost_is_given_to_another_request(sim: Simulator) -> None:
    with gateway(_config({"m": [sim]}, open_s=0.4)) as gate:
        _open_it(gate, sim)
        sim.reset()
        sim.faults({"kind": "hang"})
        probing = threading.Thread(target=_until_lost, args=(gate,))
        probing.start()
        wait_until(lambda: sim.stats()["in_flight"] == 1, what="a probe under way")
        victims = gate.worker_pids()
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        probing.join(30)
        wait_until(lambda: len(set(gate.worker_pids()) - set(victims)) == 2, what="successors")
        sim.reset()
        gate.wait_up()
        wait_until(lambda: _ask(gate, "m").status_code == 200, what="another probe")
        wait_until(lambda: not _is_open(gate, "m"), what="closed")


def _until_lost(gate: Gateway) -> None:
    """Ask until an answer fails to come."""
    try:
        while True:
            _ask(gate, "m")
    except httpx.TransportError:
        return


def test_an_answer_that_has_begun_closes_it_before_it_ends(sim: Simulator) -> None:
    with gateway(_config({"m": [sim]}, open_s=0.1)) as gate:
        _open_it(gate, sim)
        sim.faults({"kind": "hang", "stage": "stream", "after": 2})
        with httpx.Client(base_url=gate.url, timeout=30, trust_env=False) as client:

            def begins() -> bool:
                with client.stream("POST", CHAT, json=_body("m", stream=True, max_tokens=8)) as answer:
                    if answer.status_code != 200:
                        assert answer.headers["retry-after-ms"].isdecimal()
                        assert "x-should-retry" not in answer.headers
                        return False
                    body = answer.iter_bytes()
                    assert next(body)
                    wait_until(lambda: not _is_open(gate, "m"), what="closed")
                    return sim.stats()["in_flight"] == 1

            wait_until(begins, what="a probe that goes on")


async def test_a_failed_answer_that_breaks_off_counts_once() -> None:
    async def fails(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 500 X\r\ncontent-length: 100000\r\n\r\n" + b"x" * 70_000)
        peer.reset()

    async with scripted(fails) as server:
        config = {
            "models": {"m": {"backends": [{"url": server.url}]}},
            "breaker": {"failures": 3, "open_s": HOUR_S},
        }
        with data_plane(config) as plane:
            url = f"http://127.0.0.1:{plane.port}{CHAT}"
            async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
                statuses = []
                for _ in range(4):
                    try:
                        statuses.append((await client.post(url, json=_body("m"))).status_code)
                    except httpx.RemoteProtocolError:
                        statuses.append(500)
                assert statuses == [500, 500, 500, 503]
                assert server.connections == 3
