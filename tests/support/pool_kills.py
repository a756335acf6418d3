"""A controller that is killed in each phase of a pool."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor

import httpx

from .gateway import Gateway, gateway
from .pool_gateway import (
    ask,
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
from .procs import wait_until


def _held(g: Gateway, work: ThreadPoolExecutor) -> Future[httpx.Response]:
    one = work.submit(ask, g)
    wait_until(lambda: pool(g).get("waiting") == 1)
    return one


def controller_killed_in(phase: str) -> None:
    """Its successor serves who waits, takes over what runs, and leaks nothing."""
    terms = {"asleep": {"sleep_after_s": 0.3}}.get(phase, {})
    command = {
        "starting": simulator("--startup-s", "0.8"),
        "asleep": simulator("--dev-mode", "--wake-s", "0.1"),
        "stopping": lingering(linger_s=1.0),
        "failed": ["/bin/sh", "-c", "exit 7", "{port}"],
        "draining": simulator("--decode-ms", "50"),
    }.get(phase)
    with gateway(pooled(command, **terms)) as g, ThreadPoolExecutor(4) as work:
        waiting = []
        if phase == "starting":
            waiting = [_held(g, work)]
            wait_until(lambda: records(g))
        elif phase == "failed":
            assert ask(g).status_code == 503
        elif phase != "off":
            assert ask(g).status_code == 200
        stream = None
        if phase == "draining":
            stream = work.submit(ask, g, tokens=40)
            wait_until(lambda: pool(g)["running"] == 1)
        if phase in ("draining", "stopping"):
            tell(g, "stop")
        wait_phase(g, phase)
        before = {one["pid"] for one in records(g)}
        kill_controller(g)
        if phase == "failed":
            again = ask(g)
            assert (again.status_code, phases(g).count("starting")) == (
                503,
                1,
            )  # it is not forgotten when to try again
        else:
            assert ask(g).status_code == 200
            assert [one.result().status_code for one in waiting] == [200] * len(waiting)
            assert stream is None or stream.result().status_code == 200
            after = {one["pid"] for one in records(g)}
            assert len(after) == 1
            if phase in ("starting", "ready", "asleep", "draining"):
                assert after == before
            if phase == "stopping":
                gone(*before)
            started = {one["pid"] for one in records(g)}
            family = [pid for pid in servers(g) if os.getsid(pid) not in started]
            assert family == []
