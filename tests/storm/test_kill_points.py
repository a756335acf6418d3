"""A writer is killed before every instruction of `put` and `remove`: the cache is whole, and goes on."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import pytest

from .killing import Rehearsed, kill_at_each, kill_points, meet_at_each, one_each, rehearsed, unreached
from .scenarios import FULL, GEOMETRY, SCENARIOS, SMALL, VICTIM, Hand, Journal
from .world import World

EVERY = 60


@pytest.fixture(scope="module")
def made() -> Iterator[list[Rehearsed]]:
    with rehearsed(SCENARIOS) as made:
        yield made


def test_the_scenarios_come_to_every_instruction_that_needs_nothing_unheard_of(
    made: list[Rehearsed], capsys: pytest.CaptureFixture[str]
) -> None:
    points, reached = kill_points(made)
    missing = unreached(points, reached)
    with capsys.disabled():
        print(f"\n{len(points)} kill points in the code, {len(reached)} reached by {len(made)} scenarios")
        for reason, count in Counter(missing.values()).most_common():
            print(f"  not reached: {count}, which need {reason or 'a scenario'}")
    assert reached <= points.keys()
    assert len(reached) > 1000
    assert [f"{point}, line {points[point].line}" for point, reason in missing.items() if not reason] == []


@pytest.mark.timeout(300)
def test_a_writer_killed_at_any_instruction_leaves_a_whole_cache(
    made: list[Rehearsed], capsys: pytest.CaptureFixture[str]
) -> None:
    # A spread of them; all of them, in every way they are come to, is `make chaos`.
    done = kill_at_each(one_each(made, random.Random(20), EVERY))
    with capsys.disabled():
        print(f"\n{done}")


@pytest.mark.timeout(300)
def test_a_writer_held_up_at_any_instruction_while_another_stores_leaves_a_whole_cache(
    made: list[Rehearsed], capsys: pytest.CaptureFixture[str]
) -> None:
    alone = [one for one in made if not one.stage.scenario.beside]
    done = meet_at_each(one_each(alone, random.Random(21), EVERY))
    with capsys.disabled():
        print(f"\n{done}")


def test_a_moved_entry_is_found_when_its_old_place_is_overwritten() -> None:
    world, journal = World.make(GEOMETRY), Journal()
    hand = Hand(world, world.join(VICTIM), journal)
    hand.puts(FULL)
    assert hand.get(1)
    hand.put(50, SMALL)
    hand.puts(range(51, 53))
    assert hand.get(1)
    hand.life.leave()
    world.close()
