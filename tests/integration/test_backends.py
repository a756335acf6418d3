"""`/gateway/backends` and `penstock backends`: what is said of each server, and taking one out of service."""

import contextlib
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from ..support.gateway import Gateway, gateway
from ..support.procs import console_script, run, wait_until
from ..support.sim import Simulator, simulator

KEY = {"authorization": "Bearer s3cret"}
CHAT = "/v1/chat/completions"


@dataclass
class Site:
    """A gateway of two workers before two servers."""

    gate: Gateway
    one: Simulator
    two: Simulator

    def ask(self) -> str:
        """One question; which server answered."""
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
        answer = httpx.post(self.gate.url + CHAT, json=body, trust_env=False, timeout=30)
        answer.raise_for_status()
        return answer.headers["x-penstock-backend"]

    def asked(self, count: int) -> Counter[str]:
        return Counter(self.ask() for _ in range(count))

    def backends(self) -> dict[str, dict[str, Any]]:
        answer = httpx.get(f"{self.gate.admin_url}/gateway/backends", headers=KEY, trust_env=False)
        answer.raise_for_status()
        return {one["backend"]: one for one in answer.json()["backends"]}

    def post(self, verb: str, body: object, url: str | None = None) -> httpx.Response:
        base = f"{url or self.gate.admin_url}/gateway/backends/{verb}"
        return httpx.post(base, headers=KEY, json=body, trust_env=False)

    @contextlib.contextmanager
    def drained(self, sim: Simulator) -> Iterator[None]:
        assert self.post("drain", {"backend": name(sim)}).json()["backends"][0]["drained"] is True
        wait_until(lambda: set(self.asked(20)) == {name(self.other(sim))}, what="the drain at every worker")
        try:
            yield
        finally:
            self.post("undrain", {"backend": name(sim)})
            wait_until(lambda: len(self.asked(8)) == 2, what="both in service")

    def other(self, sim: Simulator) -> Simulator:
        return self.two if sim is self.one else self.one


def name(sim: Simulator) -> str:
    return f"127.0.0.1:{sim.port}"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with simulator(model="m", decode_ms=5) as one, simulator(model="m", decode_ms=5) as two:
        config = {
            "models": {
                "m": {
                    "aliases": ["also-m"],
                    "backends": [{"url": one.url, "weight": 2, "zone": "a"}, {"url": two.url, "weight": 2}],
                }
            },
            "health": {"interval_s": 0.1, "slow_start_s": 0},
            "admin": {"key_env": "TEST_ADMIN_KEY", "on_api_port": True},
            "workers": {"count": 2},
        }
        with gateway(config, env={"TEST_ADMIN_KEY": "s3cret"}) as gate:
            yield Site(gate, one, two)


def test_every_backend_is_told_of(site: Site) -> None:
    wait_until(
        lambda: all(one["reported_age_s"] is not None for one in site.backends().values()),
        what="both servers' own words",
    )
    found = site.backends()
    assert list(found) == [name(site.one), name(site.two)]
    first = found[name(site.one)]
    assert {key: first[key] for key in ("model", "url", "zone", "priority", "weight", "ramp")} == {
        "model": "m",
        "url": site.one.url,
        "zone": "a",
        "priority": 0,
        "weight": 2.0,
        "ramp": 1.0,
    }
    assert (first["health"], first["drained"], first["inflight"], first["waiting"]) == ("up", False, 0, 0)
    assert site.gate.controller_pid() is not None


def test_the_servers_own_metrics_are_beside_the_gateways(site: Site) -> None:
    key = "vllm:num_requests_waiting"
    page = wait_until(
        lambda: (
            (found := httpx.get(f"{site.gate.admin_url}/metrics", headers=KEY, trust_env=False).text).count(
                f"\n{key}{{"
            )
            == 2
            and found
        ),
        what="both servers' families",
    )
    for sim in (site.one, site.two):
        assert f'\n{key}{{backend="{name(sim)}",' in page
    assert "\npenstock_worker_up{" in page


def test_a_drained_backend_finishes_what_it_has_and_gets_nothing_new(site: Site) -> None:
    for sim in (site.one, site.two):
        sim.faults({"faults": [{"kind": "hang", "path": CHAT, "count": 1}]})
    got: list[str] = []
    asking = threading.Thread(target=lambda: got.append(site.ask()))
    asking.start()
    (held,) = wait_until(
        lambda: [known for known, one in site.backends().items() if one["inflight"]], what="one under way"
    )
    busy = site.one if held == name(site.one) else site.two
    site.other(busy).faults({})
    with site.drained(busy):
        assert site.asked(20) == {name(site.other(busy)): 20}
        assert got == []
        assert site.backends()[held]["inflight"] == 1
        busy.faults({})
        asking.join(30)
        assert got == [held]
        assert (site.backends()[held]["inflight"], site.backends()[held]["health"]) == (0, "up")


def test_a_drain_outlives_the_controller_and_a_reload(site: Site) -> None:
    with site.drained(site.one):
        before = site.backends()[name(site.one)]["since_s"]
        old = site.gate.controller_pid()
        assert old is not None
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: site.gate.controller_pid() not in (None, old), what="another controller")

        def told() -> dict[str, Any] | None:
            with contextlib.suppress(httpx.TransportError):
                return site.backends()[name(site.one)]
            return None

        found = wait_until(told, what="its answer")
        page = httpx.get(f"{site.gate.admin_url}/metrics", headers=KEY, trust_env=False).text
        assert f'\npenstock_backend_drained{{backend="{name(site.one)}",model="m"}} 1.0\n' in page
        assert found["drained"] is True
        assert found["since_s"] > before
        site.gate.write({**site.gate.config, "log": {"level": "WARNING"}})
        site.gate.reload()
        wait_until(lambda: _status(site.gate)["generation"] == 2, what="the reload")
        assert _status(site.gate)["models"]["m"]["backends"][0]["drained"] is True
        assert site.asked(10) == {name(site.two): 10}


def _status(gate: Gateway) -> dict[str, Any]:
    answer = httpx.get(f"{gate.admin_url}/gateway/status", headers=KEY, trust_env=False)
    said: dict[str, Any] = answer.json()
    return said


def test_a_model_of_which_every_backend_is_drained_answers_503(site: Site) -> None:
    with site.drained(site.one):
        site.post("drain", {"backend": site.two.url + "/", "model": "also-m"})
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}

        def ready() -> list[bool]:
            return [site.gate.is_up("/ready") for _ in range(20)]

        try:
            wait_until(lambda: not any(ready()), what="not ready")
            answer = httpx.post(site.gate.url + CHAT, json=body, trust_env=False)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_healthy_backend")
        finally:
            site.post("undrain", {"backend": name(site.two)})
            wait_until(lambda: all(ready()), what="ready")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"backend": "127.0.0.1:1"}, 404, "backend_not_found"),
        ({"backend": "x", "model": "nobody"}, 404, "model_not_found"),
        ({}, 400, "invalid_request"),
        ({"backend": "x", "force": True}, 400, "invalid_request"),
        (["x"], 400, "invalid_request"),
    ],
)
def test_what_cannot_be_drained_is_refused_in_the_envelope(
    site: Site, body: object, status: int, code: str
) -> None:
    answer = site.post("drain", body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_a_drain_wants_json_the_key_and_post(site: Site) -> None:
    url = f"{site.gate.admin_url}/gateway/backends/drain"
    plain = {**KEY, "content-type": "text/plain"}
    body = '{"backend": "x"}'
    assert httpx.post(url, headers=plain, content=body, trust_env=False).status_code == 415
    assert httpx.post(url, json={"backend": "x"}, trust_env=False).status_code == 401
    assert httpx.get(url, headers=KEY, trust_env=False).status_code == 405


def test_the_api_port_serves_them_too(site: Site) -> None:
    answer = httpx.get(f"{site.gate.url}/gateway/backends", headers=KEY, trust_env=False)
    assert len(answer.json()["backends"]) == 2
    assert httpx.get(f"{site.gate.url}/gateway/backends", trust_env=False).status_code == 401
    assert site.post("drain", {"backend": "x"}, site.gate.url).status_code == 404


def test_the_command_line_lists_drains_and_takes_back(site: Site) -> None:
    def penstock(*words: str) -> tuple[int, str]:
        return run([console_script(), "backends", *words])

    which = ("--port", str(site.gate.port))
    status, said = penstock(*which)
    assert status == 0, said
    assert said.split("\n", 1)[0].split() == [
        *("model", "backend", "zone", "tier", "health", "in", "flight", "waiting", "kv", "weight")
    ]
    assert penstock("list", *which)[1].count("127.0.0.1:") == 2
    assert penstock("drain", name(site.one), *which) == (
        0,
        f"m: {name(site.one)} is drained; 0 in flight\n",
    )
    assert f"{name(site.one)}  a     0     up, drained" in penstock(*which, "list")[1]
    status, said = penstock("undrain", name(site.one), "--model", "also-m", *which)
    assert (status, said) == (0, f"m: {name(site.one)} gets requests again\n")
    status, said = penstock("drain", "nobody:1", *which)
    assert (status, said) == (2, "penstock: there is no backend 'nobody:1'\n")
    assert '"backends":[' in penstock("--json", *which)[1]
