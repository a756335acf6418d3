"""The lab's own traces, each with what it is there to show."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..corpus import Trace, answer_bytes, drift, equal_bytes, loop, scans, zipf

#: What an embedding takes; large enough that a thousandth of the working set is a cache at all.
_EQUAL = equal_bytes(8_000)


def corpora(scale: float, seed: int) -> dict[str, Callable[[], Trace]]:
    """By name how to make each trace. At scale 1 there are 100,000 keys and 800,000 requests."""
    objects, requests = max(100, int(100_000 * scale)), max(1000, int(800_000 * scale))
    common = {"objects": objects, "requests": requests, "seed": seed}
    turn = max(100, requests // 40)
    return {
        name: partial(make, name, **common)
        for name, make in {
            "zipf-0.7": partial(zipf, alpha=0.7, sizes=answer_bytes),
            "zipf-0.9": partial(zipf, alpha=0.9, sizes=answer_bytes),
            "zipf-1.1": partial(zipf, alpha=1.1, sizes=answer_bytes),
            "zipf-0.9-equal": partial(zipf, alpha=0.9, sizes=_EQUAL),
            "scans": partial(scans, alpha=0.9, sizes=answer_bytes, every=turn, length=turn // 5),
            "drift": partial(
                drift, alpha=0.9, sizes=answer_bytes, every=turn // 10, shift=max(1, objects // 4000)
            ),
            "drift-equal": partial(
                drift, alpha=0.9, sizes=_EQUAL, every=turn // 10, shift=max(1, objects // 4000)
            ),
            "loop": partial(loop, sizes=answer_bytes),
        }.items()
    }
