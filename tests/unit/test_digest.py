"""Keys are made of length-prefixed parts: no two lists of parts have one key."""

from hypothesis import given
from hypothesis import strategies as st

from penstock.cache.digest import KEY_BYTES, key_of, prefix
from penstock.cache.outcome import NoCache, Outcome

parts = st.lists(st.binary(max_size=12), max_size=5)


@given(parts, parts)
def test_prefixing_is_injective(one: list[bytes], other: list[bytes]) -> None:
    assert (prefix(*one) == prefix(*other)) == (one == other)


@given(parts, parts, st.binary(max_size=8), st.binary(max_size=8))
def test_keys_differ_when_parts_do(one: list[bytes], other: list[bytes], a: bytes, b: bytes) -> None:
    if len(one) == len(other):  # as many parts in every key of one schema version
        assert (key_of(prefix(*one), a) == key_of(prefix(*other), b)) == ((one, a) == (other, b))


def test_a_key_is_32_bytes() -> None:
    assert len(key_of(prefix(b"x"), b"")) == KEY_BYTES


def test_words_of_clients_and_metrics_are_unique() -> None:
    for words in (Outcome, NoCache):
        assert len({word.value for word in words}) == len(words)
