"""`penstock serve` that writes down what its workers read when they choose, and what they count: for a check offline.

Run as `python -m tests.support.recorded FOLDER [--own-only] serve ...`. Each worker writes lines into a file of its
own: "c t0 t1 chosen index=read ..." for a choice (ns of the monotonic clock before and after), "a t0 t1 index n" for a
count. --own-only: each worker's sums are of its own row alone, which is what the check must find.
"""

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Added:
    t0: int
    t1: int
    index: int
    n: int


@dataclass(frozen=True, slots=True)
class Chosen:
    """read: of each backend that could be chosen, what the worker took for its requests in flight."""

    worker: str
    t0: int
    t1: int
    index: int
    read: dict[int, int]


def read_back(folder: Path) -> tuple[list[Chosen], list[Added]]:
    """What all workers wrote."""
    chosen, added = [], []
    for file in folder.iterdir():
        for line in file.read_text().splitlines():
            kind, t0, t1, index, *rest = line.split()
            if kind == "a":
                added.append(Added(int(t0), int(t1), int(index), int(rest[0])))
            else:
                read = {int(i): int(n) for i, _, n in (pair.partition("=") for pair in rest)}
                chosen.append(Chosen(file.name, int(t0), int(t1), int(index), read))
    chosen.sort(key=lambda one: one.t0)
    added.sort(key=lambda one: one.t0)
    return chosen, added


def truths(chosen: list[Chosen], added: list[Added]) -> Iterator[tuple[Chosen, dict[int, tuple[int, int]]]]:
    """Each choice with what was really in flight while it was made: the least and the most there can have been."""
    sure: dict[int, int] = {}
    under_way: list[Added] = []
    at = 0
    for one in chosen:
        while at < len(added) and added[at].t0 <= one.t1:
            under_way.append(added[at])
            at += 1
        for add in [a for a in under_way if a.t1 < one.t0]:
            sure[add.index] = sure.get(add.index, 0) + add.n
            under_way.remove(add)
        bounds = {}
        for index in one.read:
            beside = [a.n for a in under_way if a.index == index]
            known = sure.get(index, 0)
            bounds[index] = (known + sum(n for n in beside if n < 0), known + sum(n for n in beside if n > 0))
        yield one, bounds


def _install(folder: str, own_only: bool) -> None:
    from penstock.cache.rows import TallyRow
    from penstock.gateway.choice import Choice

    files: dict[int, int] = {}
    clock = time.monotonic_ns

    def write(line: str) -> None:
        pid = os.getpid()
        if pid not in files:
            files[pid] = os.open(f"{folder}/{pid}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(files[pid], line.encode())

    class Columns:
        """The tally's columns; remembers what was read of each."""

        def __init__(self, columns: tuple[memoryview, ...], slot: int) -> None:
            self.columns = [c[slot : slot + 1] for c in columns] if own_only else columns
            self.read: dict[int, int] = {}

        def __getitem__(self, index: int) -> tuple[int]:
            self.read[index] = sum(self.columns[index])
            return (self.read[index],)

    init, pick, add = Choice.__init__, Choice.pick, TallyRow.add

    def recording_init(self: Choice, row: TallyRow, tally: Any, slot: int, **more: Any) -> None:
        init(self, row, tally, slot, **more)
        self._columns = Columns(tally.inflight_columns, slot)  # type: ignore[assignment]

    def recording_pick(self: Choice, *args: Any, **more: Any) -> Any:
        columns: Any = self._columns
        columns.read.clear()
        t0 = clock()
        backend = pick(self, *args, **more)
        t1 = clock()
        if backend is not None and len(columns.read) > 1:
            read = " ".join(f"{index}={n}" for index, n in columns.read.items())
            write(f"c {t0} {t1} {backend.index} {read}\n")
        return backend

    def recording_add(self: TallyRow, backend: int, n: int) -> None:
        t0 = clock()
        add(self, backend, n)
        write(f"a {t0} {clock()} {backend} {n}\n")

    for name, value in (("__init__", recording_init), ("pick", recording_pick)):
        setattr(Choice, name, value)
    setattr(TallyRow, "add", recording_add)  # noqa: B010 (mypy: a method)


def main(argv: list[str]) -> int:
    folder, *rest = argv
    own_only = rest[0] == "--own-only"
    _install(folder, own_only)
    from penstock.workers.cli import main as penstock

    return penstock(rest[own_only:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
