"""A lease counts once, whatever the paths that settle it."""

from collections import Counter

from penstock.gateway.lease import Lease


class Row:
    def __init__(self) -> None:
        self.inflight: Counter[int] = Counter()

    def add(self, backend: int, n: int) -> None:
        self.inflight[backend] += n


def test_a_lease_is_counted_from_its_making_to_its_first_settling() -> None:
    row = Row()
    first, second = Lease(row, 3), Lease(row, 3)
    assert row.inflight[3] == 2
    first.settle()
    first.settle()
    assert row.inflight[3] == 1
    second.settle()
    assert row.inflight[3] == 0


def test_leases_of_other_backends_are_left_alone() -> None:
    row = Row()
    Lease(row, 1).settle()
    Lease(row, 2)
    assert row.inflight == {1: 0, 2: 1}
