"""The lab's own traces, each with what it is there to show."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ..corpus import Trace, answer_bytes, drift, equal_bytes, loop, scans, zipf

_EQUAL = equal_bytes(8_000)  # an embedding


def corpora(scale: float, seed: int) -> dict[str, Callable[[], Trace]]:
    """By name how to make each trace.

    At scale 1 there are 100,000 keys and 800,000 requests; where sizes are equal three times the keys and half as many
    requests more. So a thousandth of the working set is a cache of 1.5 to 5 MB and some 200 entries; far smaller ones
    are all header and segment ends, and nobody has them.
    """
    objects, requests = max(100, int(100_000 * scale)), max(1000, int(800_000 * scale))
    mixed: dict[str, Any] = {"objects": objects, "requests": requests, "seed": seed, "sizes": answer_bytes}
    equal: dict[str, Any] = {
        "objects": 3 * objects,
        "requests": 3 * requests // 2,
        "seed": seed,
        "sizes": _EQUAL,
    }
    turn = max(100, requests // 40)  # between scans
    step = max(10, requests // 400)  # between changes of popularity

    def shift(objects: int) -> int:
        return max(1, objects // 4000)

    return {
        name: partial(make, name, **sizes)
        for name, make, sizes in (
            ("zipf-0.7", partial(zipf, alpha=0.7), mixed),
            ("zipf-0.9", partial(zipf, alpha=0.9), mixed),
            ("zipf-1.1", partial(zipf, alpha=1.1), mixed),
            ("zipf-0.9-equal", partial(zipf, alpha=0.9), equal),
            ("scans", partial(scans, alpha=0.9, every=turn, length=turn // 5), mixed),
            ("drift", partial(drift, alpha=0.9, every=step, shift=shift(objects)), mixed),
            ("drift-equal", partial(drift, alpha=0.9, every=step, shift=shift(3 * objects)), equal),
            ("loop", loop, mixed),
        )
    }
