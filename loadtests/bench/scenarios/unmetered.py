"""What counting and timing every request costs: hits of the gateway beside hits of one that records nothing.

Strategy: the product has no switch for that and wants none. The second subject is the same program with what records
replaced before it serves (``tests/bench_micro/unmetered.py``); that it is in force is read from its own /metrics.
"""

from __future__ import annotations

import sys
import urllib.request

from ..context import Rig
from ..rig import payload
from ..rig.wrk import KEY
from ..subjects import REQUESTS, Gateway
from .cached import KEYS, L1_SIZE, all_were, backends_of_sizes, body_of_keys, fill_with

_MODULE = "tests.bench_micro.unmetered"
_LEAST = 0.95
_LOOKS = 50


def metrics(rig: Rig) -> None:
    """Answers of 0.6 KB from shared memory, with metrics and without, in turn."""
    model = next(iter(payload.SIZED))
    if not (rig.repository / "tests" / "bench_micro" / "unmetered.py").exists():
        rig.book.notes.append("metrics: no tests/bench_micro/unmetered.py here")
        return
    programs = {"metrics": None, "no metrics": [sys.executable, "-m", _MODULE]}
    with backends_of_sizes(rig) as ports:
        subjects = [
            Gateway(
                *(rig.folder, {model: ports[model]}),
                cores=[rig.core],
                machine=rig.machine,
                name=name,
                more={"cache": {"l1": {"size": L1_SIZE}}},
                program=program,
                counts=program is None,
            )
            for name, program in programs.items()
        ]
        try:
            for subject in subjects:
                fill_with(subject, model)
                _hits(rig, subject, model)
            rig.alternate("metrics", list(subjects), body_of_keys(model), model, keys=KEYS)
            all_were(rig, subjects[0], "HIT-L1", "metrics")
            if subjects[1].metrics().total(REQUESTS):
                rig.book.faults.append("metrics: the gateway without has counted")
        finally:
            for subject in subjects:
                subject.stop()
    rig.book.at_least(
        "hit with metrics / without", rig.book.ratio("metrics", "metrics", "no metrics"), _LEAST
    )
    costs = [rig.book.median("metrics", subject.name, "cpu_us") for subject in subjects]
    rig.book.notes.append(f"metrics cost {costs[0] - costs[1]:.2f} us of processor time per hit")


def _hits(rig: Rig, gateway: Gateway, model: str) -> None:
    """One that asked its backend would make metrics look cheap, and its own counts cannot tell."""
    body = body_of_keys(model).decode()
    for number in range(0, KEYS, KEYS // _LOOKS):
        asked = urllib.request.Request(gateway.url(model), body.replace(KEY, str(number)).encode())
        asked.add_header("content-type", "application/json")
        with urllib.request.urlopen(asked, timeout=10) as answer:
            outcome = answer.headers["x-penstock-cache"]
        if outcome != "HIT-L1":
            rig.book.faults.append(f"metrics: {gateway.name}: key {number} was {outcome}")
            return
