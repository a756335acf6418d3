"""A connection fed by hand: whatever bytes come and however they are split, each call ends once, the same way."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.gateway.upstream.call import CallTimeouts
from penstock.gateway.upstream.connection import Connection
from penstock.gateway.upstream.fault import FaultKind, UpstreamFault
from tests.unit.test_upstream_reader import damaged, every_byte, responses, split_at


class StubTransport:
    """Keeps what is written; knows whether it was closed."""

    def __init__(self) -> None:
        self.closing = False
        self.written: list[bytes] = []
        self.reading = True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    abort = close

    def writelines(self, parts: tuple[bytes, ...]) -> None:
        self.written.extend(parts)

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True


class StubOwner:
    """Remembers what became of the connection."""

    def __init__(self) -> None:
        self.finishes: list[bool] = []
        self.is_gone = False

    def to_send(self, connection: Connection) -> None:
        connection.send()

    def finished(self, connection: Connection, reusable: bool) -> None:
        self.finishes.append(reusable)

    def gone(self, connection: Connection) -> None:
        self.is_gone = True


class Sink:
    """Counts its endings."""

    def __init__(self) -> None:
        self.data = b""
        self.endings: list[UpstreamFault | None] = []

    def on_data(self, data: bytes) -> None:
        assert not self.endings
        self.data += data

    def on_end(self) -> None:
        self.endings.append(None)

    def on_fault(self, fault: UpstreamFault) -> None:
        self.endings.append(fault)


@dataclass(frozen=True)
class Outcome:
    """How a call ended. Of a failed one only the kind counts: what came before depends on the split."""

    fault: FaultKind | None
    status: int = 0
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def converse(loop: asyncio.AbstractEventLoop, parts: list[bytes]) -> tuple[Outcome, StubOwner, StubTransport]:
    """One call on a connection that receives the parts, then the end, as a loop would deliver them."""
    owner, transport = StubOwner(), StubTransport()
    connection = Connection(owner, loop, lambda: 0.0)
    connection.connection_made(cast(Any, transport))
    call, waiter = connection.start(b"GET / HTTP/1.1\r\n\r\n", None, CallTimeouts(), 0.0, float("inf"))
    sink = Sink()
    attached = False
    for part in parts:
        if transport.closing:
            break
        connection.data_received(part)
        if waiter.done() and waiter.exception() is None and not call.complete and not attached:
            call.attach(sink)
            attached = True
    if not transport.closing:
        connection.eof_received()
    transport.closing = True
    connection.connection_lost(None)
    assert owner.is_gone
    assert transport.reading
    # whatever happened, the caller knows
    assert waiter.done()
    error = waiter.exception()
    if error is not None:
        assert isinstance(error, UpstreamFault)
        assert not attached
        return Outcome(error.kind), owner, transport
    headers = tuple(call.headers)
    if call.complete:
        assert not attached
        return Outcome(None, call.status, headers, call.body), owner, transport
    if not attached:
        call.attach(sink)
    assert len(sink.endings) == 1
    fault = sink.endings[0]
    if fault is not None:
        return Outcome(fault.kind), owner, transport
    return Outcome(None, call.status, headers, sink.data), owner, transport


_cuts = st.lists(st.integers(0, 4096), max_size=8)


@given(
    data=st.one_of(responses(), damaged(), st.binary(max_size=300)),
    garbage=st.one_of(st.just(b""), st.binary(max_size=60)),
    cuts=_cuts,
)
def test_any_bytes_in_any_split_end_a_call_once_and_the_same_way(
    loop: asyncio.AbstractEventLoop, data: bytes, garbage: bytes, cuts: list[int]
) -> None:
    data += garbage
    whole, _, _ = converse(loop, [data] if data else [])
    assert converse(loop, every_byte(data))[0] == whole
    assert converse(loop, split_at(data, cuts))[0] == whole


@given(data=responses(), next_data=responses(), cuts=_cuts)
def test_a_connection_is_never_reusable_with_bytes_nobody_asked_for(
    loop: asyncio.AbstractEventLoop, data: bytes, next_data: bytes, cuts: list[int]
) -> None:
    _, owner, transport = converse(loop, split_at(data + next_data, cuts))
    assert len(owner.finishes) <= 1
    assert transport.closing


@given(data=responses(), cut=st.integers(0, 4096))
def test_a_response_cut_anywhere_is_a_fault_or_was_complete(
    loop: asyncio.AbstractEventLoop, data: bytes, cut: int
) -> None:
    part = data[: cut % (len(data) + 1)]
    whole, _, _ = converse(loop, [data])
    outcome, _, _ = converse(loop, [part] if part else [])
    if outcome.fault is None:
        # only the end of the connection can have ended it early, or it was all there
        framed = any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in outcome.headers)
        assert not framed or outcome == whole
