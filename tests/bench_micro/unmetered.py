"""`penstock` that measures nothing of its requests: what the bench lays beside the real one to see what measuring
costs.

`python -m tests.bench_micro.unmetered serve -c FILE`. There is no such switch in the product. Workers are forked from
this process, so that what is replaced here is replaced there. Left is what a worker does at the same place for another
reason: it still notes when a request began and ended, and settles its limits. Fails where a name to be replaced is
gone, because then it would measure after all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from penstock.gateway.ledger import Ledger
from penstock.gateway.meter import StreamMeter
from penstock.gateway.metrics import Metrics
from penstock.workers.cli import main


def _nothing(*args: object, **named: object) -> None:
    return None


def _nothing_of(*args: object) -> Callable[[Any], None]:
    return _nothing


REPLACED: tuple[tuple[type, str, Callable[..., Any]], ...] = (
    (Ledger, "record", _nothing),
    (Ledger, "failed", _nothing),
    (Metrics, "count", _nothing),
    (Metrics, "gauge", _nothing),
    (Metrics, "counter", _nothing_of),
    (Metrics, "histogram", _nothing_of),
    (StreamMeter, "feed", _nothing),
)


def replace() -> None:
    """Put nothing in the place of everything that records. Raises AttributeError for a name that is gone."""
    for owner, name, instead in REPLACED:
        getattr(owner, name)
        setattr(owner, name, instead)


if __name__ == "__main__":
    replace()
    sys.exit(main())
