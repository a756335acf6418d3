"""Aligned text of commands."""

from penstock.workers.table import table


def test_columns_are_aligned_to_the_left_or_all_but_the_first_to_the_right() -> None:
    rows = [("a", "bb", "c"), ("aaa", "b", "ccc")]
    assert table(rows) == "a    bb  c\naaa  b   ccc"
    assert table(rows, right=True) == "a    bb    c\naaa   b  ccc"


def test_rows_may_be_short_and_lines_have_no_space_at_their_end() -> None:
    assert table([("a",), ("b", "c"), ("", "d")]) == "a\nb  c\n   d"
    assert table([("a", "b", ""), ("a", "", "")]) == "a  b\na"


def test_what_moves_a_cursor_is_replaced() -> None:
    assert table([("a\x1b[2J\n", "b")]) == "a?[2J?  b"
