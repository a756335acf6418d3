"""A storm over a tiny cache: readers, writers and one that flushes, killed -9 all the time and replaced at once.

    python -m tests.storm.storm --seconds 60 --kills 2000

Strategy: this process stays small, because it forks for every kill. Half of the processes are killed by it at a
random instant; the others carry a fuse and kill themselves before a random instruction of the cache's code. Every
value is derived from its key (`values.py`), so whoever reads one can check each byte of it, and knows which flushes
had begun when it was made. A round ends when all are dead: then the cache must be whole (`world.py`).

Prints one JSON object: what was done, what was found, how many were killed and where. Exit status 1 and a line each
on stderr for whatever is wrong.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from types import CodeType

import penstock.cache.entry as entry_module
from penstock.cache.arena import ArenaGeometry
from penstock.cache.digest import Key
from penstock.cache.entry import pack
from penstock.cache.epoch import name_of_key, name_of_model, name_of_tenant

from .points import Tracer
from .values import expiry_of, fault_in, flushes_before, key_named, length_of, value_of, version_of
from .world import Life, World

CACHE_FOLDER = os.path.dirname(os.path.realpath(entry_module.__file__))
READERS = 2
WRITERS = 3
FLUSHER = READERS + WRITERS
SEATS = FLUSHER + 1
SIZE_BYTES = 768 << 10
MAX_VALUE_BYTES = 30_000
KEYS = 900
MODELS = 3
TENANTS = 3
FLUSHED_KEYS = 8
ALARM_S = 300
ROUND_KILLS = 100
PAUSE_S = 0.012  # on average, between two kills at a random instant

OPS = ("idle", "get", "put", "remove", "flush")
_OP, _GETS, _HITS, _PUTS, _STORED, _REMOVED, _FLUSHES, _INJECTED = range(8)
_SEAT_CELLS = 8


class Ledger:
    """Cells that all processes share and no kill takes away.

    begun: number of the last flush that was begun. done: per epoch name, the number of the last one that ended.
    Behind them a row per seat, which only the process on it writes.
    """

    def __init__(self, names: list[str]) -> None:
        self._map = mmap.mmap(-1, 8 * (1 + len(names) + SEATS * _SEAT_CELLS))
        self.cells = memoryview(self._map).cast("Q")
        self._done = {name: 1 + i for i, name in enumerate(names)}
        self._seats_at = 1 + len(names)

    @property
    def begun(self) -> int:
        return self.cells[0]

    def begin(self) -> int:
        self.cells[0] += 1
        return self.cells[0]

    def end(self, name: str, number: int) -> None:
        self.cells[self._done[name]] = number

    def done(self, names: tuple[str, ...]) -> int:
        """The last flush that ended and concerned any of these names."""
        return max(self.cells[self._done[name]] for name in names if name in self._done)

    def seat(self, seat: int) -> memoryview:
        at = self._seats_at + seat * _SEAT_CELLS
        return self.cells[at : at + _SEAT_CELLS]


class Subject:
    """A key with the model and the tenant it belongs to, and the names that flush it."""

    __slots__ = ("key", "model", "names", "tenant")

    def __init__(self, number: int) -> None:
        self.key: Key = key_named(f"subject {number}")
        self.model = f"model {number % MODELS}"
        self.tenant = f"tenant {number // MODELS % TENANTS}"
        self.names = ("all", name_of_model(self.model), name_of_tenant(self.tenant), name_of_key(self.key))


class WrongByte(Exception):
    """A value that its key does not have, or not any more."""


class Storm:
    """The parent's side; the methods that end in `_life` run in the forks."""

    def __init__(self, seed: int) -> None:
        self.world = World.make(ArenaGeometry.of(SIZE_BYTES, MAX_VALUE_BYTES, SEATS + 1))
        self.subjects = [Subject(i) for i in range(KEYS)]
        names = {name for subject in self.subjects for name in subject.names[:3]}
        names.update(subject.names[3] for subject in self.subjects[:FLUSHED_KEYS])
        self.names = sorted(names)
        self.ledger = Ledger(self.names)
        self.chance = random.Random(seed)
        self.kills: Counter[str] = Counter()
        self.faults: list[str] = []
        self.rounds = 0
        self._master = os.getpid()
        self._running: dict[int, tuple[int, bool]] = {}  # pid: seat, whether it carries a fuse
        self._told, self._tell = os.pipe()
        os.set_blocking(self._told, False)

    def run(self, seconds: float, kills: int) -> None:
        """Until so much time has passed and so many were killed, or something is wrong."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        full = self.world.fill()
        until = time.monotonic() + seconds

        def over() -> bool:
            return bool(self.faults) or (time.monotonic() >= until and self.kills.total() >= kills)

        while not over():
            before = self.kills.total()
            for seat in range(SEATS):
                self._spawn(seat)
            while not over() and self.kills.total() - before < ROUND_KILLS:
                signal.sigtimedwait({signal.SIGCHLD}, self.chance.expovariate(1 / PAUSE_S))
                self._reap()
                victim = self.chance.choice([*self._running])
                if not self._running[victim][1]:
                    self._kill(victim)
                    self._reap()
            for pid in list(self._running):
                self._kill(pid)
            self._reap(respawn=False)
            self.rounds += 1
            self.faults += self.world.faults()
            try:
                self.faults += self.world.fill_faults(full)
            except AssertionError as error:
                self.faults.append(str(error))

    def _kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        seat, _ = self._running[pid]
        self._collect(pid, *os.waitpid(pid, 0)[1:], f"instant, {_role(seat)}")

    def _collect(self, pid: int, status: int, kind: str) -> None:
        seat, _ = self._running.pop(pid)
        code = os.waitstatus_to_exitcode(status)
        row = self.ledger.seat(seat)
        if code == -signal.SIGKILL:
            self.kills[f"{kind}, in {OPS[row[_OP]]}"] += 1
        else:
            self.faults.append(f"{_role(seat)} ended with {code} in {OPS[row[_OP]]}: {self._heard()}")

    def _heard(self) -> str:
        try:
            return os.read(self._told, 65536).decode(errors="replace")
        except BlockingIOError:
            return "without a word"

    def _reap(self, respawn: bool = True) -> None:
        """Collect who killed itself, and put somebody on every empty seat."""
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            seat, _ = self._running[pid]
            self._collect(pid, status, f"injected, {_role(seat)}")
        self.world.sweep()
        if respawn:
            seated = {seat for seat, _ in self._running.values()}
            for seat in range(SEATS):
                if seat not in seated:
                    self._spawn(seat)

    def _spawn(self, seat: int) -> None:
        fuse = self.chance.random() < 0.5
        seed = self.chance.getrandbits(64)
        self.ledger.seat(seat)[_OP] = 0
        pid = os.fork()
        if pid:
            self._running[pid] = seat, fuse
            return
        code = 1
        try:
            signal.alarm(ALARM_S)
            self._live(seat, random.Random(seed), fuse)
            code = 0
        except BaseException:
            os.write(self._tell, traceback.format_exc()[-4000:].encode())
        finally:
            os._exit(code)

    # In the forks.

    def _live(self, seat: int, chance: random.Random, fuse: bool) -> None:
        role = _role(seat)
        life = self.world.join(seat, writes=role == "writer", apart=True)
        lives = {"reader": self._reader_life, "writer": self._writer_life, "flusher": self._flusher_life}
        steps = lives[role](life, self.ledger.seat(seat), chance)
        if not fuse:
            for _ in steps:
                self._orphaned()
        for _ in range(chance.randrange(4 if role == "flusher" else 100)):
            next(steps)
        left = round(10 ** chance.uniform(0, 2 if role == "flusher" else 4))

        def burn(_code: CodeType, _offset: int) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        with Tracer(CACHE_FOLDER, burn, skip=(pack.__code__,)):
            for _ in steps:
                self._orphaned()

    def _orphaned(self) -> None:
        if os.getppid() != self._master:
            os._exit(0)

    def _pick(self, chance: random.Random) -> Subject:
        return self.subjects[int(KEYS * chance.random() ** 2.5)]

    def _reader_life(self, life: Life, row: memoryview, chance: random.Random) -> Iterator[None]:
        while True:
            self._get(life, row, self._pick(chance))
            yield

    def _writer_life(self, life: Life, row: memoryview, chance: random.Random) -> Iterator[None]:
        while True:
            subject = self._pick(chance)
            kind = chance.random()
            if kind < 0.2:
                self._get(life, row, subject)
            elif kind < 0.32:
                row[_OP] = 3
                life.l1.remove(subject.key)
                row[_OP] = 0
                row[_REMOVED] += 1
            else:
                self._put(life, row, subject, chance)
            yield

    def _get(self, life: Life, row: memoryview, subject: Subject) -> None:
        row[_OP] = 1
        done = self.ledger.done(subject.names)
        stamp = life.epochs.stamp(life.scope(subject.model, subject.tenant), subject.key)
        now_ms = _now_ms()
        entry = life.l1.get(subject.key, stamp, now_ms)
        row[_OP] = 0
        row[_GETS] += 1
        if entry is None:
            return
        row[_HITS] += 1
        fault = fault_in(entry, subject.key, length_of(subject.key, entry.created_ms, MAX_VALUE_BYTES))
        if fault is None and flushes_before(entry.created_ms) < done:
            fault = f"version {entry.created_ms:#x} was made before flush {done:#x}"
        if fault is None and entry.expires_ms <= now_ms:
            fault = f"it expired at {entry.expires_ms}, it is {now_ms}"
        if fault is not None:
            raise WrongByte(fault)

    def _put(self, life: Life, row: memoryview, subject: Subject, chance: random.Random) -> None:
        row[_OP] = 2
        stamp = life.epochs.stamp(life.scope(subject.model, subject.tenant), subject.key)
        version = version_of(self.ledger.begun, chance.getrandbits(24))
        now_ms = _now_ms()
        # Some are expired when they are stored, some soon, most never.
        expires_ms = expiry_of(version, now_ms + chance.choice((-2000, -500, 60_000, 60_000, 60_000, 60_000)))
        value = value_of(subject.key, version, length_of(subject.key, version, MAX_VALUE_BYTES))
        cut = chance.randrange(len(value) + 1)
        packed = pack(subject.key, stamp, version, expires_ms, value[:cut], value[cut:])
        stored = life.l1.put(subject.key, packed, now_ms)
        row[_OP] = 0
        row[_PUTS] += 1
        row[_STORED] += stored

    def _flusher_life(self, life: Life, row: memoryview, chance: random.Random) -> Iterator[None]:
        while True:
            signal.sigtimedwait({signal.SIGCHLD}, chance.expovariate(1 / 0.01))
            name = "all" if chance.random() < 0.1 else chance.choice(self.names)
            nonce = chance.getrandbits(64)
            row[_OP] = 4
            number = self.ledger.begin()
            life.epochs.set(name, nonce)
            self.ledger.end(name, number)
            row[_OP] = 0
            row[_FLUSHES] += 1
            yield

    def report(self) -> dict[str, object]:
        """What was done, as one flat object."""
        rows = [self.ledger.seat(seat) for seat in range(SEATS)]
        names = {
            "gets": _GETS,
            "hits": _HITS,
            "puts": _PUTS,
            "stored": _STORED,
            "removed": _REMOVED,
            "flushes": _FLUSHES,
        }
        return {
            "processes": SEATS,
            "rounds": self.rounds,
            "kills": self.kills.total(),
            **{what: sum(row[cell] for row in rows) for what, cell in names.items()},
            "killed": dict(sorted(self.kills.items())),
        }


def _role(seat: int) -> str:
    return "reader" if seat < READERS else "flusher" if seat == FLUSHER else "writer"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill readers and writers of a tiny cache.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--kills", type=int, default=0, help="go on until so many were killed")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    asked = parser.parse_args()
    storm = Storm(asked.seed)
    started = time.monotonic()
    storm.run(asked.seconds, asked.kills)
    took = time.monotonic() - started
    print(json.dumps({"seed": asked.seed, "seconds": round(took, 1), **storm.report()}))
    for fault in storm.faults:
        print(fault, file=sys.stderr)
    return 1 if storm.faults else 0


if __name__ == "__main__":
    sys.exit(main())
