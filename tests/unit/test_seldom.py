"""One line a second, and how many it stands for."""

from penstock.gateway.seldom import Seldom


def test_a_line_is_due_once_a_second_and_counts_what_it_stands_for() -> None:
    seldom = Seldom()
    assert seldom.due("a", 10.0) == 0
    assert [seldom.due("a", 10.0 + tenth / 10) for tenth in range(1, 10)] == [None] * 9
    assert seldom.due("b", 10.5) == 0
    assert seldom.due("a", 11.0) == 9
    assert seldom.due("a", 12.5) == 0


def test_keys_without_end_do_not_pile_up() -> None:
    seldom = Seldom()
    for number in range(5000):
        assert seldom.due(number, 1.0) == 0
    assert len(seldom._next_s) <= 1024
