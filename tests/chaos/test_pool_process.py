"""Servers of pools, controllers and gateways that die, in every order."""

from __future__ import annotations

import os
import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.gateway import gateway
from tests.support.pool_gateway import (
    ask,
    chat,
    gone,
    kill_controller,
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
from tests.support.procs import children, command_line, is_running, wait_until

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("phase", ["off", "draining", "asleep", "stopping", "failed"])
def test_the_successor_of_a_controller_that_is_killed_serves_who_waits_and_leaks_nothing(phase: str) -> None:
    controller_killed_in(phase)


def test_whatever_dies_and_however_often_who_asks_again_is_served_and_nothing_is_left() -> None:
    random_ = random.Random(5)
    with gateway(pooled(idle_timeout_s=0.3)) as g, ThreadPoolExecutor(4) as work:
        over = threading.Event()

        def keep_asking() -> list[int]:
            got = []
            while not over.is_set():
                got.append(ask(g).status_code)
            return got

        asking = [work.submit(keep_asking) for _ in range(3)]
        for _ in range(12):
            ready = phases(g).count("ready")
            if random_.random() < 0.5:
                kill_controller(g)
            for one in records(g):
                if random_.random() < 0.7 and is_running(one["pid"]):
                    os.kill(one["pid"], signal.SIGKILL)
            wait_until(
                lambda before=ready: phases(g).count("ready") > before or pool(g).get("phase") == "ready"
            )
        over.set()
        got = [status for one in asking for status in one.result()]
        # one that was in flight with a server that is killed is lost
        assert set(got) <= {200, 502}
        assert got.count(502) <= 3 * 12
        assert ask(g).status_code == 200
        wait_phase(g, "off")
        wait_until(lambda: not servers(g))
        assert records(g) == []
        assert all(is_running(pid) for pid in children(g.pid))


def test_a_wake_that_failed_is_tried_again_and_serves() -> None:
    with gateway(pooled(["/bin/sh", "-c", 'test -e "$FLAG" || exit 9; exec ' + " ".join(simulator())])) as g:
        assert ask(g).status_code == 503
        config = g.config
        config["models"]["m"]["pool"]["command"] = simulator()
        g.write(config)
        g.reload()
        wait_until(lambda: "config_published" in g.log())
        wait_phase(g, "off")
        assert ask(g).status_code == 200


def test_a_server_that_dies_unused_is_off_and_started_by_the_next_request() -> None:
    with gateway(pooled()) as g:
        assert ask(g).status_code == 200
        os.kill(records(g)[0]["pid"], signal.SIGKILL)
        wait_phase(g, "off")
        assert ask(g).status_code == 200


def test_a_stream_outlives_the_idle_timeout_and_a_stop_waits_for_its_last_byte() -> None:
    with gateway(pooled(simulator("--decode-ms", "50"), idle_timeout_s=0.3)) as g:
        assert ask(g).status_code == 200
        with httpx.stream(
            "POST",
            f"{g.url}/v1/chat/completions",
            json=chat(tokens=40, stream=True),
            timeout=30,
            trust_env=False,
        ) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data:")
            tell(g, "stop")
            wait_phase(g, "draining")
            rest = list(lines)
        assert rest[-2:] == ["data: [DONE]", ""]
        wait_phase(g, "off")


def test_the_successor_sees_the_end_of_a_server_that_is_not_its_child_and_no_zombie_stays() -> None:
    with gateway(pooled()) as g:
        assert ask(g).status_code == 200
        kill_controller(g)
        wait_until(lambda: "pool_adopts" in g.log())
        victim = records(g)[0]["pid"]
        assert victim in children(g.pid)  # the supervisor's, who reaps it
        os.kill(victim, signal.SIGKILL)
        wait_phase(g, "off")
        wait_until(lambda: victim not in children(g.pid))
        assert all(is_running(pid) for pid in children(g.pid))


def test_a_stop_is_not_held_up_by_a_controller_that_died_meanwhile() -> None:
    with gateway(pooled(lingering(linger_s=30), stop_timeout_s=1)) as g:
        assert ask(g).status_code == 200
        own, controller = servers(g), g.controller_pid()
        assert controller is not None
        g.proc.send(signal.SIGTERM)
        wait_until(lambda: any(one["ending"] for one in records(g)))
        os.kill(controller, signal.SIGKILL)
        assert g.proc.wait() == 0
        assert not any(map(is_running, own))
        assert records(g) == []


def test_a_second_signal_ends_servers_at_once() -> None:
    with gateway(pooled(lingering(linger_s=60), stop_timeout_s=60)) as g:
        assert ask(g).status_code == 200
        own = servers(g)
        g.proc.send(signal.SIGTERM)
        wait_until(lambda: any(one["ending"] for one in records(g)))
        g.proc.send(signal.SIGTERM)
        assert g.proc.wait() == 1
        assert not any(map(is_running, own))


def test_what_is_in_flight_with_a_pool_that_is_removed_finishes() -> None:
    with gateway(pooled(simulator("--decode-ms", "40"))) as g, ThreadPoolExecutor(1) as work:
        assert ask(g).status_code == 200
        last = work.submit(ask, g, tokens=40)
        wait_until(lambda: pool(g)["running"] == 1)
        own = servers(g)
        g.write({**g.config, "models": {"n": pooled(name="n")["models"]["n"]}})
        g.reload()
        wait_until(lambda: "pool_retired pool=m" in g.log())
        assert last.result().status_code == 200
        gone(*own)


def test_another_command_has_servers_start_anew_when_nothing_is_in_flight() -> None:
    with gateway(pooled()) as g:
        assert ask(g).status_code == 200
        before = records(g)[0]["pid"]
        config = g.config
        config["models"]["m"]["pool"]["command"] = simulator("--seed", "5")
        g.write(config)
        g.reload()
        gone(before)
        assert ask(g).status_code == 200
        assert "--seed 5" in command_line(records(g)[0]["pid"])
