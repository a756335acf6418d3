"""What a process's memory holds: the kernel's figures, and the objects of Python by their types.

Strategy: a census of what the collector knows, and of what those objects hold that it does not (bytes, strings,
numbers), each once. What lived when the process had started is frozen and not gone through: it does not grow. The
interpreter is given up every few hundred objects, so that requests wait for microseconds.

`allocated` is tracemalloc's: every allocation of some seconds, by the lines that made it; while it runs the process is
ten times slower.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

_MOST = 200
_STRIDE = 200
_BREATH_S = 0.000_1
"""Long enough for the loop's thread to go on, on the one core they share."""
_FRAMES = 4
_MAPS = "/proc/self/smaps_rollup"
_KINDS = frozenset(
    ("rss", "pss", "pss_anon", "pss_file", "pss_shmem", "private_clean", "private_dirty", "swap")
)


def census() -> Iterator[dict[str, Any]]:
    """`memory` in bytes, `objects`, `frozen` (how many were not gone through), `collections`, and `types`, the largest
    first.
    """
    types: dict[type, list[int]] = {}
    seen: set[int] = set()
    number = 0
    objects = gc.get_objects()
    while objects:
        one = objects.pop()  # not to be kept alive by us any longer
        number += 1
        if number % _STRIDE == 0:
            time.sleep(_BREATH_S)
        _count(types, one)
        for held in gc.get_referents(one):
            if not gc.is_tracked(held) and id(held) not in seen:
                seen.add(id(held))
                _count(types, held)
    largest = sorted(types.items(), key=lambda item: -item[1][1])[:_MOST]
    yield {
        "memory": _memory(),
        "objects": number,
        "frozen": gc.get_freeze_count(),
        "collections": [one["collections"] for one in gc.get_stats()],
        "types": [
            {"type": f"{kind.__module__}.{kind.__qualname__}", "count": count, "bytes": size}
            for kind, (count, size) in largest
        ],
    }


def _count(types: dict[type, list[int]], one: object) -> None:
    found = types.setdefault(type(one), [0, 0])
    found[0] += 1
    with contextlib.suppress(Exception):  # `__sizeof__` is anybody's
        found[1] += sys.getsizeof(one)


def _memory() -> dict[str, int]:
    found = {}
    with open(_MAPS) as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.lower() in _KINDS:
                found[name.lower()] = int(value.split()[0]) * 1024
    return found


def allocated(wait: Callable[[], None]) -> Iterator[dict[str, Any]]:
    """What is allocated while `wait` waits and lives at its end: `frames` and `stacks` (frames from the root, bytes,
    blocks), the largest first.
    """
    tracemalloc.start(_FRAMES)
    try:
        wait()
        taken = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    frames: dict[tuple[str, str, int], int] = {}
    stacks = []
    for one in taken.statistics("traceback")[:_MOST]:
        named = [
            (f"{at.filename.rpartition('/')[2]}:{at.lineno}", at.filename, at.lineno) for at in one.traceback
        ]
        ids = [frames.setdefault(name, len(frames)) for name in named]
        stacks.append([ids, one.size, one.count])
    yield {"frames": list(frames)}
    yield {"memory": _memory()}
    for stack in stacks:
        yield {"stack": stack}
