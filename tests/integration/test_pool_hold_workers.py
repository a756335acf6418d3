"""Requests held in two real workers for a pool of a real process, whose start the test lets go on."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ..support.gateway import Gateway, gateway
from ..support.leaks import nothing_left
from ..support.lines import Line, line_to, question
from ..support.procs import console_script, wait_until


class House:
    """The gateway; `let_go` lets the server start."""

    def __init__(self, gate: Gateway, flag: Path) -> None:
        self.gate = gate
        self._flag = flag

    @property
    def waiting(self) -> float:
        return self.gate.metric("penstock_waiting_requests", model="m")

    def workers(self) -> list[int]:
        pids = wait_until(
            lambda: len(self.gate.worker_pids()) == 2 and self.gate.worker_pids(), what="two workers"
        )
        assert pids
        return pids

    def to_both(self, stack: ExitStack) -> list[Line]:
        """A connection to each worker."""
        pids = self.workers()
        return [stack.enter_context(line_to(self.gate.port, pid, pids)) for pid in pids]

    def let_go(self) -> None:
        self._flag.touch()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    flag = tmp_path / "let go"
    server = shlex.join([console_script(), "sim", "--host", "127.0.0.1", "--model", "m", "--port"])
    wait = f"until test -e {shlex.quote(str(flag))}; do sleep 0.02; done; exec {server} $0"
    pool = {"provider": "process", "command": ["/bin/sh", "-c", wait, "{port}"], "gpus": 0}
    config = {
        "workers": {"count": 2},
        "cache": {"mode": "all"},
        "models": {"m": {"pool": pool}},
    }
    with gateway(config) as gate:
        yield House(gate, flag)


def test_a_follower_in_another_worker_waits_as_long_and_survives_its_leader(house: House) -> None:
    with ExitStack() as stack:
        leader, follower = house.to_both(stack)
        leader.put(question())
        wait_until(lambda: house.waiting == 1, what="demand")
        follower.put(question())
        other = stack.enter_context(Line(house.gate.port)).put(question("another"))
        wait_until(lambda: house.waiting == 2, what="as much demand as there are calls")
        leader.socket.close()
        house.let_go()
        answers = [line.receive() for line in (follower, other)]
    assert [(a.status, a.cache) for a in answers] == [(200, "COALESCED"), (200, "MISS")]
    assert all(answer.header("x-penstock-wake-ms") for answer in answers)
    assert house.gate.metric("penstock_pool_waits_total", model="m", outcome="released") == 2
    nothing_left(house.gate)


def test_a_worker_that_is_killed_takes_its_demand_along(house: House) -> None:
    with ExitStack() as stack:
        lost, kept = house.to_both(stack)
        lost.put(question("lost"))
        kept.put(question("kept"))
        wait_until(lambda: house.waiting == 2, what="demand")
        os.kill(house.workers()[0], signal.SIGKILL)
        wait_until(lambda: house.waiting == 1, what="the other's demand")
        house.let_go()
        assert kept.receive().status == 200
    nothing_left(house.gate)


def test_who_waits_is_told_at_once_when_nobody_is_left_to_wake_a_server(house: House) -> None:
    """Not when the drain ends."""
    with ExitStack() as stack:
        lines = [line.put(question(number)) for number, line in enumerate(house.to_both(stack))]
        wait_until(lambda: house.waiting == 2, what="demand")
        os.kill(house.gate.pid, signal.SIGKILL)
        answers = [line.receive() for line in lines]
    assert [(a.status, a.code) for a in answers] == [(503, "draining")] * 2
    wait_until(lambda: house.gate.log().count("worker_left inflight=0") == 2, what="both workers have left")
    assert "drain_cuts" not in house.gate.log()


def test_a_reload_while_they_wait_loses_nobody(house: House) -> None:
    with ExitStack() as stack:
        lines = [line.put(question(number)) for number, line in enumerate(house.to_both(stack))]
        wait_until(lambda: house.waiting == 2, what="demand")
        config = house.gate.config
        config["models"]["m"]["max_concurrent"] = 3
        house.gate.write(config)
        house.gate.reload()
        wait_until(lambda: house.gate.log().count("configuration_loaded") >= 2, what="both workers have it")
        assert house.waiting == 2
        house.let_go()
        assert [line.receive().status for line in lines] == [200, 200]
    nothing_left(house.gate)
