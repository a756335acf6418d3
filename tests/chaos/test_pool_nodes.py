"""Two gateways share a `webhook` pool, at the pace that holds in production: leases of 6 s, 30 s of silence."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from ..support.gateway import Gateway
from ..support.pool_gateway import ask, kill_controller, pool, wait_phase
from ..support.procs import wait_until
from ..support.shared_pool import SharedPool, shared_pool

KNOWN_S = 60.0
"""Within so long a node knows that there is no other one that is silent, and more."""
IDLE_S = 3
REMOVED = {"models": {"n": {"backends": [{"url": "http://127.0.0.1:9"}]}}}


@contextmanager
def asking(one: Gateway) -> Iterator[list[int]]:
    """Requests through one gateway, one after the other; the statuses that came."""
    came: list[int] = []
    leave = threading.Event()

    def run() -> None:
        while not leave.wait(0.5):
            came.append(ask(one).status_code)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield came
    finally:
        leave.set()
        thread.join()
        assert set(came) == {200}


def owned(shared: SharedPool) -> Gateway:
    found = wait_until(shared.owner, KNOWN_S, "one of them owns it")
    assert isinstance(found, Gateway)
    return found


def more(came: list[int], count: int) -> None:
    target = len(came) + count
    wait_until(lambda: len(came) >= target, 120, f"{count} more answers")


def until_off(shared: SharedPool) -> None:
    for one in shared.gateways:
        wait_phase(one, "off", timeout_s=KNOWN_S + 30)


@pytest.mark.slow
def test_idle_means_idle_on_both_and_either_wakes_it_again() -> None:
    with shared_pool(idle_timeout_s=IDLE_S) as shared:
        owner = owned(shared)
        other = shared.other(owner)
        with asking(other) as came:
            more(came, 80)  # longer than anybody could think that the other one is not there
            assert shared.machines.stopped == []
            assert len(shared.machines.started) == 1
        until_off(shared)
        assert len(shared.machines.stopped) == 1
        assert all("pool_server_died" not in one.log() for one in shared.gateways)
        assert [ask(one).status_code for one in (other, owner)] == [200, 200]
        assert shared.machines.launched == 2
        assert shared.machines.started[0] != shared.machines.started[1]


@pytest.mark.slow
def test_an_owner_that_is_paused_past_its_lease_stops_nothing() -> None:
    with shared_pool(idle_timeout_s=IDLE_S) as shared:
        owner = owned(shared)
        other = shared.other(owner)
        assert ask(owner).status_code == 200
        wait_until(lambda: "pool_joins" in other.log(), 30, "the other uses it too")
        with asking(other) as came:
            more(came, 60)
            paused = owner.controller_pid()
            assert paused is not None
            os.kill(paused, signal.SIGSTOP)
            try:
                wait_until(
                    lambda: other.metric("penstock_pool_owner", model="m") == 1,
                    KNOWN_S,
                    "the other took over",
                )
                fence = other.metric("penstock_pool_fence", model="m")
            finally:
                os.kill(paused, signal.SIGCONT)
            more(came, 20)
            assert shared.machines.stopped == []
        until_off(shared)
        assert len(shared.machines.stopped) == 1
        assert shared.machines.stopped[0] >= fence
        assert owned(shared) is other


@pytest.mark.slow
def test_with_redis_away_nothing_is_stopped() -> None:
    with shared_pool(idle_timeout_s=IDLE_S) as shared:
        owned(shared)
        with asking(shared.gateways[0]) as came:
            more(came, 60)
            shared.redis.kill()
        wait_until(
            lambda: not any(one.metric("penstock_pools_lease_store_up") for one in shared.gateways),
            what="both know",
        )
        _for(4 * IDLE_S, lambda: shared.machines.stopped == [])
        assert [ask(one).status_code for one in shared.gateways] == [200, 200]
        shared.redis.start()
        until_off(shared)
        assert len(shared.machines.stopped) == 1


@pytest.mark.slow
def test_a_controller_that_is_killed_is_followed_by_one_that_goes_on() -> None:
    with shared_pool(idle_timeout_s=IDLE_S) as shared:
        owner = owned(shared)
        with asking(shared.other(owner)) as came:
            more(came, 10)
            kill_controller(owner)
            more(came, 20)
            owned(shared)
            wait_phase(owner, "ready")
        until_off(shared)
        assert len(shared.machines.stopped) == 1
        assert pool(owner)["phase"] == "off"


@pytest.mark.slow
def test_removed_from_one_it_is_the_others_and_removed_from_both_it_ends_once() -> None:
    with shared_pool() as shared:
        owner = owned(shared)
        other = shared.other(owner)
        assert ask(owner).status_code == 200
        wait_phase(other, "ready")
        owner.write(REMOVED)
        owner.reload()
        wait_until(lambda: owned(shared) is other, 30, "the other owns it")
        wait_until(lambda: "pool_left pool=m" in owner.log(), KNOWN_S, "who stays is believed")
        assert ask(other).status_code == 200
        assert shared.machines.stopped == []
        other.write(REMOVED)
        other.reload()
        wait_until(lambda: len(shared.machines.stopped) == 1, 30, "it is ended")
        wait_until(lambda: "pool_ended pool=m" in other.log(), 30, "by the last")


@pytest.mark.slow
def test_removed_from_both_at_once_it_ends_once_though_the_store_is_away_first() -> None:
    with shared_pool() as shared:
        owned(shared)
        assert ask(shared.gateways[0]).status_code == 200
        wait_until(lambda: all(pool(one).get("phase") == "ready" for one in shared.gateways))
        _for(32, lambda: True)  # until both know that there is nobody else
        shared.redis.kill()
        for one in shared.gateways:
            one.write(REMOVED)
            one.reload()
        wait_until(
            lambda: all("pool_runs_on pool=m" in one.log() for one in shared.gateways), 30, "it is said"
        )
        assert shared.machines.stopped == []
        shared.redis.start()
        wait_until(lambda: shared.machines.stopped, KNOWN_S + 30, "it is ended")
        wait_until(lambda: any("pool_ended pool=m" in one.log() for one in shared.gateways), 30, "it is said")
        wait_until(
            lambda: any("pool_left pool=m" in one.log() for one in shared.gateways), 30, "the other knows"
        )
        assert len(shared.machines.stopped) == 1


def _for(seconds: float, true: Callable[[], bool]) -> None:
    """That it stays so."""
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > until or not true(), seconds + 30, "time passes")
    assert true()
