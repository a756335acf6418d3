"""How often three models on one GPU change and how long anybody waits, by how long a pool keeps a turn it does not use.

`python -m tests.bench_micro.bench_turns`: real machines and the real house on a clock that is moved, so the figures
are the same everywhere. A start takes 10 s, a stop 2 s, nobody is to wait over 60 s.
"""

from __future__ import annotations

from itertools import pairwise

import penstock.workers.pools.house as house

from ..support.turns import GIB, Model, World, interleaved, pool, strict_switches

SECONDS = 1200.0
LOADS = ((0.05, 2.0), (0.2, 2.0), (0.5, 2.0), (1.0, 1.0), (3.0, 2.0))
SHARES = (0.0, 0.05, 0.1, 0.25, 0.5, 1e9)


def measured(rate: float, service_s: float, share: float) -> tuple[int, int, float, float, float]:
    """Changes in the order of arrival, changes, and seconds waited: mean, 95th percentile, most. Of two runs."""
    house.LINGER_SHARE, house.MOST_LINGER_S = share, 1e9  # type: ignore[misc]
    strict = changes = 0
    waits: list[float] = []
    for seed in (1, 2):
        models = [Model(name, pool(memory=GIB), GIB, start_s=10.0, stop_s=2.0) for name in "abc"]
        world = World([GIB], models, max_wait_s=60.0, step_s=0.1)
        requests = interleaved(["a", "b", "c"], rate=rate, seconds=SECONDS, service_s=service_s, seed=seed)
        world.send(*requests)
        world.run(SECONDS)
        world.drain(600)
        strict += strict_switches(requests)
        changes += sum(a != b for a, b in pairwise(world.starts))
        waits += [one.began - one.arrived for one in world.done if one.began is not None]
    waits.sort()
    return strict, changes, sum(waits) / len(waits), waits[int(0.95 * len(waits))], waits[-1]


def main() -> None:
    """Print the table."""
    print("| requests/s | service | kept for | changes, in order of arrival | changes | mean | p95 | most |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for rate, service_s in LOADS:
        for share in SHARES:
            strict, changes, mean, p95, most = measured(rate, service_s, share)
            kept = "for ever" if share > 1 else f"{share:g}"
            print(
                f"| {rate:g} | {service_s:g} s | {kept} | {strict} | {changes} "
                f"| {mean:.1f} s | {p95:.1f} s | {most:.1f} s |"
            )


if __name__ == "__main__":
    main()
