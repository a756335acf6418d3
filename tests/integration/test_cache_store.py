"""What is never kept: whatever did not come whole, well and small enough. The next one asks the backend again.

Every fault is the simulator's, where it has it; else a server says what the test wants.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from ..conformance.bodies import GENERATING
from ..support.dataplane import DataPlane, data_plane
from ..support.lines import Line, ask, calls, question
from ..support.procs import wait_until
from ..support.sim import Simulator, simulator
from ..support.staged import chunk, chunked, head, staged, whole

KIB = 1024
MAX_ENTRY = 64 * KIB


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with simulator() as running:
        yield running


def config(url: str) -> dict[str, Any]:
    return {
        "listen": {"host": "127.0.0.1"},
        "cache": {"mode": "all", "l1": {"max_entry": MAX_ENTRY}},
        "limits": {"max_response": "8MiB"},
        "models": {"m": {"backends": [{"url": url}]}},
    }


@pytest.fixture(scope="module")
def plane(sim: Simulator) -> Iterator[DataPlane]:
    with data_plane(config(sim.url)) as running:
        yield running


@contextmanager
def before(url: str) -> Iterator[DataPlane]:
    with data_plane(config(url)) as running:
        yield running


def stored(plane: DataPlane) -> int:
    """How many entries were ever put into L1 here."""
    l1 = plane.worker.memory._l1
    assert l1 is not None
    return plane.call(lambda: l1.counts.stored)


# ---- the simulator's faults

#: A response that ended at its limit of tokens is incomplete, and for that reason not kept.
LONG: dict[str, dict[str, Any]] = {"/v1/responses": {"max_output_tokens": 4096}}

STREAMS: dict[str, dict[str, Any]] = {
    "cut, ended cleanly": {"kind": "cut_mid_stream", "how": "clean"},
    "cut, closed": {"kind": "cut_mid_stream", "how": "fin"},
    "cut, reset": {"kind": "cut_mid_stream", "how": "rst"},
    "cut within a chunk": {"kind": "cut_mid_stream", "how": "chunk"},
    "truncated": {"kind": "truncated"},
    "an error frame, then the end": {"kind": "error_frame_then_done"},
    "no terminal event": {"kind": "no_terminal"},
    "reset behind the head": {"kind": "reset_after_headers"},
    "oversized": {"kind": "oversized", "bytes": 2 * MAX_ENTRY, "event_bytes": 8 * KIB},
}


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize("fault", STREAMS)
def test_a_stream_that_is_not_a_whole_answer_is_not_kept(
    plane: DataPlane, sim: Simulator, fault: str, path: str
) -> None:
    body = {**GENERATING[path]("m", stream=True, x_fault=fault), **LONG.get(path, {})}
    before, kept = calls(sim), stored(plane)
    sim.faults({**STREAMS[fault], "path": path})
    for _ in range(2):
        with Line(plane.port) as line:
            bad = line.put(body, path).receive()
            if fault != "reset behind the head" or bad.status != 502:  # a reset may overtake the head
                assert (bad.status, bad.cache) == (200, "MISS")
            assert b"error" in bad.body or fault == "oversized"
    sim.faults({})
    assert stored(plane) == kept
    good = ask(plane.port, body, path)
    assert good.cache == "MISS"
    assert calls(sim) == before + 3
    hit = ask(plane.port, body, path)
    assert (hit.cache, hit.body) == ("HIT-L1", good.body)


ANSWERS: dict[str, tuple[dict[str, Any], int]] = {
    **{str(s): ({"kind": "status", "status": s}, s) for s in (400, 401, 404, 422, 429, 500, 502, 503, 504)},
    "a redirect": ({"kind": "status", "status": 302}, 302),
    "shorter than its length": ({"kind": "truncated"}, 502),
    "shorter by one byte": ({"kind": "truncated", "missing": 1}, 502),
    "reset behind the head": ({"kind": "reset_after_headers"}, 502),
    "reset before the head": ({"kind": "reset_before_headers"}, 502),
    "a length that is none": ({"kind": "garbage", "variant": "bad_content_length"}, 502),
    "two lengths": ({"kind": "garbage", "variant": "two_content_lengths"}, 502),
    "a broken chunk": ({"kind": "garbage", "variant": "bad_chunk_size"}, 502),
    "a chunk without end": ({"kind": "garbage", "variant": "bad_chunk_end"}, 502),
    "no HTTP": ({"kind": "garbage", "variant": "not_http"}, 502),
    "oversized": ({"kind": "oversized", "bytes": 2 * MAX_ENTRY}, 200),
    "oversized, chunked": ({"kind": "oversized", "bytes": 2 * MAX_ENTRY, "chunked": True}, 200),
    "oversized, of known length": ({"kind": "oversized", "bytes": 9 << 20}, 200),
    "oversized, over the largest answer": ({"kind": "oversized", "bytes": 9 << 20, "chunked": True}, 502),
}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
@pytest.mark.parametrize("fault", ANSWERS)
def test_an_answer_that_is_none_or_not_whole_is_not_kept(
    plane: DataPlane, sim: Simulator, fault: str, path: str
) -> None:
    make = GENERATING.get(path) or (lambda model, **more: {"model": model, "input": "x", **more})
    body = {**make("m", x_fault=fault), **LONG.get(path, {})}
    before, kept = calls(sim), stored(plane)
    parameters, status = ANSWERS[fault]
    sim.faults({**parameters, "path": path})
    for _ in range(2):
        with Line(plane.port) as line:
            bad = line.put(body, path).receive()
            assert (bad.status, bad.complete) == (status, True)
            assert bad.cache in ("MISS", None)
    sim.faults({})
    assert stored(plane) == kept
    good = ask(plane.port, body, path)
    assert (good.status, good.cache) == (200, "MISS")
    assert (
        calls(sim) >= before + 3
    )  # more where a reset of a connection that had been idle makes it try again
    hit = ask(plane.port, body, path)
    assert (hit.cache, hit.body) == ("HIT-L1", good.body)


# ---- what the simulator never says


def event(finish: str | None, index: int = 0, text: str = "word ") -> bytes:
    choice = {"index": index, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + msgspec.json.encode({"id": "c", "choices": [choice]}) + b"\n\n"


def completion(finish: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": finish}
    return msgspec.json.encode({"id": "c", "object": "chat.completion", "choices": [choice]})


DONE = b"data: [DONE]\n\n"
BAD_STREAMS: dict[str, tuple[bytes, bytes, dict[str, Any]]] = {
    # further fields of the head, the events, what was asked for
    "one of two choices never finished": (
        b"",
        event(None) + event(None, 1) + event("stop", 1) + DONE,
        {"n": 2},
    ),
    "one of two choices never came": (b"", event("stop") + DONE, {"n": 2}),
    "the only choice never finished": (b"", event(None) + DONE, {}),
    "no choice at all": (b"", b'data: {"id":"c","choices":[]}\n\n' + DONE, {}),
    "given up by the server": (b"", event(None) + event("abort") + DONE, {}),
    "failed in the server": (b"", event(None) + event("error") + DONE, {}),
    "an error, then a good end": (b"", b'data: {"error":{"code":500}}\n\n' + event("stop") + DONE, {}),
    "something behind the end": (b"", event("stop") + DONE + event("stop"), {}),
    "not JSON": (b"", b"data: {\n\n" + event("stop") + DONE, {}),
    "told not to store": (b"cache-control: private, No-Store\r\n", event("stop") + DONE, {}),
}


@pytest.mark.parametrize("what", BAD_STREAMS)
@pytest.mark.parametrize("framing", ["chunked", "to the connection's end"])
def test_a_stream_that_does_not_say_that_it_is_whole_is_not_kept(what: str, framing: str) -> None:
    more, events, fields = BAD_STREAMS[what]
    asked = question(stream=True, **fields)
    close = framing != "chunked"
    body = events if close else chunked(events)
    with staged(head(more, chunked=not close), body, close=close) as backend, before(backend.url) as plane:
        for count in (1, 2):
            with Line(plane.port) as line:
                answer = line.put(asked).receive()
                assert (answer.status, answer.cache) == (200, "MISS")
                assert answer.body.startswith(events)
            assert backend.received == count
        assert stored(plane) == 0


@pytest.mark.parametrize("framing", ["chunked", "to the connection's end"])
def test_the_same_stream_made_good_is_kept(framing: str) -> None:
    events = event(None) + event(None, 1) + event("stop", 1) + event("length") + DONE
    asked = question(stream=True, n=2)
    close = framing != "chunked"
    body = events if close else chunked(events)
    with staged(head(chunked=not close), body, close=close) as backend, before(backend.url) as plane:
        assert [ask(plane.port, asked).cache for _ in range(3)] == ["MISS", "HIT-L1", "HIT-L1"]
        assert ask(plane.port, asked).body == events
        assert backend.received == 1


BAD_ANSWERS: dict[str, bytes] = {
    "given up by the server": whole(completion("abort")),
    "failed in the server": whole(completion("error")),
    "told not to store": whole(completion("stop"), more=b"Cache-Control: max-age=60, no-store\r\n"),
}


@pytest.mark.parametrize("what", BAD_ANSWERS)
def test_an_answer_that_must_not_be_kept_is_not(what: str) -> None:
    with staged(BAD_ANSWERS[what]) as backend, before(backend.url) as plane:
        assert [ask(plane.port, question()).cache for _ in range(2)] == ["MISS", "MISS"]
        assert (backend.received, stored(plane)) == (2, 0)


def test_an_answer_that_is_shorter_than_it_says_is_not_kept() -> None:
    short = whole(completion("stop"), length=len(completion("stop")) + 5)
    with staged(short, close=True) as backend, before(backend.url) as plane:
        for count in (1, 2):
            assert ask(plane.port, question()).status == 502
            assert backend.received == count
        assert stored(plane) == 0


@pytest.mark.parametrize("status", [b"201 Created", b"206 Partial Content"])
def test_another_status_of_success_is_kept_and_given_again(status: bytes) -> None:
    with staged(whole(completion("stop"), status=status)) as backend, before(backend.url) as plane:
        answers = [ask(plane.port, question()) for _ in range(2)]
        assert [answer.cache for answer in answers] == ["MISS", "HIT-L1"]
        assert [answer.status for answer in answers] == [int(status[:3])] * 2
        assert backend.received == 1


def joined(plane: DataPlane, count: int) -> None:
    """Wait until so many share the leader's call, it left out."""
    flights = plane.worker.flights._flights
    wait_until(
        lambda: plane.call(lambda: sum(flight.others for flight in flights.values())) == count,
        what=f"{count} have joined",
    )


# ---- who left

EVENTS = [event(None, text=f"{i} ") for i in range(5)] + [event("stop"), DONE]


@pytest.mark.parametrize("stage", ["before the head", "amid the events"])
def test_a_client_that_left_alone_leaves_nothing_kept(stage: str) -> None:
    pieces = [head(), *map(chunk, EVENTS), chunk(b"")]
    go = 0 if stage == "before the head" else 3
    with staged(*pieces, go=go) as backend, before(backend.url) as plane:
        asked = question(stream=True)
        with Line(plane.port) as line:
            line.put(asked)
            if go:
                assert line.receive(chunks=1).status == 200
            plane.wait_for(requests=1, calls=1)
        plane.wait_settled()
        backend.go()
        assert stored(plane) == 0
        assert [ask(plane.port, asked).cache for _ in range(2)] == ["MISS", "HIT-L1"]
        assert backend.received == 2


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_left_while_others_waited_leaves_a_whole_entry(stream: bool) -> None:
    pieces = [head(), *map(chunk, EVENTS), chunk(b"")]
    if not stream:
        answer = whole(completion("stop"))
        pieces = [answer[:20], answer[20:90], answer[90:]]
    with staged(*pieces, go=2) as backend, before(backend.url) as plane:
        asked = question(stream=stream)
        first, second = Line(plane.port).put(asked), Line(plane.port)
        if stream:
            first.receive(chunks=1)
        plane.wait_for(requests=1, calls=1)
        second.put(asked)
        joined(plane, 1)
        first.socket.close()
        wait_until(lambda: plane.statuses().get("499") or _left(plane), what="the first has left")
        backend.go()
        got = second.receive()
        assert (got.status, got.cache, got.complete) == (200, "COALESCED", True)
        assert got.body == (b"".join(EVENTS) if stream else completion("stop"))
        again = ask(plane.port, asked)
        assert (again.cache, again.body) == ("HIT-L1", got.body)
        assert backend.received == 1
        second.socket.close()


def _left(plane: DataPlane) -> bool:
    return plane.call(lambda: any(e.left for e in plane.worker.watch._old))  # type: ignore[attr-defined]


# ---- too long, with others attached


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_grows_too_long_reaches_all_who_joined_and_is_not_kept(stream: bool) -> None:
    text = "x" * (20 * KIB)
    events = [event(None, text=text) for _ in range(4)] + [event("stop"), DONE]
    if stream:
        pieces, body = [head(), *map(chunk, events), chunk(b"")], b"".join(events)
    else:
        body = completion("stop").replace(b'"x"', b'"' + b"y" * (100 * KIB) + b'"')
        one = whole(body)
        pieces = [one[i : i + 20 * KIB] for i in range(0, len(one), 20 * KIB)]
    asked = question(stream=stream)
    with staged(*pieces, go=1) as backend, before(backend.url) as plane:
        lines = [Line(plane.port).put(asked)]
        plane.wait_for(requests=1, calls=1)
        lines += [Line(plane.port).put(asked) for _ in range(3)]
        joined(plane, 3)
        backend.go(1)
        if stream:
            for line in lines:
                assert line.receive(chunks=1).body.startswith(events[0])
        late = Line(plane.port).put(asked)
        joined(plane, 4)
        backend.go()
        answers = [line.receive() for line in (*lines, late)]
        assert [answer.cache for answer in answers] == ["MISS", *["COALESCED"] * 4]
        assert [answer.body == body for answer in answers] == [True] * 5
        assert backend.received == 1
        assert ask(plane.port, asked).cache == "MISS"
        assert (backend.received, stored(plane)) == (2, 0)
        for line in (*lines, late):
            line.socket.close()


@pytest.mark.parametrize("end", ["whole", "cut"])
def test_an_answer_that_says_it_is_too_long_is_relayed_to_all_under_its_length(end: str) -> None:
    body = completion("stop").replace(b'"x"', b'"' + b"y" * (9 << 20) + b'"')
    one = whole(body, length=len(body) + (end == "cut"))
    pieces = one[:50], one[50:40_000], one[40_000:]
    with staged(*pieces, go=2, close=True) as backend, before(backend.url) as plane:
        lines = [Line(plane.port).put(question()) for _ in range(3)]
        joined(plane, 2)
        backend.go()
        # at once: what is not kept for late ones comes at the pace of the slowest
        with ThreadPoolExecutor() as clients:
            answers = list(clients.map(Line.receive, lines))
        assert sorted(answer.cache or "" for answer in answers) == ["COALESCED", "COALESCED", "MISS"]
        for answer in answers:
            assert answer.header("content-length") == str(len(body) + (end == "cut"))
            assert (answer.status, answer.complete) == (200, end == "whole")
            assert answer.body == body
        assert (backend.received, stored(plane)) == (1, 0)
        for line in lines:
            line.socket.close()


def test_nobody_joins_an_answer_that_has_grown_too_long() -> None:
    events = [event(None, text="x" * (40 * KIB)) for _ in range(3)] + [event("stop"), DONE]
    pieces = [head(), *map(chunk, events), chunk(b"")]
    with staged(*pieces, go=3) as backend, before(backend.url) as plane:
        asked = question(stream=True)
        first = Line(plane.port).put(asked)
        assert first.receive(chunks=1).cache == "MISS"
        wait_until(lambda: not plane.call(lambda: plane.worker.flights._flights), what="nobody may join")
        second = Line(plane.port).put(asked)
        wait_until(lambda: backend.received == 2, what="the second asks for itself")
        backend.go()
        answers = [first.receive(), second.receive()]
        assert [answer.cache for answer in answers] == ["MISS", "MISS"]
        assert [answer.body == b"".join(events) for answer in answers] == [True, True]
        first.socket.close()
        second.socket.close()


@pytest.mark.parametrize("size", [MAX_ENTRY - 2 * KIB, MAX_ENTRY + KIB])
@pytest.mark.parametrize("stream", [True, False])
def test_what_fits_is_kept_and_what_does_not_is_not(size: int, stream: bool) -> None:
    fits = size < MAX_ENTRY
    body = completion("stop").replace(b'"x"', b'"' + b"y" * size + b'"')
    events = event("stop", text="y" * size) + DONE
    pieces = [head(), chunked(events)] if stream else [whole(body)]
    with staged(*pieces) as backend, before(backend.url) as plane:
        asked = question(stream=stream)
        answers = [ask(plane.port, asked) for _ in range(2)]
        assert [answer.cache for answer in answers] == ["MISS", "HIT-L1" if fits else "MISS"]
        assert {answer.body for answer in answers} == {events if stream else body}
        assert backend.received == 2 - fits
