"""The bench's own arithmetic: a wrong figure there would be believed."""

import socket
import zlib
from collections.abc import Callable

import pytest

from penstock.loadtests.bench.context import Book, Sample
from penstock.loadtests.bench.machine import split
from penstock.loadtests.bench.report import ratios, table
from penstock.loadtests.bench.rig import events, payload
from penstock.loadtests.bench.rig.client import percentile
from penstock.loadtests.bench.rig.exposition import Exposition
from penstock.loadtests.bench.rig.process import connections
from penstock.loadtests.bench.rig.sender import big_body
from penstock.loadtests.bench.scenarios import SCENARIOS
from penstock.loadtests.bench.scenarios.memory import worst_lag_ms
from penstock.loadtests.bench.scenarios.slo import knee

_PAGE = """\
# HELP x_total Things.
x_total{model="a",status="200"} 5
x_total{model="b",status="503"} 2
up 1
lag_bucket{worker="0",le="0.01"} 10
lag_bucket{worker="0",le="0.05"} 11
lag_bucket{worker="0",le="+Inf"} 11
lag_bucket{worker="1",le="0.01"} 4
lag_bucket{worker="1",le="0.05"} 4
lag_bucket{worker="1",le="+Inf"} 4
"""


def _book() -> Book:
    book = Book()
    for number, (ours, theirs) in enumerate([(40.0, 100.0), (90.0, 150.0), (50.0, 100.0)]):
        book.samples.append(Sample("miss", "gateway", number, {"per_s": ours}))
        book.samples.append(Sample("miss", "echo", number, {"per_s": theirs}))
    return book


def test_a_ratio_is_the_median_of_ratios_taken_within_a_round() -> None:
    book = _book()
    assert book.ratio("miss", "gateway", "echo") == 0.5
    assert book.median("miss", "gateway", "per_s") == 50.0
    assert ratios(book) == {"miss: gateway / echo": 0.5}


def test_a_missing_subject_gives_no_ratio() -> None:
    assert _book().ratio("miss", "gateway", "vllm-router") == 0.0


def test_the_table_says_what_was_missed_and_what_was_wrong() -> None:
    book = _book()
    book.at_least("rate", 50.0, 60.0)
    book.at_most("lag", 5.0, 50.0)
    book.faults.append("a reply lacked x-request-id")
    text = table(book)
    assert "MISS rate" in text
    assert "met  lag" in text
    assert "FAULT a reply lacked x-request-id" in text


def test_a_family_is_summed_over_its_series() -> None:
    page = Exposition(_PAGE)
    assert page.total("x_total") == 7
    assert page.total("x_total", 'status="503"') == 2
    assert page.buckets("lag", 'worker="1"') == {0.01: 4.0, 0.05: 4.0, float("inf"): 4.0}
    assert page.buckets("lag") == {0.01: 14.0, 0.05: 15.0, float("inf"): 15.0}


@pytest.mark.parametrize(
    ("change", "worst_ms"),
    [
        (lambda page: page, 0.0),
        (lambda page: page.replace("} 10", "} 12").replace("} 11", "} 13"), 10.0),
        (lambda page: page.replace("} 11", "} 12"), 50.0),
    ],
)
def test_the_worst_lag_is_the_highest_bucket_that_gained(
    change: Callable[[str], str], worst_ms: float
) -> None:
    assert worst_lag_ms("lag", Exposition(_PAGE), Exposition(change(_PAGE))) == worst_ms


def test_every_numbered_event_has_its_own_bytes_and_the_same_size() -> None:
    made = events.numbered(500)
    assert {len(event) for event in made[:-1]} == {events.EVENT_BYTES}
    assert len(set(made)) == 501
    assert events.expected(500) == (sum(map(len, made)), zlib.crc32(b"".join(made)))


def test_the_stream_has_the_events_it_is_named_after_and_ends_by_its_dialects_rule() -> None:
    made = payload.stream_events()
    assert len(made) == payload.STREAM_EVENTS
    assert b'"finish_reason":"stop"' in made[-2]
    assert made[-1] == b"data: [DONE]\n\n"


@pytest.mark.parametrize("mib", [1, 10])
def test_a_big_body_is_as_big_as_it_says(mib: int) -> None:
    assert len(big_body(mib)) == mib << 20


def test_percentiles_are_values_that_were_seen() -> None:
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile([float(n) for n in range(100)], 99) == 99.0
    assert percentile([], 99) == 0.0


def test_connections_are_counted_as_the_kernel_has_them() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert connections(port) == 0
        with socket.create_connection(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)):
            assert connections(port) == 2


def test_load_and_subject_get_cores_of_their_own_where_there_are_two() -> None:
    assert split([4, 2, 6]) == (2, [4])
    assert split([3]) == (3, [3])


@pytest.mark.parametrize(
    ("highest", "asked"),
    [
        (12_000, [11_000, 12_000, 13_000]),
        (10_000, [11_000]),
        (7_000, [5_000, 6_000, 7_000, 8_000]),
        (4_000, [5_000, 2_000, 3_000, 4_000]),
        (0, [5_000, 2_000, 1_000]),
    ],
    ids=["above", "there", "below", "below-what-is-known", "nowhere"],
)
def test_the_knee_is_the_highest_step_that_misses_nothing(highest: int, asked: list[int]) -> None:
    """A gateway that is asked for more than it can carries about half of it."""
    tried: list[int] = []

    def missed(rate: int) -> tuple[str, float]:
        return ("p99", rate / 2) if rate > highest else ("", rate)

    def probe(rate: int) -> tuple[str, float]:
        tried.append(rate)
        return missed(rate)

    found, why = knee(10_000, *missed(10_000), probe)
    assert (found, tried) == (highest, asked)
    assert "p99" in why


def test_every_scenario_says_what_it_asks() -> None:
    assert all(scenario.__doc__ for scenario in SCENARIOS.values())
