"""The controller's side of the backend table."""

from collections.abc import Iterator

import pytest

from penstock.cache.layout import Geometry
from penstock.cache.segment import Segment
from penstock.cache.table import DOWN, UNKNOWN, UP, BackendTable
from penstock.gateway.config import Backend, Config, Model, Published
from penstock.workers import store
from penstock.workers.board import Board, Load


@pytest.fixture
def segment() -> Iterator[Segment]:
    made = Segment.create(None, Geometry(slots=2, backends=8, models=8), owner_pid=1, owner_start=1)
    yield made
    made.close()


class Clock:
    def __init__(self) -> None:
        self.ns = 1000

    def __call__(self) -> int:
        return self.ns


def _config(*urls: str) -> Config:
    return Config(models={"m": Model(backends=tuple(Backend(url=url) for url in urls))})


def _board(segment: Segment, clock: Clock, published: Published) -> Board:
    board = Board(BackendTable(segment), clock)
    board.swap(published)
    return board


def test_all_of_one_generation_begin_at_one_moment(segment: Segment) -> None:
    class Running(Clock):
        def __call__(self) -> int:
            self.ns += 1
            return self.ns

    board = _board(segment, Running(), store.first(_config("http://a", "http://b")))
    assert board.row(0).since_ns == board.row(1).since_ns != 0
    assert board.health_of(0) == UNKNOWN


def test_what_was_down_and_is_up_begins_anew_and_what_was_never_down_does_not(segment: Segment) -> None:
    clock = Clock()
    board = _board(segment, clock, store.first(_config("http://a", "http://b")))
    clock.ns = 2000
    board.judge([0], UP)
    board.judge([1], DOWN)
    clock.ns = 3000
    board.judge([0, 1], UP)
    rows = [BackendTable(segment).read(index) for index in (0, 1)]
    assert [row and (row.health, row.since_ns) for row in rows] == [(UP, 1000), (UP, 3000)]


def test_a_new_controller_takes_over_verdict_drain_and_beginning(segment: Segment) -> None:
    clock = Clock()
    published = store.first(_config("http://a"))
    first = _board(segment, clock, published)
    first.judge([0], DOWN)
    clock.ns = 2000
    first.judge([0], UP)
    first.report([0], Load(waiting=3, running=4, kv_permille=5))
    first.drain(0, True)
    clock.ns = 9000
    row = _board(segment, clock, published).row(0)
    assert (row.health, row.drained, row.since_ns) == (UP, 1, 2000)
    assert (row.waiting, row.running, row.kv_permille, row.updated_ns) == (3, 4, 5, 2000)


def test_a_reload_keeps_what_stays_and_a_stranger_in_its_row_inherits_nothing(segment: Segment) -> None:
    clock = Clock()
    first = store.first(_config("http://a", "http://b"))
    board = _board(segment, clock, first)
    for index in (0, 1):
        board.judge([index], DOWN)
        board.drain(index, True)
    clock.ns = 5000
    second = store.following(_config("http://b"), first)
    board.swap(second)
    third = store.following(_config("http://b", "http://c"), second)
    board.swap(third)
    assert third.indices == {"m\nhttp://b": 1, "m\nhttp://c": 0}
    assert (board.row(1).health, board.row(1).drained, board.row(1).since_ns) == (DOWN, 1, 1000)
    assert (board.row(0).health, board.row(0).drained, board.row(0).since_ns) == (UNKNOWN, 0, 5000)
    assert board.row(0) == BackendTable(segment).read(0)


def test_who_comes_back_from_a_drain_begins_slowly_and_a_second_word_changes_nothing(
    segment: Segment,
) -> None:
    clock = Clock()
    board = _board(segment, clock, store.first(_config("http://a")))
    board.drain(0, True)
    clock.ns = 2000
    board.drain(0, False)
    clock.ns = 3000
    board.drain(0, False)
    assert (board.row(0).drained, board.row(0).since_ns) == (0, 2000)


def test_a_row_in_which_nothing_changed_is_not_written(segment: Segment) -> None:
    clock = Clock()
    published = store.first(_config("http://a"))
    board = _board(segment, clock, published)
    board.judge([0], UP)
    stamp = BackendTable(segment).stamp(0)
    clock.ns = 2000
    board.judge([0], UP)
    board.swap(published)
    assert BackendTable(segment).stamp(0) == stamp
