"""L1 against py-lmdb in the same process: `python -m tests.bench_micro.bench_l1 [--json FILE]` prints a table.

10,000 values of 700 bytes, written by another process. lmdb as people use it for a cache: a file in memory, mapped
writable, nothing synced, one transaction an operation. L1's put includes packing, that is stamp, times and checksum;
its get includes their proof. All processes do the same thing at the same time, a hundred keys with one, then with
the other, in many rounds. A figure is the median over rounds and processes, a ratio the median of the ratios within
a round and process: what else the machine does in between falls on both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import lmdb

from penstock.cache.arena import Arena, ArenaGeometry
from penstock.cache.digest import Key
from penstock.cache.entry import pack
from penstock.cache.l1 import L1

KEYS = 10_000
VALUE = random.Random(1).randbytes(700)
PROCESSES = (1, 2, 4)
BOUNDS = {"get": 1.5, "put": 3.0, "put, one dropped": 3.0}

_SIZE = 256 * 1024 * 1024
_SMALL = 16 * 1024 * 1024  # full of these values many times over: each put drops an old entry
_MORE_KEYS = 4 * KEYS
_STAMP, _NOW_MS, _EXPIRES_MS = 7, 1_700_000_000_000, 1_700_000_300_000
_LIMIT_S = 300
_BLOCK = 100


@dataclass(frozen=True, slots=True)
class Row:
    """One operation with so many processes at once: nanoseconds each, and L1's over lmdb's."""

    operation: str
    processes: int
    lmdb_ns: float
    l1_ns: float
    ratio: float
    bound: float


def main() -> int:
    """Measure, print, write; 1 when a ratio is over its bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found: list[Row] = []
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        for name, size in (("large", _SIZE), ("small", _SMALL)):
            Arena.create(f"{folder}/{name}", ArenaGeometry.of(size, 64 * 1024, 16), 0).close()
        _in_processes(1, _fill, folder)
        for count in PROCESSES:
            found += _rows(_in_processes(count, _measure, folder, given.rounds), count)
    print(f"{'':18}{'processes':>10}{'lmdb ns':>10}{'L1 ns':>10}{'ratio':>8}{'bound':>8}")
    for row in found:
        print(
            f"{row.operation:18}{row.processes:>10}{row.lmdb_ns:>10.0f}{row.l1_ns:>10.0f}{row.ratio:>8.2f}"
            f"{row.bound:>8.1f}{'' if row.ratio <= row.bound else '  over'}"
        )
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(row) for row in found]))
    return int(any(row.ratio > row.bound for row in found))


def key_of(number: int) -> Key:
    """A key as the gateway makes them."""
    return Key(hashlib.sha256(number.to_bytes(8, "big")).digest())


def _rows(times: list[dict[str, list[float]]], count: int) -> list[Row]:
    rounds = {name: [took for t in times for took in t[name]] for name in times[0]}
    rows = []
    for operation, bound in BOUNDS.items():
        ours, theirs = rounds[operation], rounds["lmdb " + operation[:3]]
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        rows.append(Row(operation, count, statistics.median(theirs), statistics.median(ours), ratio, bound))
    return rows


def _in_processes(count: int, body: Callable[..., object], *given: object) -> list[dict[str, list[float]]]:
    spawn = multiprocessing.get_context("spawn")
    barrier, answers = spawn.Barrier(count), spawn.SimpleQueue()
    children = [
        spawn.Process(target=body, args=(*given, number, barrier, answers), daemon=True)
        for number in range(count)
    ]
    for child in children:
        child.start()
    found = [answers.get() for _ in children]
    for child in children:
        child.join()
    return found


def _open(folder: str) -> lmdb.Environment:
    return lmdb.open(
        f"{folder}/lmdb",
        map_size=_SIZE,
        writemap=True,
        sync=False,
        metasync=False,
        map_async=True,
        max_readers=64,
    )


def _l1(folder: str, name: str, number: int) -> L1:
    # Slot and number of this process; all of them live while any of them runs.
    return L1(
        Arena.open(f"{folder}/{name}"),
        (number, os.getpid()),
        lambda _slot, pid: os.path.exists(f"/proc/{pid}"),
    )


def _fill(folder: str, number: int, _: Barrier, answers: SimpleQueue[object]) -> None:
    """Write every value to both."""
    large, small, env = _l1(folder, "large", number), _l1(folder, "small", number), _open(folder)
    for i in range(KEYS):
        key = key_of(i)
        if not large.put(key, _packed(key), _NOW_MS):
            raise SystemExit("the cache took no value")
        with env.begin(write=True) as transaction:
            transaction.put(key, VALUE)
    for i in range(_MORE_KEYS):
        small.put(key_of(i), _packed(key_of(i)), _NOW_MS)
    large.close()
    small.close()
    answers.put({})


def _packed(key: Key) -> bytes:
    return pack(key, _STAMP, _NOW_MS, _EXPIRES_MS, VALUE)


def _measure(folder: str, rounds: int, number: int, barrier: Barrier, answers: SimpleQueue[object]) -> None:
    """One of the processes: the same work in the same order as all others."""
    large, small, env = _l1(folder, "large", number), _l1(folder, "small", number), _open(folder)
    keys = [key_of(i) for i in range(KEYS)]
    more = [key_of(i) for i in range(_MORE_KEYS)]
    random.Random(number).shuffle(keys)
    random.Random(number).shuffle(more)
    values = [large.get(key, _STAMP, _NOW_MS) for key in keys]
    if any(entry is None or entry.value != VALUE for entry in values):
        raise SystemExit("what another process wrote was not found")
    del values

    def lmdb_get(keys: list[Key]) -> None:
        begin = env.begin
        for key in keys:
            with begin() as transaction:
                transaction.get(key)

    def get(keys: list[Key]) -> None:
        get = large.get
        for key in keys:
            get(key, _STAMP, _NOW_MS)

    def lmdb_put(keys: list[Key]) -> None:
        begin = env.begin
        for key in keys:
            with begin(write=True) as transaction:
                transaction.put(key, VALUE)

    def put(keys: list[Key]) -> None:
        put = large.put
        for key in keys:
            put(key, pack(key, _STAMP, _NOW_MS, _EXPIRES_MS, VALUE), _NOW_MS)

    def put_dropping(keys: list[Key]) -> None:
        put = small.put
        for key in keys:
            put(key, pack(key, _STAMP, _NOW_MS, _EXPIRES_MS, VALUE), _NOW_MS)

    works: dict[str, Callable[[list[Key]], None]] = {
        "lmdb get": lmdb_get,
        "get": get,
        "lmdb put": lmdb_put,
        "put": put,
        "put, one dropped": put_dropping,
    }
    found: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(-1, rounds):
        for name, work in works.items():
            of = more if work is put_dropping else keys
            block = of[:_BLOCK]
            of[:] = of[_BLOCK:] + block
            barrier.wait(_LIMIT_S)
            began = time.perf_counter()
            work(block)
            took = time.perf_counter() - began
            if turn >= 0:  # the first warms up
                found[name].append(took * 1e9 / _BLOCK)
    barrier.wait(_LIMIT_S)
    large.close()
    small.close()
    answers.put(found)


if __name__ == "__main__":
    sys.exit(main())
