"""A pool of processes behind the real gateway: from zero to an answer and to zero again, and all that goes wrong."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.gateway import Gateway, gateway
from tests.support.pool_gateway import (
    ask,
    gone,
    lingering,
    phases,
    pool,
    pooled,
    records,
    servers,
    simulator,
    tell,
    wait_phase,
)
from tests.support.pool_kills import controller_killed_in
from tests.support.procs import is_running, wait_until


def _in_background(work: ThreadPoolExecutor, g: Gateway, count: int = 1) -> list:  # type: ignore[type-arg]
    return [work.submit(ask, g) for _ in range(count)]


def test_from_zero_to_an_answer_and_to_zero_again() -> None:
    with gateway(pooled(idle_timeout_s=0.5)) as g:
        wait_phase(g, "off")
        assert servers(g) == []
        first = ask(g)
        assert (first.status_code, "x-penstock-wake-ms" in first.headers) == (200, True)
        assert len(servers(g)) == 1
        wait_phase(g, "off")
        wait_until(lambda: not servers(g))
        assert records(g) == []
        assert ask(g).status_code == 200
        wait_until(lambda: phases(g)[-1] == "off" and phases(g).count("ready") == 2)
        assert phases(g) == ["off", *(["starting", "ready", "draining", "stopping", "off"] * 2)]
        assert g.metric("penstock_pool_starts_total", model="m", outcome="ready") == 2
        assert g.metric("penstock_pool_stops_total", model="m") == 2
        assert g.metric("penstock_pool_phase", model="m", phase="off") == 1


def test_many_at_once_are_one_start() -> None:
    with gateway(pooled(), env={}) as g, ThreadPoolExecutor(16) as work:
        assert [one.result().status_code for one in _in_background(work, g, 16)] == [200] * 16
        assert phases(g).count("starting") == 1
        assert len(records(g)) == 1


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (
            ["/bin/sh", "-c", "echo no weights here >&2; exit 3", "{port}"],
            "ended with status 3 before it was ready: no weights",
        ),
        (["/no/such/program", "{port}"], "cannot run /no/such/program"),
        (["/bin/sh", "-c", "exec sleep 600", "{port}"], "did not answer /health within 1 s"),
    ],
    ids=["exits", "missing", "never-healthy"],
)
def test_a_start_that_fails_is_503_with_the_reason_and_backs_off(command: list[str], says: str) -> None:
    with gateway(pooled(command, ready_timeout_s=1)) as g:
        first = ask(g)
        if "exec sleep 600" in command and first.status_code == 504:
            pass  # its own deadline is the same second
        else:
            assert first.status_code == 503
            assert says in first.json()["error"]["message"]
            assert int(first.headers["retry-after"]) >= 1
        wait_until(lambda: "failed" in phases(g))
        again = ask(g)
        assert again.status_code == 503
        assert says in again.json()["error"]["message"]
        starts = phases(g).count("starting")
        assert starts == 1  # it was answered without another try
        wait_phase(g, "off")
        assert servers(g) == []
        assert ask(g).status_code in (503, 504)
        assert phases(g).count("starting") == 2


def test_a_ready_server_that_is_killed_under_load_is_started_again_and_who_waits_is_answered() -> None:
    with gateway(pooled()) as g, ThreadPoolExecutor(8) as work:
        assert ask(g).status_code == 200
        victim = records(g)[0]["pid"]
        over = threading.Event()

        def keep_asking() -> list[int]:
            got = []
            while not over.is_set():
                got.append(ask(g).status_code)
            return got

        asking = [work.submit(keep_asking) for _ in range(4)]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: phases(g).count("ready") == 2)
        over.set()
        got = [status for one in asking for status in one.result()]
        # what was in flight with the server when it died is lost, and nothing else
        assert got.count(200) >= len(got) - 4
        assert set(got) <= {200, 502}
        assert ask(g).status_code == 200
        assert records(g)[0]["pid"] != victim
        assert g.metric("penstock_pool_deaths_total", model="m") == 1


def test_a_server_that_hangs_is_taken_out_so_that_requests_wait_and_serves_them_when_it_answers() -> None:
    with gateway(pooled() | {"log": {"level": "DEBUG"}}) as g, ThreadPoolExecutor(2) as work:
        assert ask(g).status_code == 200
        hung = records(g)[0]["pid"]
        os.kill(hung, signal.SIGSTOP)
        wait_until(lambda: "pool_server_silent" in g.log())
        wait_until(lambda: "backend_down" in g.log())  # the worker knows
        waiting = _in_background(work, g)[0]
        wait_until(lambda: pool(g)["waiting"] == 1)
        os.kill(hung, signal.SIGCONT)
        assert waiting.result().status_code == 200
        assert records(g)[0]["pid"] == hung


def test_a_request_that_comes_while_the_server_is_stopped_is_served() -> None:
    with gateway(pooled(lingering(linger_s=0.4))) as g:
        assert ask(g).status_code == 200
        tell(g, "stop")
        wait_phase(g, "stopping")
        assert ask(g).status_code == 200
        assert phases(g)[-3:] == ["off", "starting", "ready"] or phases(g)[-1] == "ready"


@pytest.mark.parametrize("phase", ["starting", "ready"])
def test_the_successor_of_a_controller_that_is_killed_serves_who_waits_and_leaks_nothing(phase: str) -> None:
    controller_killed_in(phase)


# ---- the gateway is stopped, or killed


def test_a_stop_of_the_gateway_ends_its_servers_after_what_is_in_flight() -> None:
    with gateway(pooled(simulator("--decode-ms", "30"))) as g, ThreadPoolExecutor(1) as work:
        assert ask(g).status_code == 200
        own = servers(g)
        last = work.submit(ask, g, tokens=30)
        wait_until(lambda: pool(g)["running"] == 1)
        assert g.proc.stop() == 0
        assert last.result().status_code == 200
        gone(*own)
        assert records(g) == []


@pytest.mark.parametrize("how", ["kept", "killed"])
def test_the_next_start_takes_over_what_runs(how: str) -> None:
    with gateway(pooled(keep=how == "kept", idle_timeout_s=1)) as g:
        assert ask(g).status_code == 200
        pid = records(g)[0]["pid"]
        if how == "kept":
            assert g.proc.stop() == 0
        else:
            controller = g.controller_pid()
            assert controller is not None
            os.kill(g.pid, signal.SIGKILL)
            g.proc.wait()
            gone(controller)
        assert is_running(pid)
        g.proc.start()
        assert ask(g).status_code == 200
        assert [one["pid"] for one in records(g)] == [pid]
        wait_phase(g, "off")
        assert not is_running(pid)


# ---- another configuration


def test_models_with_pools_come_and_go_with_a_reload() -> None:
    with gateway(pooled()) as g:
        assert ask(g).status_code == 200
        own = servers(g)
        config = {"models": {"n": pooled(name="n")["models"]["n"]}}
        g.write({**g.config, **config})
        g.reload()
        wait_until(lambda: "pool_retired pool=m" in g.log())
        gone(*own)
        assert ask(g, "n").status_code == 200
        assert ask(g, "m").status_code == 404


def test_a_server_of_the_pool_does_not_get_the_gateways_secrets() -> None:
    config = pooled(api_key_env="POOL_KEY")
    config["models"]["other"] = {"backends": [{"url": "http://127.0.0.1:9", "api_key_env": "OTHER_KEY"}]}
    config["models"]["m"]["pool"]["command"] = simulator("--api-key", "open")
    with gateway(config, env={"POOL_KEY": "open", "OTHER_KEY": "shut"}) as g:
        assert ask(g).status_code == 200  # the key is sent to it
        environ = Path(f"/proc/{records(g)[0]['pid']}/environ").read_bytes()
        assert b"OTHER_KEY" not in environ
        assert b"VLLM_API_KEY=open" in environ
