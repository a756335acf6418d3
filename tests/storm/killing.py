"""Every kill point of a scenario, found by a rehearsal, and one kill at one of them."""

from __future__ import annotations

import linecache
import os
import random
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import CodeType

from penstock.cache import arena, entry, epoch, index, l1, locks, log, slots
from penstock.cache.arena import ArenaGeometry
from penstock.cache.l1 import L1

from .points import Listed, Point, Tracer, listed, point_of, reachable_codes
from .scenarios import Do, Hand, Scenario, Stage
from .world import World

CACHE_FOLDER = os.path.dirname(os.path.realpath(entry.__file__))
#: Where `put` and `remove` may get to. The rest of the package belongs to the control segment.
MODULES = (l1, log, index, entry, arena, epoch, locks, slots)
STARTS = (L1.put.__code__, L1.remove.__code__)
CALLS = (*STARTS, L1.close.__code__)

_RACE = "another process's store at that moment"
_DAMAGE = "bytes that none of ours stores"
#: Lines, by function, that no writer by itself comes to in full, and what they need.
EXCUSED = {
    ("Stripes.try_lock", "return False"): "a second try of one description",
    ("Stripes.unlock", "if i in self._held:"): "a lock given back that is not held",
    ("Index._free", "return start if oldest is None else oldest[1]"): "a set without a word",
    ("Index.find", "return at"): _RACE,
    ("Index.mark", "if self.words[at] == before:"): _RACE,
    ("Log._choose", "mine = (not unfinished, sequence if sequence <= last else 0)"): _DAMAGE,
    ("Log._choose", "return None"): "a process that only reads",
    ("Log._take", "found = self._choose(size)"): _RACE,
    ("Log._take", "return False"): _RACE,
    ("Log._take", "self._lock.unlock(0)"): _RACE,
    (
        "Log._clean",
        "c = e  # damaged: what is behind it cannot be walked, and stays until it is overwritten",
    ): _DAMAGE,
    ("Log._clean", "break"): _DAMAGE,
    ("_fields", "return 0, 0, 0"): _DAMAGE,
    ("alive", "if not 0 <= index < segment.geometry.slots:"): _DAMAGE,
    ("alive", "return False"): _DAMAGE,
}

Step = tuple[CodeType, int]
Way = frozenset[str]

_FAULTS_SHOWN = 5

_OTHERWISE = 3  # exit status of a victim that came another way than the rehearsal


def _tracer(look: Callable[[CodeType, int], object]) -> Tracer:
    return Tracer(CACHE_FOLDER, look, skip=(entry.pack.__code__,))


class Rehearsed:
    """A scenario with every step that its victim goes through, in order."""

    def __init__(self, scenario: Scenario, full: int) -> None:
        self.stage = Stage(scenario, full)
        self.steps: list[Step] = []

        def act(then: Callable[[], object]) -> None:
            with _tracer(lambda code, offset: self.steps.append((code, offset))):
                then()

        self.stage.rehearse(act)
        self._first = {
            code: min(at for it, at in self.steps if it is code) for code in {it for it, _ in self.steps}
        }

    def points(self) -> list[Point]:
        return [point_of(*step) for step in self.steps]

    def ways(self) -> list[Way]:
        """By step, the functions that the call which is under way has entered so far."""
        found: list[Way] = []
        way: Way = frozenset()
        for code, offset in self.steps:
            if code in CALLS and offset == self._first[code]:
                way = frozenset()
            if code.co_qualname not in way:
                way |= {code.co_qualname}
            found.append(way)
        return found

    def kill_at(self, number: int) -> list[str]:
        """Kill a victim before step `number`; what is wrong afterwards."""
        code, offset = self.steps[number]
        expected = point_of(code, offset)

        def act(then: Callable[[], object]) -> None:
            left = number

            def look(code_now: CodeType, offset_now: int) -> None:
                nonlocal left
                if left == 0:
                    if (code_now, offset_now) != (code, offset):
                        os._exit(_OTHERWISE)
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1

            with _tracer(look):
                then()

        status = self.stage.play(act)
        if status != -signal.SIGKILL:
            return [
                f"{self.stage.scenario.name}, step {number}: not killed at {expected}, ended with {status}"
            ]
        return [
            f"{self.stage.scenario.name}, killed at step {number}, {expected}: {it}"
            for it in self.stage.faults()
        ]

    def meet_at(self, number: int, meanwhile: Do) -> list[str]:
        """Have another worker do something before step `number`, as the scheduler might; what is wrong afterwards."""

        def act(then: Callable[[], object], other: Callable[[], object]) -> None:
            left = number

            def look(_code: CodeType, _offset: int) -> None:
                nonlocal left
                if left == 0:
                    other()  # tracing does not follow what it calls itself
                left -= 1

            with _tracer(look):
                then()

        point = point_of(*self.steps[number])
        return [
            f"{self.stage.scenario.name}, met at step {number}, {point}: {it}"
            for it in self.stage.meet(act, meanwhile)
        ]


@contextmanager
def rehearsed(scenarios: Iterable[Scenario]) -> Iterator[list[Rehearsed]]:
    """All of them, closed at the end."""
    full: dict[ArenaGeometry, int] = {}
    made: list[Rehearsed] = []
    try:
        for scenario in scenarios:
            geometry = scenario.geometry
            if geometry not in full:
                empty = World.make(geometry)
                full[geometry] = empty.fill()
                empty.close()
            made.append(Rehearsed(scenario, full[geometry]))
        yield made
    finally:
        for one in made:
            one.stage.close()


def unreached(points: dict[Point, Listed], reached: set[Point]) -> dict[Point, str]:
    """The points that no rehearsal came to, and what they need; "" for those that had no excuse."""
    return {
        point: it.needs or EXCUSED.get((point.function, source_line(point, it)), "")
        for point, it in points.items()
        if point not in reached
    }


def source_line(point: Point, it: Listed) -> str:
    """The text of a point's line."""
    return linecache.getline(os.path.join(CACHE_FOLDER, point.file), it.line).strip()


def kill_points(made: Iterable[Rehearsed]) -> tuple[dict[Point, Listed], set[Point]]:
    """What the code has, and what the rehearsals reached."""
    entered = {code: None for one in made for code, _ in one.steps}
    return listed(reachable_codes(MODULES, STARTS, entered)), {p for one in made for p in one.points()}


def one_each(made: list[Rehearsed], chance: random.Random, every: int = 1) -> list[tuple[Rehearsed, int]]:
    """For every point and way to it, or every so many-th of them, one of the steps that come to it so."""
    steps: dict[tuple[Point, Way], list[tuple[Rehearsed, int]]] = {}
    for one in made:
        for number, (point, way) in enumerate(zip(one.points(), one.ways(), strict=True)):
            steps.setdefault((point, way), []).append((one, number))
    order = sorted(steps, key=lambda at: (at[0], sorted(at[1])))
    return [chance.choice(steps[at]) for at in order[chance.randrange(every) :: every]]


def meddle(hand: Hand) -> None:
    """What another worker does in the middle: it opens a segment, replaces, removes and reads."""
    for number in (1, 50, 51, 200, 1001):
        hand.put(number, 500)
    hand.remove(2)
    for number in range(60):
        hand.get(number)


def meet_at_each(chosen: list[tuple[Rehearsed, int]]) -> str:
    """Another worker comes in before each of these steps. Raises AssertionError with the first faults."""
    found: list[str] = []
    for one, number in chosen:
        found += one.meet_at(number, meddle)
        if len(found) >= _FAULTS_SHOWN:
            break
    assert not found, "\n".join(found)
    return f"{len(chosen)} meetings at {len({one.steps[number] for one, number in chosen})} points"


def kill_at_each(chosen: list[tuple[Rehearsed, int]]) -> str:
    """Kill a victim before each of these steps; how many that were. Raises AssertionError with the first faults."""
    found: list[str] = []
    for one, number in chosen:
        found += one.kill_at(number)
        if len(found) >= _FAULTS_SHOWN:
            break
    assert not found, "\n".join(found)
    return f"{len(chosen)} kills at {len({one.steps[number] for one, number in chosen})} points"
