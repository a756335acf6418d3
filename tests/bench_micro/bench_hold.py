"""How long a worker takes to see that a request needs a wake, and to say so to the controller.

`python -m tests.bench_micro.bench_hold` prints microseconds, from the call to the moment at which the request waits and
is counted as demand.
"""

from __future__ import annotations

import os
import statistics
import time

from penstock.gateway.caller import ANYONE
from penstock.gateway.hold import Patience
from penstock.gateway.life import Life

from ..support.played import SECRET
from ..unit.test_hold import House

_REQUESTS = 1000


def main() -> None:
    os.environ[SECRET] = "bench"
    house = House(keys=0, max_queue=10 * _REQUESTS)
    taken = []
    waiting = []
    try:
        for _ in range(_REQUESTS):
            life, patience = Life(), Patience(300.0)
            life.keep_alive = lambda: None  # type: ignore[method-assign]
            began = time.perf_counter()
            one = house.holds[0].wait(house.fleet.models[0], ANYONE, life, patience)
            one.send(None)
            taken.append((time.perf_counter() - began) * 1e6)
            waiting.append(one)
        print(f"{house.demand} held: median {statistics.median(taken):.1f} µs, longest {max(taken):.0f} µs")
    finally:
        for one in waiting:
            one.close()
        house.close()


if __name__ == "__main__":
    main()
