"""One request's end becomes cells: which stages it went through, what its answer cost, and nothing twice."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.cache.outcome import NoCache
from penstock.gateway.endpoints import ENDPOINTS
from penstock.gateway.errors import Fault, Kind
from penstock.gateway.ledger import Ledger
from penstock.gateway.limits.usage import usage_of
from penstock.gateway.meter import StreamMeter
from penstock.gateway.metrics import (
    ADDED,
    BYPASSES,
    DURATION,
    ERRORS,
    FIRST_TOKEN,
    REQUESTS,
    STAGES,
    TOKENS,
    Family,
    Metrics,
    series,
)

CHAT = ENDPOINTS["/v1/chat/completions"]


class Row:
    def __init__(self) -> None:
        self.cells = memoryview(bytearray(8 * 8192)).cast("Q")
        self.names: dict[bytes, tuple[int, int]] = {}
        self._next = 0

    def cell(self, key: bytes, width: int = 1) -> int:
        at, _ = self.names.setdefault(key, (self._next, width))
        self._next = max(self._next, at + width)
        return at

    def read(self, family: Family, *labels: str) -> list[int]:
        at, width = self.names.get(series(family, *labels), (0, 0))
        return list(self.cells[at : at + width])


def request(**told: Any) -> Any:
    plain = {
        "model": "m",
        "status": 200,
        "cache": "MISS",
        "reason": None,
        "first_ns": 0,
        "upstream_ns": 0,
        "queued_ns": 0,
        "wake_ns": 0,
        "far_ns": 0,
        "body_ns": 0,
        "told": b"",
        "meter": None,
    }
    return SimpleNamespace(**{**plain, **told})


def recorded(one: Any, *, started: int = 1000, total: int = 900) -> Row:
    row = Row()
    Ledger(Metrics(row)).record(one, CHAT, started, total)
    return row


def test_requests_are_counted_by_model_endpoint_status_cache_and_reason() -> None:
    row = Row()
    ledger = Ledger(Metrics(row))
    for status in (200, 200, 502):
        ledger.record(request(status=status, cache="BYPASS", reason=NoCache.OFF), CHAT, 1, 1)
    ledger.record(request(cache="HIT-L1"), CHAT, 1, 1)
    ledger.record(request(model="", status=404, cache=""), None, 0, 0)
    assert row.read(REQUESTS, "m", CHAT.path, "200", "BYPASS") == [2]
    assert row.read(REQUESTS, "m", CHAT.path, "502", "BYPASS") == [1]
    assert row.read(REQUESTS, "m", CHAT.path, "200", "HIT-L1") == [1]
    assert row.read(REQUESTS, "", "other", "404", "") == [1]
    assert row.read(BYPASSES, "m", "off") == [3]
    assert [sum(row.read(DURATION, CHAT.path)[:-1]), row.read(DURATION, "other")] == [4, []]


def test_what_a_request_waited_for_is_not_what_the_gateway_added() -> None:
    row = recorded(request(first_ns=1700, upstream_ns=400, queued_ns=200))
    assert row.read(ADDED, CHAT.path, "MISS")[-1] == 100
    assert row.read(REQUESTS, "m", CHAT.path, "200", "MISS") == [1]


def test_each_stage_has_its_own_time_and_a_wake_is_no_queue() -> None:
    row = recorded(request(upstream_ns=400, queued_ns=200, wake_ns=150, far_ns=30, body_ns=7))
    sums = {stage: row.read(STAGES, stage)[-1:] for stage in ("backend", "queue", "l2", "body", "stream")}
    assert sums == {"backend": [400], "queue": [50], "l2": [30], "body": [7], "stream": [0]}


def test_a_look_into_memory_has_no_stages() -> None:
    row = recorded(request(cache="HIT-L1", first_ns=1100))
    assert {sum(row.read(STAGES, stage)) for stage in ("backend", "queue", "l2", "body", "stream")} == {0}


@pytest.mark.parametrize("cache", ["MISS", "BYPASS", ""])
def test_tokens_are_those_that_the_answer_tells_of(cache: str) -> None:
    told = json.dumps({"usage": {"prompt_tokens": 7, "total_tokens": 12, "completion_tokens": 5}}).encode()
    row = recorded(request(cache=cache, upstream_ns=1, told=told))
    assert (row.read(TOKENS, "m", "prompt"), row.read(TOKENS, "m", "completion")) == ([7], [5])


def test_who_follows_counts_no_tokens() -> None:
    meter = StreamMeter(lambda ns: None)
    meter.feed(b"data: {}\n\n")
    row = recorded(request(cache="COALESCED", upstream_ns=1, meter=meter))
    assert row.read(TOKENS, "m", "completion") == []
    assert sum(row.read(FIRST_TOKEN, "m")[:-1]) == 1


def test_errors_are_counted_by_their_code() -> None:
    row = Row()
    Ledger(Metrics(row)).failed("m", Fault(Kind.QUEUE_FULL, "full"))
    assert row.read(ERRORS, "m", Kind.QUEUE_FULL.value) == [1]


# ---- streams


def told(*events: dict[str, Any] | str) -> bytes:
    return b"".join(
        b"data: " + (e if isinstance(e, str) else json.dumps(e)).encode() + b"\n\n" for e in events
    )


def metered(*pieces: bytes) -> tuple[tuple[int, int], int]:
    gaps: list[int] = []
    meter = StreamMeter(gaps.append)
    for piece in pieces:
        meter.feed(piece)
    return meter.tokens(), len(gaps)


def test_gaps_are_between_pieces() -> None:
    assert metered(told({}), told({}), told({}))[1] == 2


def test_a_stream_without_usage_costs_its_events() -> None:
    assert metered(told({}, {}), told({}))[0] == (0, 3)


def test_the_last_usage_of_a_stream_counts() -> None:
    stream = [
        told({"usage": {"prompt_tokens": 4, "completion_tokens": n, "total_tokens": 4 + n}})
        for n in range(1, 4)
    ]
    assert metered(*stream, told("[DONE]"))[0] == (4, 3)


def test_a_usage_that_an_edge_cuts_in_two_is_read() -> None:
    whole = told({}, {"usage": {"prompt_tokens": 4, "completion_tokens": 9, "total_tokens": 13}}, "[DONE]")
    at = whole.index(b'"usage"')
    for edge in range(at + 7, len(whole)):
        assert metered(whole[:edge], whole[edge:])[0] == (4, 9), edge


def test_a_message_tells_its_prompt_at_its_beginning() -> None:
    begin = told({"type": "message_start", "message": {"usage": {"input_tokens": 6, "output_tokens": 1}}})
    end = told({"type": "message_delta", "usage": {"output_tokens": 8}})
    assert metered(begin, told({}), end)[0] == (6, 8)


# ---- whole answers


@pytest.mark.parametrize(
    ("usage", "parts"),
    [
        ({"prompt_tokens": 7, "total_tokens": 12, "completion_tokens": 5}, (7, 5)),
        ({"completion_tokens": 5, "prompt_tokens": 7, "total_tokens": 12}, (7, 5)),
        ({"input_tokens": 7, "output_tokens": 5}, (7, 5)),
        ({"prompt_tokens": 7, "total_tokens": 7}, (7, 0)),
        ({"total_tokens": 7}, (7, 0)),
        ({}, None),
        (None, None),
    ],
    ids=["vllm", "openai", "anthropic", "embeddings", "rerank", "empty", "none"],
)
def test_usage_is_read_in_every_order(usage: Any, parts: tuple[int, int] | None) -> None:
    assert usage_of(json.dumps({"id": "x", "usage": usage}).encode()) == parts
