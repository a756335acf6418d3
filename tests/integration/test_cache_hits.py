"""A hit is the answer as its server sent it, and touches nothing on the way: no place, no tally, no backend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from penstock.cache.rows import read_counters
from penstock.gateway.metrics import ADDED, DURATION, FLIGHTS, GC_PAUSES, LAG, REQUESTS

from ..support.dataplane import DataPlane, data_plane
from ..support.lines import Line, ask, calls, question
from ..support.procs import wait_until
from ..support.sim import Simulator, simulator
from ..support.staged import Staged, chunk, head, staged
from .test_cache_store import DONE, event, joined


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with simulator() as running:
        yield running


def config(url: str, **of_the_model: Any) -> dict[str, Any]:
    return {
        "listen": {"host": "127.0.0.1"},
        "cache": {"mode": "all"},
        "models": {"m": {"backends": [{"url": url}], **of_the_model}},
    }


@contextmanager
def behind(*pieces: bytes, close: bool = False) -> Iterator[tuple[Staged, DataPlane]]:
    """A gateway and the backend that says this."""
    with staged(*pieces, close=close) as backend, data_plane(config(backend.url)) as plane:
        yield backend, plane


# ---- the same pieces

EVENTS = [event(None, text=text) for text in ("One ", "two — ", "東京 ")] + [event("stop"), DONE]
STREAM = b"".join(EVENTS)
CUTS: dict[str, list[bytes]] = {
    "an event each": EVENTS,
    "all in one": [STREAM],
    "a byte each": [STREAM[i : i + 1] for i in range(len(STREAM))],
    "across events": [STREAM[:7], STREAM[7:300], STREAM[300:301], STREAM[301:-3], STREAM[-3:]],
    "within a character": [
        STREAM[: STREAM.index("東".encode()) + 1],
        STREAM[STREAM.index("東".encode()) + 1 :],
    ],
    "comments and blank lines": [b": hello\n\n", *EVENTS[:3], b"\r\n", *EVENTS[3:]],
}
WRITES = ("a chunk each", "all at once", "across chunks")


@pytest.mark.parametrize("writes", WRITES)
@pytest.mark.parametrize("cuts", CUTS)
def test_a_stream_is_given_again_in_the_chunks_that_its_server_sent(cuts: str, writes: str) -> None:
    chunks = CUTS[cuts]
    sent = [head(), *map(chunk, chunks), chunk(b"")]
    if writes == "all at once":
        sent = [b"".join(sent)]
    elif writes == "across chunks":
        whole = b"".join(sent)
        sent = [whole[i : i + 97] for i in range(0, len(whole), 97)]
    with staged(*sent) as backend, data_plane(config(backend.url)) as plane, Line(plane.port) as line:
        asked = question(stream=True)
        first = line.ask(asked)
        assert (first.cache, first.body) == ("MISS", b"".join(chunks))
        for _ in range(2):
            hit = line.ask(asked)
            assert (hit.cache, hit.chunks) == ("HIT-L1", chunks)
            assert hit.header("content-type") == first.header("content-type")
        assert backend.received == 1


def test_a_stream_without_chunks_is_given_again_whole() -> None:
    with behind(head(chunked=False), *EVENTS, close=True) as (_, plane):
        asked = question(stream=True)
        assert ask(plane.port, asked).cache == "MISS"
        hit = ask(plane.port, asked)
        assert (hit.cache, hit.body) == ("HIT-L1", STREAM)
        assert 1 <= len(hit.chunks) <= len(EVENTS)


def test_a_stream_with_more_chunks_than_are_noted_is_not_kept() -> None:
    filler = chunk(b"\n") * (1 << 16)
    with behind(head(), filler, *map(chunk, EVENTS), chunk(b"")) as (backend, plane):
        asked = question(stream=True)
        assert [ask(plane.port, asked).cache for _ in range(2)] == ["MISS", "MISS"]
        assert backend.received == 2


def test_a_head_is_given_again_but_for_what_was_of_one_exchange() -> None:
    more = (
        b"x-kept: a b\r\nx-kept: c\r\nage: 77\r\nx-request-id: theirs\r\nset-cookie: a=b\r\nx-api-key: k\r\n"
        b"x-penstock-cache: HIT-L1\r\nx-penstock-backend: fake\r\nconnection: x-named\r\nx-named: 1\r\n"
    )
    with behind(head(more), *map(chunk, EVENTS), chunk(b"")) as (_, plane):
        asked = question(stream=True)
        first, hit = (ask(plane.port, asked, headers={"x-request-id": f"mine-{i}"}) for i in range(2))
    own = {"x-request-id", "x-penstock-cache", "x-penstock-backend", "x-penstock-attempts", "age", "date"}
    kept = [[pair for pair in answer.headers if pair[0] not in own] for answer in (first, hit)]
    assert kept[0] == kept[1]
    assert [value for name, value in kept[1] if name == "x-kept"] == ["a b", "c"]
    assert not {"set-cookie", "x-api-key", "x-named"} & {name for name, _ in kept[1]}
    assert (hit.header("x-request-id"), hit.cache, hit.header("age")) == ("mine-1", "HIT-L1", "0")
    assert hit.header("x-penstock-backend") is None
    assert hit.header("x-penstock-attempts") is None
    assert first.header("x-request-id") == "mine-0"


# ---- touched by a hit


class Rows:
    """What is counted on the node, as bytes: tallies and gates of the segment, and every series of the counters."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        segment = plane.segment
        layout = segment.layout
        end = layout.tally_at + segment.geometry.slots * layout.tally_stride
        self.tally = bytes(segment.cells[layout.tally_at : end])
        self.series = dict(read_counters(segment, 0))
        self.pools = [
            (b.pool.active, b.pool.idle, b.up, b.shunned_until) for b in plane.worker.fleet.backends
        ]
        self.waiting = plane.worker.admission.waiting

    def changed(self, since: Rows) -> set[str]:
        """Names of the series that changed."""
        changed = (name for name, cells in self.series.items() if since.series.get(name) != cells)
        return {msgspec.msgpack.decode(name)[0] for name in changed}


def rows(plane: DataPlane) -> Rows:
    return plane.call(lambda: Rows(plane))


OF_A_HIT = {REQUESTS.name, DURATION.name, ADDED.name, LAG.name, GC_PAUSES.name}


def untouched(plane: DataPlane, before: Rows) -> None:
    after = rows(plane)
    assert after.tally == before.tally
    assert after.pools == before.pools
    assert after.waiting == before.waiting
    assert REQUESTS.name in after.changed(before)
    assert after.changed(before) <= OF_A_HIT


def test_a_hit_touches_no_tally_no_queue_and_no_backend(sim: Simulator) -> None:
    with data_plane(config(sim.url)) as plane:
        for stream in (False, True):
            ask(plane.port, question("idle", stream=stream))
        plane.wait_settled()
        plane.ticks = False  # idle connections would end by themselves
        before, asked = rows(plane), calls(sim)
        for stream in (False, True) * 10:
            assert ask(plane.port, question("idle", stream=stream)).cache == "HIT-L1"
        untouched(plane, before)
        assert calls(sim) == asked
        assert ask(plane.port, question("another")).cache == "MISS"
        assert FLIGHTS.name in rows(plane).changed(before), "what a miss touches is seen here"
        plane.ticks = True


def test_a_hit_is_answered_while_every_place_is_taken_and_the_queue_is_full(sim: Simulator) -> None:
    with data_plane(config(sim.url, max_concurrent=1, max_queue=1)) as plane:
        for stream in (False, True):
            ask(plane.port, question("full", stream=stream))
        plane.wait_settled()
        sim.faults({"kind": "hang", "stage": "headers"})
        running = Line(plane.port).put(question("running"))
        plane.wait_for(running=1, calls=1)
        queued = Line(plane.port).put(question("queued"))
        plane.wait_for(queued=1)
        plane.ticks = False
        refused = ask(plane.port, question("refused"))
        assert refused.status == 429
        before, asked = rows(plane), calls(sim)
        for stream in (False, True) * 5:
            assert ask(plane.port, question("full", stream=stream)).cache == "HIT-L1"
        untouched(plane, before)
        assert calls(sim) == asked
        plane.ticks = True
        # who asks what another is asking already needs no place either
        third = Line(plane.port).put(question("running"))
        joined(plane, 1)
        sim.faults({})
        assert [line.receive().cache for line in (running, queued, third)] == ["MISS", "MISS", "COALESCED"]
        for line in (running, queued, third):
            line.socket.close()


def test_a_hit_is_answered_while_no_backend_is_up(sim: Simulator) -> None:
    with data_plane(config(sim.url)) as plane:
        ask(plane.port, question("down"))

        def down() -> None:
            for backend in plane.worker.fleet.backends:
                backend.up = False

        plane.call(down)
        assert ask(plane.port, question("down")).cache == "HIT-L1"
        assert ask(plane.port, question("not kept")).status == 503


def test_a_hit_of_a_client_that_reads_slowly_comes_whole(sim: Simulator) -> None:
    body = b"".join([*[event(None, text="x" * 30_000) for _ in range(60)], event("stop"), DONE])
    with behind(head(), *[chunk(body[i : i + 9000]) for i in range(0, len(body), 9000)], chunk(b"")) as found:
        plane = found[1]
        asked = question(stream=True)
        assert ask(plane.port, asked).body == body
        line = Line(plane.port, receive_buffer=65536)
        line.put(asked)
        wait_until(
            lambda: plane.call(lambda: any(e.relay and e.relay.paused for e in plane.worker.watch._old)),  # type: ignore[attr-defined]
            what="the hit waits for its client",
        )
        hit = line.receive()
        assert (hit.cache, hit.body == body) == ("HIT-L1", True)
        line.socket.close()
        gone = Line(plane.port, receive_buffer=65536)
        gone.put(asked)
        plane.wait_for(requests=1)
        gone.reset()
        plane.wait_settled()


def test_a_long_stream_that_is_given_again_is_counted_while_its_client_does_not_read_it() -> None:
    body = b"".join([*[event(None, text="x" * 30_000) for _ in range(60)], event("stop"), DONE])
    with behind(head(), *[chunk(body[i : i + 9000]) for i in range(0, len(body), 9000)], chunk(b"")) as found:
        plane = found[1]
        asked = question(stream=True)
        assert ask(plane.port, asked).body == body
        plane.wait_settled()
        line = Line(plane.port, receive_buffer=65536)
        line.put(asked)
        wait_until(lambda: plane.state()["held"] == len(body), what="the hit is counted")

        def fill(limit: int) -> int:
            plane.worker.buffers.limit_bytes, before = limit, plane.worker.buffers.limit_bytes
            return before

        limit = plane.call(lambda: fill(len(body) + 1))
        refused = ask(plane.port, asked)
        assert (refused.status, refused.json()["error"]["code"]) == (429, "buffers_full")
        plane.call(lambda: fill(limit))
        assert line.receive().body == body
        line.socket.close()
        plane.wait_settled()
