"""`pools simulate` beside the machine at work: the same requests, and so the same starts and phases."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

from penstock.workers.pools.economy.simulate import Plant, simulate
from penstock.workers.pools.economy.trace import Arrival
from penstock.workers.pools.terms import Terms
from tests.support.gateway import gateway
from tests.support.pool_gateway import ask, phases, pooled, wait_phase
from tests.support.procs import wait_until

IDLE_S = 0.8
#: scaled down: three times somebody works for a moment, with pauses shorter and longer than IDLE_S
TRACE_S = (0.0, 0.0, 0.1, 0.2, 0.4, 3.5, 3.7, 3.7, 6.8, 7.0)


def test_the_live_machine_does_what_its_own_requests_come_to_when_replayed() -> None:
    asked: list[tuple[float, float, float]] = []

    def one(at_s: float) -> None:
        while (left := began + at_s - time.monotonic()) > 0:
            Event().wait(min(left, 0.05))
        arrived = time.monotonic()
        answer = ask(g)
        took = time.monotonic() - arrived
        assert answer.status_code == 200
        held = float(answer.headers.get("x-penstock-wake-ms", 0)) / 1000
        asked.append((arrived, held, took - held))

    with gateway(pooled(idle_timeout_s=IDLE_S)) as g, ThreadPoolExecutor(len(TRACE_S)) as work:
        wait_phase(g, "off")
        began = time.monotonic()
        for done in [work.submit(one, at_s) for at_s in TRACE_S]:
            done.result()
        wait_until(lambda: phases(g)[-1] == "off")
        live = phases(g)[1:]  # the first is the state it began in
        starts = g.metric("penstock_pool_starts_total", model="m", outcome="ready")
    # what was seen of the live one: when requests came, how long the first waited, how long a served one takes
    asked.sort()
    first = asked[0][0]
    replayed = simulate(
        [Arrival(at - first, "", took) for at, _, took in asked],
        Terms(target=100, idle_timeout_s=IDLE_S),
        Plant(start_s=asked[0][1], stop_s=0.2),
    )
    expected = [phase.name.lower() for _, phase in replayed.phases[""][1:]]
    # a replay ends with the last request that it serves, which is before the live one's last stop
    assert re.fullmatch("(starting ready draining stopping off ?)+", " ".join(live)), live
    assert live[: len(expected)] == expected
    assert len(live) - len(expected) <= 3
    assert replayed.cold_starts == starts == live.count("starting")
