"""Clients that ask, servers that answer, in virtual time: what a way of choosing leads to, without a clock.

Each of `clients` asks, waits for its answer, thinks, and asks again. A server answers in `takes_s` of it and of what it
has in flight. Two requests may come at one moment at two workers: then both choose before either is counted.
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Choose = Callable[[int, float], int]
"""(worker, now_s) -> server."""


@dataclass(slots=True)
class Outcome:
    """worst: by how much the chosen server had more in flight than the least busy one, as its request came there."""

    chosen: Counter[int] = field(default_factory=Counter)
    took_s: list[float] = field(default_factory=list)
    worst: int = 0
    most: Counter[int] = field(default_factory=Counter)
    over: int = 0

    @property
    def p95_s(self) -> float:
        return sorted(self.took_s)[int(len(self.took_s) * 0.95)]

    def share(self, server: int) -> float:
        return self.chosen[server] / self.chosen.total()


def run(
    choose: Choose,
    count: Callable[[int, int, int], None],
    *,
    takes_s: Callable[[int, int], float],
    servers: int,
    clients: int,
    requests: int,
    workers: int = 1,
    think_s: float = 0.0,
    seed: int = 1,
    heard: Callable[[int, int, float, float], None] = lambda *_: None,
) -> Outcome:
    """`count(worker, server, n)` counts n more in flight; `heard(worker, server, took_s, now_s)` an answer's end.

    Clients belong to workers unevenly: the last worker has a sixth of them, as keep-alive has it.
    """
    rng = random.Random(seed)
    out = Outcome()
    inflight = [0] * servers
    uneven = [w for w in range(workers) for _ in range(5 if w < workers - 1 or workers == 1 else 1)]
    homes = [uneven[n % len(uneven)] for n in range(clients)]
    # (time, order, client, server or -1 for a question, asked at)
    events: list[tuple[float, int, int, int, float]] = []
    for client in range(clients):
        heapq.heappush(events, (rng.random() * 0.01, client, client, -1, 0.0))
    order = clients
    asked = 0
    while events:
        now, _, client, server, since = heapq.heappop(events)
        if server >= 0:
            inflight[server] -= 1
            count(homes[client], server, -1)
            out.took_s.append(now - since)
            heard(homes[client], server, now - since, now)
            if asked < requests:
                order += 1
                again = now + (rng.expovariate(1 / think_s) if think_s else 0.0)
                heapq.heappush(events, (again, order, client, -1, 0.0))
            continue
        if asked >= requests:
            continue
        together = [client]
        if events and events[0][3] < 0 and homes[events[0][2]] != homes[client] and events[0][0] - now < 1e-4:
            together.append(heapq.heappop(events)[2])
        picks = [(who, choose(homes[who], now)) for who in together]
        for who, picked in picks:
            asked += 1
            out.chosen[picked] += 1
            out.worst = max(out.worst, inflight[picked] - min(inflight))
            inflight[picked] += 1
            count(homes[who], picked, 1)
            out.most[picked] = max(out.most[picked], inflight[picked])
            order += 1
            takes = takes_s(picked, inflight[picked]) * rng.uniform(0.5, 1.5)
            heapq.heappush(events, (now + takes, order, who, picked, now))
    return out


def slower(by: Sequence[float], base_s: float = 0.1) -> Callable[[int, int], float]:
    """Servers that batch: an answer takes its server's time, and a hundredth of it more for each beside it."""
    return lambda server, beside: base_s * by[server] * (1 + beside / 100)
