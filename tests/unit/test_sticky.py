"""Stored responses are found again, from any worker; the table is a hint and never points at a wrong backend."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.gateway.sticky import WAYS, Foreign, Sticky


@dataclass(frozen=True)
class Backend:
    index: int


BACKENDS = [Backend(index) for index in (0, 1, 255)]


def cells(count: int = 256) -> memoryview:
    return memoryview(bytearray(count * 8)).cast("Q")


def test_what_one_worker_put_another_finds() -> None:
    shared = cells()
    one, other = Sticky(shared), Sticky(shared)
    one.put("resp_a", 255)
    one.put("resp_b", 0)
    found = [other.find(name, BACKENDS) for name in ("resp_a", "resp_b", "resp_c")]
    assert found == [Backend(255), Backend(0), None]


def test_a_response_that_moved_is_found_where_it_was_put_last() -> None:
    table = Sticky(cells())
    table.put("resp_a", 0)
    table.put("resp_a", 1)
    assert table.find("resp_a", BACKENDS) == Backend(1)


def test_a_backend_that_left_the_configuration_is_not_found() -> None:
    table = Sticky(cells())
    table.put("resp_a", 77)
    assert table.find("resp_a", BACKENDS) is None


def test_a_full_set_forgets_one_of_the_older_entries_and_keeps_the_newest() -> None:
    table = Sticky(cells(WAYS))
    for number in range(100):
        table.put(f"resp_{number}", 1)
        assert table.find(f"resp_{number}", BACKENDS) == Backend(1)
    kept = sum(table.find(f"resp_{n}", BACKENDS) is not None for n in range(100))
    assert kept == WAYS


@given(st.dictionaries(st.text(min_size=1), st.sampled_from([0, 1, 255]), max_size=100), st.text())
def test_an_entry_is_found_right_or_not_at_all(entries: dict[str, int], other: str) -> None:
    table = Sticky(cells(64))
    for name, backend in entries.items():
        table.put(name, backend)
    for name, backend in entries.items():
        assert table.find(name, BACKENDS) in (None, Backend(backend))
    if other not in entries:
        assert table.find(other, BACKENDS) is None


def test_what_is_another_tenants_is_refused_and_never_found() -> None:
    table = Sticky(cells())
    table.put("resp_a", 1, "acme")
    assert table.find("resp_a", BACKENDS, "acme") == Backend(1)
    for other in ("umbrella", "", "Acme"):
        with pytest.raises(Foreign):
            table.find("resp_a", BACKENDS, other)
    assert table.find("resp_b", BACKENDS, "umbrella") is None, "of what nobody put nothing is known"


def test_who_takes_the_id_of_anothers_response_does_not_get_it() -> None:
    table = Sticky(cells())
    table.put("resp_a", 1, "acme")
    table.put("resp_a", 0, "umbrella")  # vLLM lets clients say which id theirs is to have
    assert table.find("resp_a", BACKENDS, "acme") == Backend(1)
    with pytest.raises(Foreign):
        table.find("resp_a", BACKENDS, "umbrella")
