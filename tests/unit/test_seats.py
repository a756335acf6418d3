"""The supervisor's table of processes."""

from penstock.workers.seats import Child, Part, Seat


def _sit(seat: Seat, pid: int, part: Part = Part.HOLDER, *, ready: bool = True) -> Child:
    child = Child(pid, -1, part, ready=ready)
    seat.children.append(child)
    return child


def test_an_empty_seat_wants_a_holder_and_a_taken_one_nobody() -> None:
    seat = Seat(0)
    assert seat.wants_start(0.0) is Part.HOLDER
    _sit(seat, 1)
    assert seat.wants_start(0.0) is None


def test_a_replacement_waits_for_its_back_off() -> None:
    seat = Seat(0)
    for _ in range(6):
        delay_s = seat.died(_sit(seat, 1), 10.0)
    assert delay_s > 0
    assert seat.wants_start(10.0) is None
    assert seat.wants_start(10.0 + delay_s) is Part.HOLDER


def test_a_rolling_seat_wants_a_successor_beside_its_holder() -> None:
    seat = Seat(0)
    old = _sit(seat, 1)
    seat.rolling = True
    assert seat.wants_start(0.0) is Part.SUCCESSOR
    new = _sit(seat, 2, Part.SUCCESSOR)
    assert seat.succeed() is old
    assert (old.part, new.part, seat.rolling) == (Part.LEAVING, Part.HOLDER, False)


def test_nobody_is_started_beside_two_that_live() -> None:
    seat = Seat(0)
    _sit(seat, 1, Part.LEAVING)
    _sit(seat, 2)
    seat.rolling = True
    assert seat.wants_start(0.0) is None


def test_a_process_told_to_leave_is_not_missed() -> None:
    seat = Seat(0)
    leaving = _sit(seat, 1, Part.LEAVING)
    _sit(seat, 2)
    assert seat.died(leaving, 0.0) == 0.0
    assert seat.wants_start(0.0) is None


def test_a_seat_whose_holder_leaves_by_itself_wants_another_at_once() -> None:
    seat = Seat(0)
    _sit(seat, 1).part = Part.LEAVING
    assert seat.wants_start(0.0) is Part.HOLDER


def test_a_successor_takes_the_seat_when_its_holder_dies_first() -> None:
    seat = Seat(0)
    old, new = _sit(seat, 1), _sit(seat, 2, Part.SUCCESSOR, ready=False)
    seat.rolling = True
    seat.died(old, 0.0)
    assert new.part is Part.HOLDER
    assert not seat.rolling
    assert seat.wants_start(0.0) is None


def test_a_dead_successor_is_counted_and_tried_again() -> None:
    seat = Seat(0)
    _sit(seat, 1)
    seat.rolling = True
    seat.died(_sit(seat, 2, Part.SUCCESSOR, ready=False), 0.0)
    assert seat.failed_successors == 1
    assert seat.wants_start(0.0) is Part.SUCCESSOR
