"""Situations in which a writer of the cache is killed, and what may be read afterwards.

Strategy: a scenario is the lives before (who wrote, who died, who is still there), what the victim does first, and
what it does when it is killed. All goes through a `Hand`, which notes every call in a journal that outlives the
kill; from it follows exactly which versions of which key may still be read.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from penstock.cache.arena import ROW_CELLS, WAYS, ArenaGeometry
from penstock.cache.digest import Key
from penstock.cache.entry import pack
from penstock.cache.layout import CELL_BYTES
from penstock.cache.log import OWNER

from .values import expiry_of, fault_in, key_named, value_of
from .world import Life, World

GEOMETRY = ArenaGeometry(slots=4, max_entry_bytes=1800, sets=8, segments=6, segment_bytes=4096)
MEETING = 2
VICTIM, BEFORE, OTHER = 0, 1, 1  # slots; who is beside the victim may have followed on who was before it
BIG = 900  # four fit into a segment
SMALL = 300
TINY = 1
LONG_MS = 3_600_000
ALARM_S = 300  # a victim that cannot go on ends by this, and that is a fault

#: From this number on all keys begin with the bytes that the index goes by.
SAME_PLACE = 1000
INDEXED_BYTES = 10

_PUT, _REMOVE = 1, 2
_BEGUN, _TAKEN, _REFUSED = 0, 1, 2
_LENGTHS = 1 << 16
_CALLS = 4096

Do = Callable[["Hand"], object]


class Journal:
    """What was called and what of it ended, in memory that no kill takes away. One writer at a time."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, 8 * (2 + 4 * _CALLS))
        self._cells = memoryview(self._map).cast("Q")

    @property
    def now_ms(self) -> int:
        return self._cells[1]

    @now_ms.setter
    def now_ms(self, now_ms: int) -> None:
        self._cells[1] = now_ms

    def begin(self, kind: int, key: int, version: int) -> int:
        number = self._cells[0]
        at = 2 + 4 * number
        self._cells[at], self._cells[at + 1], self._cells[at + 2], self._cells[at + 3] = (
            kind,
            key,
            version,
            _BEGUN,
        )
        self._cells[0] = number + 1
        return number

    def end(self, number: int, taken: bool) -> None:
        self._cells[2 + 4 * number + 3] = _TAKEN if taken else _REFUSED

    def copy(self) -> bytes:
        return self._map[: 8 * (2 + 4 * self._cells[0])]

    def put_back(self, copy: bytes) -> None:
        self._map[: len(copy)] = copy

    @property
    def calls(self) -> int:
        return self._cells[0]

    def stored(self) -> dict[int, set[int]]:
        """By key number, all versions that ever were put: what a reader may find where writers met."""
        found: dict[int, set[int]] = {}
        for number in range(self._cells[0]):
            kind, key, version, _ = self._cells[2 + 4 * number : 6 + 4 * number]
            found.setdefault(key, set()).update({version} if kind == _PUT else ())
        return found

    def readable(self) -> dict[int, set[int]]:
        """By key number, the versions that a reader may find; a miss is always allowed."""
        found: dict[int, set[int]] = {}
        for number in range(self._cells[0]):
            kind, key, version, ended = self._cells[2 + 4 * number : 6 + 4 * number]
            versions = found.setdefault(key, set())
            if ended == _TAKEN:
                versions.clear()
            if kind == _PUT and ended != _REFUSED:
                versions.add(version)
        return found


class Hand:
    """One life's calls. Keys are numbers, values follow from key and version."""

    def __init__(self, world: World, life: Life, journal: Journal) -> None:
        self.world = world
        self.life = life
        self._journal = journal

    def put(self, number: int, length: int = BIG, ttl_ms: int = LONG_MS) -> bool:
        version = (self._journal.calls + 1) * _LENGTHS + length
        key, now_ms = key_of_number(number), self._journal.now_ms
        packed = pack(key, 0, version, expiry_of(version, now_ms + ttl_ms), value_of(key, version, length))
        call = self._journal.begin(_PUT, number, version)
        taken = self.life.l1.put(key, packed, now_ms)
        self._journal.end(call, taken)
        return taken

    def puts(self, numbers: range, length: int = BIG, ttl_ms: int = LONG_MS) -> None:
        for number in numbers:
            self.put(number, length, ttl_ms)

    def remove(self, number: int) -> None:
        call = self._journal.begin(_REMOVE, number, 0)
        self.life.l1.remove(key_of_number(number))
        self._journal.end(call, True)

    def get(self, number: int) -> bool:
        return self.life.l1.get(key_of_number(number), 0, self._journal.now_ms) is not None

    def gets(self, numbers: range) -> None:
        for number in numbers:
            self.get(number)

    def later(self, ms: int) -> None:
        """Let time pass."""
        self._journal.now_ms += ms


_keys: dict[int, Key] = {}


def key_of_number(number: int) -> Key:
    key = _keys.get(number)
    if key is None:
        key = key_named(f"number {number}")
        if number >= SAME_PLACE:
            key = Key(b"same place"[:INDEXED_BYTES] + key[INDEXED_BYTES:])
        _keys[number] = key
    return key


@dataclass(frozen=True, slots=True)
class Scenario:
    """before: by a life that is dead when the victim starts, `left` tells whether it had closed. beside: by one
    that is still there. first, then: by the victim; it is killed in `then`. locked: somebody else holds the lock.
    """

    name: str
    then: Do
    first: Do = lambda hand: None
    before: Do | None = None
    left: bool = False
    beside: tuple[Do, ...] = ()
    locked: bool = False
    geometry: ArenaGeometry = field(default=GEOMETRY)


def wrong(life: Life, journal: Journal, readable: dict[int, set[int]]) -> list[str]:
    """What a reader finds that it must not find."""
    found = []
    for number in sorted(readable):
        key = key_of_number(number)
        entry = life.l1.get(key, 0, journal.now_ms)
        if entry is None:
            continue
        fault = fault_in(entry, key, entry.created_ms % _LENGTHS)
        if fault is None and entry.created_ms not in readable[number]:
            fault = f"version {entry.created_ms:#x} of key {number} is not one of {readable[number]}"
        if fault is None and entry.expires_ms <= journal.now_ms:
            fault = f"key {number} expired at {entry.expires_ms}"
        if fault is not None:
            found.append(fault)
    return found


class Stage:
    """A scenario set up once, to be played and killed as often as wanted."""

    def __init__(self, scenario: Scenario, full: int) -> None:
        """full: how many entries of `World.fill` such a cache has room for."""
        self.scenario = scenario
        self._full = full
        self._set_up()

    def _set_up(self) -> None:
        scenario = self.scenario
        self.world = World.make(scenario.geometry)
        self.journal = Journal()
        self.journal.now_ms = 1_000_000
        if scenario.before is not None:
            life = self.world.join(BEFORE)
            scenario.before(Hand(self.world, life, self.journal))
            if scenario.left:
                life.leave()
            else:
                life.vanish()
        self._beside = [self.world.join(OTHER + i) for i in range(len(scenario.beside))]
        for do, life in zip(scenario.beside, self._beside, strict=True):
            do(Hand(self.world, life, self.journal))
        self._arena = self.world.copy()
        self._noted = self.journal.copy()

    def close(self) -> None:
        for life in self._beside:
            life.vanish()
        self.world.close()

    def rehearse(self, act: Callable[[Callable[[], object]], object]) -> None:
        """The same as `play`, but in this process, where the victim vanishes in the end."""
        self._put_back()
        life = self.world.join(VICTIM, apart=True)
        hand = Hand(self.world, life, self.journal)
        self.scenario.first(hand)
        act(lambda: self.scenario.then(hand))
        self._unlock()
        life.vanish()

    def meet(
        self, act: Callable[[Callable[[], object], Callable[[], object]], object], meanwhile: Do
    ) -> list[str]:
        """Nobody is killed: `act` gets what the victim does, and what another worker does in the middle of that.

        Both go on for a while. What is wrong afterwards, in this process.
        """
        self._put_back()
        lives = [self.world.join(VICTIM, apart=True), self.world.join(MEETING, apart=True)]
        hands = [Hand(self.world, life, self.journal) for life in lives]
        self.scenario.first(hands[0])
        act(lambda: self.scenario.then(hands[0]), lambda: meanwhile(hands[1]))
        found = []
        for number in range(300, 320):
            hand = hands[number % 2]
            if hand.put(number, SMALL) and not hand.get(number):
                found.append(f"key {number} was stored and cannot be read")
        self._unlock()
        found += self.world.faults()
        owners = Counter((row.slot, row.generation) for row in self.world.rows() if row.generation)
        found += [f"worker {owner} has {count} segments" for owner, count in owners.items() if count > 1]
        found += wrong(lives[0], self.journal, self.journal.stored())
        for life in lives:
            life.vanish()
        return found

    def play(self, act: Callable[[Callable[[], object]], object]) -> int:
        """Fork the victim; `act` is called there with what it is to do. The exit status, negative for a signal."""
        self._put_back()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.alarm(ALARM_S)
                hand = Hand(self.world, self.world.join(VICTIM, apart=True), self.journal)
                self.scenario.first(hand)
                act(lambda: self.scenario.then(hand))
                code = 0
            finally:
                os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self._unlock()
        return status

    def _put_back(self) -> None:
        self.world.put_back(self._arena)
        self.journal.put_back(self._noted)
        if self.scenario.locked:
            assert self.world.arena.lock.try_lock(0)

    def _unlock(self) -> None:
        if self.scenario.locked:
            self.world.arena.lock.unlock(0)

    def faults(self) -> list[str]:
        """What is wrong with the cache now that the victim is dead: first with those beside it, then without."""
        found = self.world.faults()
        life = self.world.join(VICTIM, writes=False)
        found += wrong(life, self.journal, self.journal.readable())
        life.vanish()
        if self._beside:
            if self.scenario.geometry.segments > len(self._beside):
                found += self._filled(found)
            for life in self._beside:
                life.vanish()
            self._beside.clear()
        found += self._filled(found)
        if self.scenario.beside:
            self.world.close()
            self._set_up()
        return found

    def _filled(self, found: list[str]) -> list[str]:
        """What a new writer finds wrong, unless something was found before."""
        try:
            return [] if found else self.world.fill_faults(self._full, self._beside)
        except AssertionError as error:
            return [str(error)]


def medley(seed: int, calls: int) -> Do:
    """So many calls at random."""

    def do(hand: Hand) -> None:
        chance = random.Random(seed)
        for _ in range(calls):
            number, kind = int(40 * chance.random() ** 1.5), chance.random()
            if kind < 0.6:
                length = chance.choice((TINY, SMALL, SMALL, BIG, 1800))
                hand.put(number, length, chance.choice((LONG_MS, LONG_MS, LONG_MS, 40)))
            elif kind < 0.9:
                hand.get(number)
            elif kind < 0.95:
                hand.remove(number)
            else:
                hand.later(10)

    return do


FULL = range(24)  # as many BIG entries as all segments hold


def _fill(hand: Hand) -> None:
    hand.puts(FULL)


def _fill_and_read(*numbers: int) -> Do:
    def do(hand: Hand) -> None:
        hand.puts(FULL)
        for number in numbers:
            assert hand.get(number)

    return do


def _overflow(hand: Hand) -> None:
    hand.puts(range(150), TINY)


def _overflow_and_read(hand: Hand) -> None:
    for number in range(150):
        hand.put(number, TINY)
        hand.get(number)


def _expire(hand: Hand) -> None:
    hand.puts(range(4), BIG, ttl_ms=5000)
    hand.puts(range(4, 24))
    for number in range(4):
        assert hand.get(number)
    hand.later(10_000)


def _unfinished(hand: Hand) -> None:
    hand.puts(FULL)
    hand.puts(range(30, 32))


def _some(hand: Hand) -> None:
    hand.puts(range(40, 42))


def _many_read(hand: Hand) -> None:
    hand.puts(range(100, 130), TINY)
    hand.puts(range(21))
    hand.gets(range(100, 130))


def _overflow_and_expire(hand: Hand) -> None:
    hand.puts(range(150), TINY, ttl_ms=1000)
    hand.later(10_000)


def _taken_over(hand: Hand) -> None:
    hand.puts(range(3))
    hand.life.arena.reset_owners()


def _taken_over_by_a_namesake(hand: Hand) -> None:
    """By a gateway whose worker has the same slot and generation, and the same segment."""
    hand.puts(range(3))
    arena = hand.life.arena
    at = arena.geometry.rows_at // CELL_BYTES + OWNER
    owners = arena.cells[at : at + arena.geometry.segments * ROW_CELLS : ROW_CELLS].tolist()
    arena.reset_owners()
    for i, owner in enumerate(owners):
        arena.cells[at + i * ROW_CELLS] = owner


def _replaced(hand: Hand) -> None:
    hand.puts(range(3))
    hand.puts(range(23))


def _one_home(hand: Hand) -> None:
    hand.puts(range(SAME_PLACE, SAME_PLACE + 6), SMALL)
    hand.gets(range(SAME_PLACE + 3, SAME_PLACE + 6))
    hand.puts(range(22))


def _read_and_removed(hand: Hand) -> None:
    hand.puts(range(8), SMALL)
    hand.gets(range(8))
    for number in range(8):
        hand.remove(number)


def _same_place(hand: Hand) -> None:
    hand.puts(range(SAME_PLACE, SAME_PLACE + 3), SMALL)


def _doubled(hand: Hand) -> None:
    """Every word twice, as two writers leave it that store one key at the same moment."""
    hand.puts(range(8), SMALL)
    cells, first, sets = _index_of(hand)
    for start in range(first, first + sets * WAYS, WAYS):
        words = [word for word in cells[start : start + WAYS] if word][: WAYS // 2]
        empty = [cell for cell in range(start, start + WAYS) if not cells[cell]]
        for cell, word in zip(empty, words, strict=False):
            cells[cell] = word


def _astray(hand: Hand) -> None:
    """No word free and one in each set that points behind the file's end, one at another set's entry."""
    hand.puts(range(4), SMALL)
    cells, first, sets = _index_of(hand)
    there = next(word for word in cells[first : first + sets * WAYS] if word)
    far = there | 0xFFFF_FFFF
    for number, start in enumerate(range(first, first + sets * WAYS, WAYS)):
        for cell in range(start, start + WAYS):
            cells[cell] = cells[cell] or (far if number % 2 else there)


def _index_of(hand: Hand) -> tuple[memoryview, int, int]:
    geometry = hand.life.arena.geometry
    return hand.life.arena.cells, geometry.index_at // CELL_BYTES, geometry.sets


ONE_EACH = ArenaGeometry(slots=4, max_entry_bytes=1800, sets=8, segments=2, segment_bytes=4096)

SCENARIOS = (
    Scenario("the first put of all", then=lambda h: h.put(50)),
    Scenario("a plain append", first=lambda h: h.put(1), then=lambda h: h.put(50)),
    Scenario("an entry of the largest size", first=lambda h: h.put(1), then=lambda h: h.put(50, 1800)),
    Scenario("one too large", first=lambda h: h.put(1), then=lambda h: h.put(50, 2500)),
    Scenario("a replacement", first=lambda h: h.put(1), then=lambda h: h.put(1, SMALL)),
    Scenario("a removal", first=lambda h: h.puts(range(3)), then=lambda h: h.remove(1)),
    Scenario("old ones that were replaced", first=_replaced, then=lambda h: h.puts(range(50, 53))),
    Scenario("old ones that share a home", first=_one_home, then=lambda h: h.puts(range(50, 53))),
    Scenario("words that are used again", first=_read_and_removed, then=lambda h: h.puts(range(3), SMALL)),
    Scenario("a removal of nothing", first=lambda h: h.puts(range(3)), then=lambda h: h.remove(9)),
    Scenario("a set that overflows", first=_overflow, then=lambda h: h.puts(range(200, 203), TINY)),
    Scenario(
        "a set of read ones overflows", first=_overflow_and_read, then=lambda h: h.puts(range(200, 203), TINY)
    ),
    Scenario("a replacement in a full set", first=_overflow, then=lambda h: h.puts(range(140, 150), TINY)),
    Scenario("a sealed segment is taken and emptied", first=_fill, then=lambda h: h.puts(range(50, 53))),
    Scenario(
        "an entry that was read stays in place",
        first=_fill_and_read(0, 1),
        then=lambda h: h.puts(range(50, 53)),
    ),
    Scenario(
        "an entry that was read is moved",
        first=_fill_and_read(1, 3),
        then=lambda h: (h.put(50, SMALL), h.puts(range(51, 54))),
    ),
    Scenario(
        "all were read",
        first=_fill_and_read(*FULL),
        then=lambda h: h.put(50),
    ),
    Scenario(
        "more were read than a put carries", first=_many_read, then=lambda h: h.puts(range(50, 52), 1800)
    ),
    Scenario("old ones that have expired", first=_expire, then=lambda h: h.puts(range(50, 53))),
    Scenario("a dead worker's segment is resumed", before=_unfinished, then=lambda h: h.puts(range(50, 53))),
    Scenario("a dead worker's first segment", before=_some, then=lambda h: h.puts(range(50, 53))),
    Scenario("a dead worker's full cache", before=_fill, then=lambda h: h.puts(range(50, 53))),
    Scenario(
        "a segment that was given up", before=_unfinished, left=True, then=lambda h: h.puts(range(50, 53))
    ),
    Scenario("a worker beside it", beside=(_unfinished,), then=lambda h: h.puts(range(50, 53))),
    Scenario(
        "a dead worker's successor goes on",
        before=_unfinished,
        beside=(_some,),
        then=lambda h: h.puts(range(50, 53)),
    ),
    Scenario("the lock is not got", locked=True, then=lambda h: h.put(50)),
    Scenario(
        "others have all segments",
        beside=(_some,) * 2,
        geometry=ONE_EACH,
        then=lambda h: h.puts(range(50, 62)),
    ),
    Scenario(
        "one segment is all there is",
        beside=(_some,),
        geometry=ONE_EACH,
        then=lambda h: h.puts(range(50, 57)),
    ),
    Scenario(
        "a full set has expired", first=_overflow_and_expire, then=lambda h: h.puts(range(200, 203), TINY)
    ),
    Scenario(
        "keys that the index takes for one",
        first=_same_place,
        then=lambda h: (
            h.put(1003, SMALL),
            h.put(1001, SMALL),
            h.remove(1002),
            h.puts(range(1004, 1010), TINY),
        ),
    ),
    Scenario(
        "a key with two words", first=_doubled, then=lambda h: (h.put(1, SMALL), h.remove(2), h.put(3, SMALL))
    ),
    Scenario("words that point astray", first=_astray, then=lambda h: h.puts(range(10, 24), TINY)),
    Scenario("a new gateway has the file", first=_taken_over, then=lambda h: (h.put(50), h.life.l1.close())),
    Scenario(
        "a namesake of a new gateway has the segment",
        first=_taken_over_by_a_namesake,
        then=lambda h: (h.put(50), h.life.l1.close()),
    ),
    Scenario("a worker that leaves with nothing", then=lambda h: h.life.l1.close()),
    Scenario("a worker that leaves", first=_unfinished, then=lambda h: h.life.l1.close()),
)
