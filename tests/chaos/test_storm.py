"""The long runs over a tiny cache: every step of every scenario, and kills by the ten thousand."""

from __future__ import annotations

import random

import pytest

from ..storm.killing import kill_at_each, meet_at_each, one_each, rehearsed
from ..storm.scenarios import SCENARIOS, Scenario, medley
from ..storm.test_storm import storm, was_a_storm

MEDLEYS = 40
KILLS_A_MEDLEY = 50
KILLS = 10_000
SECONDS = 600
EVERY = 10  # of the steps; the points are all met


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_writer_killed_at_every_point_and_at_steps_all_over_leaves_a_whole_cache(
    capsys: pytest.CaptureFixture[str],
) -> None:
    chance = random.Random(20)
    with rehearsed(SCENARIOS) as made:
        spread = [(one, n) for one in made for n in range(chance.randrange(EVERY), len(one.steps), EVERY)]
        done = kill_at_each(one_each(made, chance) + spread)
    with capsys.disabled():
        print(f"\n{done}")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_writer_killed_in_the_middle_of_anything_leaves_a_whole_cache(
    capsys: pytest.CaptureFixture[str],
) -> None:
    chance = random.Random(20)
    medleys = (
        Scenario(f"medley {i}", first=medley(i, 150), then=medley(1000 + i, 15)) for i in range(MEDLEYS)
    )
    with rehearsed(medleys) as made:
        done = kill_at_each(
            [(one, chance.randrange(len(one.steps))) for one in made for _ in range(KILLS_A_MEDLEY)]
        )
    with capsys.disabled():
        print(f"\n{done}")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_writer_held_up_at_every_point_while_another_stores_leaves_a_whole_cache(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with rehearsed([one for one in SCENARIOS if not one.beside]) as made:
        done = meet_at_each(one_each(made, random.Random(21)))
    with capsys.disabled():
        print(f"\n{done}")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_minutes_and_ten_thousand_kills_bring_no_wrong_byte_no_stuck_lock_and_no_lost_room(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer = storm(capsys, SECONDS, KILLS)
    was_a_storm(answer)
    assert answer["kills"] >= KILLS
