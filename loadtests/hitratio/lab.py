"""One trace through every policy at one cache size: what each of them hits, and what nobody can.

What is charged: every policy has the same number of bytes. Exact LRU, S3-FIFO, SIEVE and the offline policies pay for
packed entries, byte for byte, and nothing else; their lists, tables and counters are free. L1's arena has that number
of bytes in all: header, epochs, index, and what rounding to 64 bytes costs come out of it. So every comparison is to
L1's disadvantage. An entry above `largest_bytes`, 2 MiB or a 32nd of the cache, is kept by none of them.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from ..corpus import Trace
from .belady import Belady
from .beladysize import BeladySize
from .lru import Lru
from .nextuse import next_uses
from .pfoo import most_hits
from .policy import Policy
from .s3fifo import S3Fifo
from .shared import HEAD_BYTES, SharedL1, largest_entry
from .sieve import Sieve

#: The offline policy's name in a row, and the bound's; they are one figure where sizes are equal.
REACHED = "offline"
BOUND = "bound"
LRU = "lru"


def l1_name(workers: int) -> str:
    """L1's name in a row, with so many workers."""
    return "l1" if workers == 1 else f"l1/{workers}w"


@dataclass(frozen=True, slots=True)
class Row:
    """One trace at one size. Ratios are hits over all requests; byte ratios are values' bytes over all values' bytes.

    refused: the share of requests whose entry is above the largest that is kept. faults: per policy that has no
    figure the reason, in one line.
    """

    trace: str
    fraction: float
    capacity_bytes: int
    largest_bytes: int
    refused: float
    exact: bool
    ratios: dict[str, float] = field(default_factory=dict)
    byte_ratios: dict[str, float] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)

    def points(self, name: str, than: str = LRU) -> float | None:
        """Percentage points by which one policy's hit ratio is above another's; None where one has none."""
        if name not in self.ratios or than not in self.ratios:
            return None
        return 100 * (self.ratios[name] - self.ratios[than])


def working_set_bytes(trace: Trace) -> int:
    """Packed bytes of all different keys, each in its first size."""
    first: dict[int, int] = {}
    for key, size in zip(trace.keys, trace.sizes, strict=True):
        first.setdefault(key, size + HEAD_BYTES)
    return sum(first.values())


def measure(
    trace: Trace, fraction: float, workers: Sequence[int] = (1,), *, offline: bool = True, seed: int = 1
) -> Row:
    """Replay `trace` through all policies at `fraction` of its working set; without the offline ones if so asked."""
    capacity = int(working_set_bytes(trace) * fraction)
    largest = largest_entry(capacity)
    asked = [
        (key, size + HEAD_BYTES)
        for key, size in zip(trace.keys, trace.sizes, strict=True)
        if size + HEAD_BYTES <= largest
    ]
    keys, sizes = array("Q", (key for key, _ in asked)), array("Q", (size for _, size in asked))
    row = Row(
        trace=trace.name,
        fraction=fraction,
        capacity_bytes=capacity,
        largest_bytes=largest,
        refused=1 - len(keys) / len(trace),
        exact=trace.equal_sizes,
    )
    all_bytes = sum(trace.sizes)

    def replay(name: str, policy: Policy) -> None:
        hits = hit_bytes = 0
        for key, size in asked:
            if policy.request(key, size):
                hits += 1
                hit_bytes += size - HEAD_BYTES
        row.ratios[name] = hits / len(trace)
        row.byte_ratios[name] = hit_bytes / all_bytes

    replay(LRU, Lru(capacity))
    replay("s3-fifo", S3Fifo(capacity))
    replay("sieve", Sieve(capacity))
    for count in workers:
        try:
            l1 = SharedL1(capacity, largest, count)
        except ValueError as error:
            row.faults[l1_name(count)] = str(error)
            continue
        with l1:
            replay(l1_name(count), l1)
    if not offline:
        return row
    later = next_uses(keys)
    if row.exact:
        replay(REACHED, Belady(capacity, later))
        row.ratios[BOUND] = row.ratios[REACHED]
    else:
        replay(REACHED, BeladySize(capacity, later, Random(seed)))
        row.ratios[BOUND] = most_hits(sizes, later, capacity) / len(trace)
    return row
