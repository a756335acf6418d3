"""An answer as the cache keeps it comes back as it was; what is no answer is refused."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.cache.digest import Key
from penstock.cache.entry import Entry
from penstock.cache.entry import pack as pack_entry
from penstock.cache.entry import read as read_entry
from penstock.gateway.record import Reader, Writer, cut

KEY = Key(bytes(32))

fields = st.lists(
    st.tuples(
        st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True).filter(
            lambda name: name not in ("x-request-id", "age", "connection")
        ),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40),
    ),
    max_size=8,
)


def pack(
    status: int, named: list[tuple[str, str]], body: bytes, lengths: list[int] | None = None
) -> tuple[bytes | bytearray, ...]:
    head = Writer().head(status, named)
    assert head is not None
    return cut(head, body, lengths) if lengths else (head, body)


def entry(*value: bytes | bytearray) -> Entry:
    found = read_entry(pack_entry(KEY, 0, 0, 10, *value), KEY, 0, 0)
    assert found is not None
    return found


@given(st.integers(200, 299), fields, st.lists(st.binary(max_size=50), max_size=12))
def test_status_fields_body_and_pieces_come_back(
    status: int, given_fields: list[tuple[str, str]], pieces: list[bytes]
) -> None:
    reader = Reader()
    for _ in range(2):  # the second time the head is known
        record = reader.read(entry(*pack(status, given_fields, b"".join(pieces), [len(p) for p in pieces])))
        assert (record.status, record.fields, record.body) == (status, given_fields, b"".join(pieces))
        if pieces:
            assert list(record.pieces()) == pieces


def test_what_belongs_to_one_exchange_is_not_kept() -> None:
    of_one = [("x-request-id", "r"), ("age", "3"), ("connection", "close")]
    record = Reader().read(entry(*pack(200, [*of_one, ("content-type", "text/plain")], b"x")))
    assert record.fields == [("content-type", "text/plain")]


@given(st.binary(max_size=60))
def test_bytes_that_are_no_answer_are_refused(value: bytes) -> None:
    reader = Reader()
    try:
        record = reader.read(entry(value))
    except ValueError:
        return
    assert 200 <= record.status <= 599
    assert sum(record.cuts) == len(record.body) or not record.cuts


@pytest.mark.parametrize("lost", range(1, 40))
def test_an_answer_that_is_cut_is_refused_or_shorter(lost: int) -> None:
    whole = b"".join(pack(200, [("content-type", "text/event-stream")], b"ab" * 8, [8, 8]))
    try:
        record = Reader().read(entry(whole[:-lost]))
    except ValueError:
        return
    pytest.fail(f"read {record.body!r}")


def test_heads_are_remembered_and_not_shared_by_answers_that_differ() -> None:
    reader = Reader()
    for number in itertools.chain(range(600), range(600)):  # more than are remembered
        record = reader.read(entry(*pack(200, [("x-n", str(number))], b"")))
        assert record.fields == [("x-n", str(number))]


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("no-store", False),
        ("max-age=5, No-Store", False),
        ("private", False),
        ('private="x", max-age=1', False),
        ("public, max-age=60", True),
        ("no-cache", True),
        ("x-private", True),
    ],
)
def test_an_answer_that_a_shared_cache_must_not_keep_has_no_head(said: str, kept: bool) -> None:
    made = Writer().head(200, [("content-type", "application/json"), ("cache-control", said)])
    assert (made is not None) is kept
