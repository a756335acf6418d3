"""The rule for the number of gateways: its edges, its memory, and whole days of load."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.cache.layout import Geometry
from penstock.cache.rows import CounterRow
from penstock.cache.segment import Segment
from penstock.gateway.metrics import ADDED, REQUESTS, Metrics
from penstock.workers.autoscale import (
    BETWEEN_S,
    SHOWN_S,
    Direction,
    Scale,
    Seen,
    quantile,
    step,
    wanted,
)
from penstock.workers.load_watch import LoadWatch

QUIET, CALM, BUSY = Seen(0.1, 100, 0.001), Seen(0.5, 5_000, 0.003), Seen(0.9, 5_000, 0.003)
UP, HOLD, DOWN = Direction.UP, Direction.HOLD, Direction.DOWN


@pytest.mark.parametrize(
    ("seen", "direction"),
    [
        (Seen(0.70, 8_000, 0.004), HOLD),
        (Seen(0.7001, 0, 0), UP),
        (Seen(0, 8_000.1, 0), UP),
        (Seen(0, 0, 0.0041), UP),
        (Seen(0.30, 0, 0), HOLD),
        (Seen(0, 3_000, 0), HOLD),
        (Seen(0, 0, 0.002), HOLD),
        (Seen(0.2999, 2_999.9, 0.00199), DOWN),
        (Seen(0.1, 9_000, 0.001), UP),
    ],
)
def test_one_is_enough_to_go_up_and_all_are_needed_to_go_down(seen: Seen, direction: Direction) -> None:
    assert wanted(seen) is direction


def played(
    load: Callable[[float], Seen], hours: float, every_s: float = 5.0
) -> Iterator[tuple[float, Direction]]:
    """The decisions over a curve of load, with their times."""
    scale, at = Scale(0.0), 0.0
    while at < hours * 3600:
        at += every_s
        after = step(scale, load(at), at)
        if after.decided_s != scale.decided_s:
            yield at, after.direction
        scale = after


def test_who_has_just_begun_decides_after_five_minutes() -> None:
    assert next(played(lambda _: BUSY, 1)) == (BETWEEN_S, UP)


def test_decisions_are_five_minutes_apart_however_the_load_flaps() -> None:
    made = list(played(lambda at: BUSY if at % 10 else QUIET, 2))
    assert [at for at, _ in made] == [BETWEEN_S * n for n in range(1, len(made) + 1)]
    assert len(made) == 24


def test_a_decision_is_shown_for_a_minute_whatever_the_load_does() -> None:
    scale = step(Scale(0.0), BUSY, 300.0)
    shown = [step(scale, QUIET, 300.0 + s).direction for s in (1, SHOWN_S - 1, SHOWN_S, BETWEEN_S - 1)]
    assert shown == [UP, UP, HOLD, HOLD]
    assert step(scale, QUIET, 300.0 + BETWEEN_S).direction is DOWN


def test_a_load_between_the_edges_changes_nothing() -> None:
    assert list(played(lambda _: CALM, 24)) == []


def test_a_step_goes_up_while_it_is_too_much_and_down_when_it_is_over() -> None:
    def shared(at: float) -> Seen:
        """20,000 requests a second from 1 h to 2 h, over as many gateways as were decided on."""
        total = 20_000.0 if 3600 <= at < 7200 else 5_000.0
        return Seen(
            0.5 * min(1.0, total / gateways / 6_000), total / gateways, 0.0025 if total > 6e3 else 0.001
        )

    gateways, scale, at, history = 2, Scale(0.0), 0.0, []
    while at < 3 * 3600:
        at += 5
        after = step(scale, shared(at), at)
        if after.decided_s != scale.decided_s:
            gateways += int(after.direction)
            gateways = max(1, gateways)
            history.append((at, gateways))
        scale = after
    assert max(n for _, n in history) == 3, "at 6,667 each it is enough"
    during = [n for at, n in history if 3600 <= at < 7200]
    assert during == sorted(during), "never down while the load is there"
    assert gateways == 1


def test_a_day_like_a_sine_has_few_decisions_and_no_flapping() -> None:
    def day(at: float) -> Seen:
        rps = 5_500 - 4_500 * math.cos(at / 86_400 * 2 * math.pi)
        return Seen(rps / 12_000, rps, 0.001 + rps / 4e6)

    directions = [direction for _, direction in played(day, 24)]
    turns = sum(a is not b for a, b in itertools.pairwise(directions))
    assert turns == 2, "down in the night, up at noon, down in the evening"


@given(st.lists(st.sampled_from([QUIET, CALM, BUSY]), max_size=400), st.floats(0.5, 100))
def test_never_two_decisions_within_five_minutes(curve: list[Seen], every_s: float) -> None:
    scale, decided = Scale(0.0), [0.0]
    for n, seen in enumerate(curve, 1):
        after = step(scale, seen, n * every_s)
        if after.decided_s != scale.decided_s:
            decided.append(after.decided_s)
        assert after.direction is HOLD or n * every_s - after.decided_s < SHOWN_S
        scale = after
    assert all(b - a >= BETWEEN_S for a, b in itertools.pairwise(decided))


@pytest.mark.parametrize(
    ("counts", "q", "value"),
    [
        ((0, 0, 0), 0.95, 0.0),
        ((100, 0, 0), 0.5, 0.5),
        ((50, 50, 0), 0.75, 1.5),
        ((0, 100, 0), 0.95, 1.95),
        ((0, 0, 10), 0.95, 2.0),
    ],
)
def test_a_quantile_is_estimated_as_prometheus_does(counts: tuple[int, ...], q: float, value: float) -> None:
    assert quantile(q, (1.0, 2.0), counts) == pytest.approx(value)


# ---- what a gateway sees of itself


class World:
    """A segment whose counters a test moves, with a clock and CPU times of its own."""

    def __init__(self) -> None:
        self.now, self.cpu = 0.0, {1: 50.0}
        self.segment = Segment.create(None, Geometry(slots=4), owner_pid=1, owner_start=1)
        self.metrics = Metrics(CounterRow(self.segment, 0))
        self.watch = LoadWatch(self.segment, 2, lambda: self.cpu, lambda: self.now)

    def serve(self, requests: int, added_s: float) -> None:
        self.metrics.count(REQUESTS, "m", "/v1/chat/completions", "200", "MISS", n=requests)
        observe = self.metrics.histogram(ADDED, "/v1/chat/completions", "MISS")
        for _ in range(requests):
            observe(int(added_s * 1e9))

    def shown(self) -> dict[str, float]:
        return {
            metric.name.removeprefix("penstock_autoscale_"): metric.samples[0].value
            for metric in self.watch.metrics()
        }


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.segment.close()


def test_the_last_minute_is_what_counts(world: World) -> None:
    world.serve(1000, 1.0)
    for second in range(0, 125, 5):
        world.now = float(second)
        world.serve(5, 0.0009)
        world.cpu[1] += 4.0
        world.watch.look()
    shown = world.shown()
    assert shown["requests_per_second"] == 1.0
    assert shown["cpu_ratio"] == pytest.approx(0.4), "of two workers' cores"
    assert 0.0005 < shown["added_latency_p95_seconds"] <= 0.001
    assert (shown["direction"], shown["signal"]) == (0, 1)


def test_what_is_decided_is_what_is_shown(world: World) -> None:
    for second in range(0, 305, 5):
        world.now = float(second)
        world.serve(1, 0.006)
        world.watch.look()
    assert (world.shown()["direction"], world.shown()["signal"]) == (1, 2)


def test_a_worker_that_took_anothers_place_has_worked_since(world: World) -> None:
    world.watch.look()
    world.now, world.cpu = 10.0, {2: 5.0}
    world.watch.look()
    assert world.shown()["cpu_ratio"] == pytest.approx(0.25)
