"""A fleet that follows DNS: records change, and the requests go elsewhere, without a restart."""

import contextlib
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ..support.gateway import Gateway, gateway
from ..support.names import NameServer, name_server
from ..support.procs import free_port, wait_until
from ..support.sim import Simulator, simulator

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def pod() -> Iterator[Simulator]:
    """One of two servers on one port of two addresses, as the pods of a Service are; the other is at 127.0.0.2."""
    number = free_port()
    with (
        simulator(model="m", canned=True, port=number) as one,
        simulator("--host", "127.0.0.2", model="m", canned=True, port=number),
    ):
        yield one


@pytest.fixture
def names() -> Iterator[NameServer]:
    with name_server() as server:
        yield server


def _config(names: NameServer, url: str, discover: str = "dns", **model: Any) -> dict[str, Any]:
    return {
        "models": {"m": {"backends": [{"url": url, "discover": discover}], **model}},
        "health": {"interval_s": 0.1, "slow_start_s": 0},
        "discovery": {"refresh_s": 0.1, "nameservers": [names.address]},
    }


def _ask(gate: Gateway) -> httpx.Response:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    return httpx.post(gate.url + CHAT, json=body, trust_env=False, timeout=30)


def _asked(gate: Gateway, count: int = 8) -> set[str]:
    answers = [_ask(gate) for _ in range(count)]
    statuses = Counter(answer.status_code for answer in answers)
    return {answer.headers["x-penstock-backend"] for answer in answers} if statuses == {200: count} else set()


def _goes_to(gate: Gateway, *servers: str) -> None:
    wait_until(lambda: _asked(gate) == set(servers), what=f"requests at {servers}")


def _a_round(names: NameServer) -> None:
    """Wait until every name has been asked for twice from now on, so that one round was whole."""
    seen = names.asked.total()
    wait_until(lambda: names.asked.total() >= seen + 5, what="look-ups")


def test_the_fleet_follows_the_addresses_of_a_name(pod: Simulator, names: NameServer) -> None:
    port = pod.port
    one, two = f"127.0.0.1:{port}", f"127.0.0.2:{port}"
    with gateway(_config(names, f"http://vllm.test:{port}")) as gate:
        # nothing found yet: known, and not to be had
        answer = _ask(gate)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_healthy_backend")
        models = httpx.get(f"{gate.url}/v1/models", trust_env=False).json()["data"]
        assert [(card["id"], card["state"]) for card in models] == [("m", "down")]
        assert not gate.is_up("/ready")
        pids = gate.worker_pids()

        names.records = {("vllm.test.", "A"): ["127.0.0.1"]}
        _goes_to(gate, one)
        assert gate.is_up("/ready")

        # what is in flight with a server that leaves is finished
        pod.faults({"faults": [{"kind": "hang", "path": CHAT, "count": 1}]})
        got: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: got.append(_ask(gate)))
        asking.start()
        wait_until(lambda: _status(gate)["models"]["m"]["backends"][0]["inflight"] == 1, what="under way")
        names.records = {("vllm.test.", "A"): ["127.0.0.2"]}
        _goes_to(gate, two)
        assert got == []
        pod.faults({})
        asking.join(30)
        assert [(a.status_code, a.headers["x-penstock-backend"]) for a in got] == [(200, one)]

        names.records = {("vllm.test.", "A"): ["127.0.0.1", "127.0.0.2"]}
        _goes_to(gate, one, two)
        names.records = {("vllm.test.", "A"): ["127.0.0.2"]}
        _goes_to(gate, two)

        # no answer, and the answer that there is nothing, are not believed at once
        names.broken = True
        _a_round(names)
        assert _asked(gate) == {two}
        names.broken, names.records = False, {}
        _a_round(names)
        assert _asked(gate) == {two}

        # neither a reload nor another controller forgets what was found
        names.broken = True
        gate.write(_config(names, f"http://vllm.test:{port}", max_queue=7))
        gate.reload()
        wait_until(lambda: _status(gate)["models"]["m"]["max_queue"] == 7, what="the reload")
        assert _asked(gate) == {two}
        old = gate.controller_pid()
        assert old is not None
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: gate.controller_pid() not in (None, old), what="another controller")
        _a_round(names)
        assert [one["url"] for one in _status(gate)["models"]["m"]["backends"]] == [f"http://{two}"]
        assert _asked(gate) == {two}
        names.broken, names.records = False, {("vllm.test.", "A"): ["127.0.0.1"]}
        _goes_to(gate, one)
        assert gate.worker_pids() == pids


def _status(gate: Gateway) -> dict[str, Any]:
    def told() -> dict[str, Any] | None:
        with contextlib.suppress(httpx.TransportError):
            said: dict[str, Any] = httpx.get(f"{gate.admin_url}/gateway/status", trust_env=False).json()
            return said
        return None

    return wait_until(told, what="the status") or {}


def test_srv_records_say_ports_and_tiers(pod: Simulator, names: NameServer) -> None:
    port = pod.port
    with simulator(model="m") as other, gateway(_config(names, "http://_http._tcp.vllm.test", "srv")) as gate:
        names.records = {
            ("_http._tcp.vllm.test.", "SRV"): [f"10 1 {port} a.test.", f"20 1 {other.port} b.test."],
            ("a.test.", "A"): ["127.0.0.2"],
            ("b.test.", "A"): ["127.0.0.1"],
        }
        _goes_to(gate, f"127.0.0.2:{port}")
        backends = httpx.get(f"{gate.admin_url}/gateway/backends", trust_env=False).json()["backends"]
        assert [(one["backend"], one["priority"]) for one in backends] == [
            (f"127.0.0.2:{port}", 0),
            (f"127.0.0.1:{other.port}", 1),
        ]
        names.records[("_http._tcp.vllm.test.", "SRV")] = [f"20 1 {other.port} b.test."]
        _goes_to(gate, f"127.0.0.1:{other.port}")
