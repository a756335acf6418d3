"""``make hitratio``: replay corpora and trace files through L1 and its rivals, print the table, draw the plot.

Exit status: 0, 1 when L1 was more than one point below exact LRU somewhere, 2 when a trace file cannot be read.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

from ..corpus import Trace
from . import tracefile
from .corpora import corpora
from .lab import Row, l1_name, measure
from .plot import svg
from .table import table

_FRACTIONS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.25)
_BOUND_POINTS = -1.0


def main() -> int:
    """Run the lab as the command line asks."""
    given = _arguments()
    made = corpora(given.scale, given.seed)
    names = given.only if given.only is not None else [] if given.files else list(made)
    sources: list[Callable[[], Trace]] = [made[name] for name in names]
    try:
        sources += [_Loaded(tracefile.read(path, given.lines)) for path in given.files]
    except (tracefile.TraceError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    with ProcessPoolExecutor(given.jobs) as pool:
        tasks = [
            pool.submit(_measured, source, fraction, given.workers)
            for source in sources
            for fraction in given.sizes
        ]
        rows = []
        for number, task in enumerate(tasks, 1):
            rows.append(task.result())
            print(f"{number} of {len(tasks)}", end="\r", file=sys.stderr, flush=True)
    l1s = [l1_name(count) for count in given.workers]
    text = table(rows, l1s)
    missed = [
        f"{row.trace} at {row.fraction:.1%}: {name} is {points:+.2f} points from exact LRU"
        for row in rows
        for name in l1s
        if (points := row.points(name)) is not None and points < _BOUND_POINTS
    ]
    goal = "L1 is at least exact LRU's hit ratio minus one point everywhere."
    text += "\n\n" + ("\n".join(f"MISS {line}" for line in missed) if missed else f"met  {goal}")
    print(text)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "table.txt").write_text(text + "\n")
    (given.out / "rows.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    (given.out / "hitratio.svg").write_text(svg(rows, l1s))
    print(f"\nwritten to {given.out}: table.txt, rows.json, hitratio.svg")
    return 1 if missed else 0


class _Loaded:
    """A trace that is here already."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def __call__(self) -> Trace:
        return self._trace


def _measured(source: Callable[[], Trace], fraction: float, workers: Sequence[int]) -> Row:
    return measure(source(), fraction, workers)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make hitratio", description=__doc__)
    parser.add_argument(
        "files", nargs="*", type=Path, help="trace files instead of the corpora; see tracefile.py"
    )
    parser.add_argument("--only", nargs="+", choices=list(corpora(1, 1)), help="just these corpora")
    parser.add_argument(
        "--sizes", nargs="+", type=_share, default=_FRACTIONS, help="shares of the working set"
    )
    parser.add_argument(
        "--workers", nargs="+", type=_count, default=[1, 4], help="L1 with so many writers (1 4)"
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="times 100,000 keys and 800,000 requests (1)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the corpora (1)")
    parser.add_argument(
        "--lines", type=_count, default=tracefile.LINES, help="most lines read of a trace file"
    )
    parser.add_argument(
        "--jobs", type=_count, default=len(os.sched_getaffinity(0)), help="processes (all cores)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("var") / "hitratio", help="folder for table and plot"
    )
    return parser.parse_args()


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError("a share is above 0 and at most 1")
    return share


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return count


if __name__ == "__main__":
    sys.exit(main())
