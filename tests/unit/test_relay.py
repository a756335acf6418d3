"""The relay's arithmetic: when it asks, pauses, goes on and gives up, and that it ends exactly once."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.gateway.dialects import WORDS
from penstock.gateway.endpoints import Dialect
from penstock.gateway.errors import Kind
from penstock.gateway.raw import ClientGone
from penstock.gateway.relay import ASK_EVERY_BYTES, PAUSE_ABOVE_BYTES, UNKNOWN_LIMIT_BYTES, Relay
from penstock.gateway.upstream.fault import FaultKind, UpstreamFault

KIB = 1024
BEFORE = 12_345
"""Bytes of the connection that were acknowledged before the stream: earlier answers, the head."""


@dataclass
class Client:
    """The client's end: of the `on_wire` bytes sent, the server host still holds `unflushed`, `taken` are acknowledged.

    Not `known`: the kernel cannot tell.
    """

    known: bool = True
    taken: int = 0
    on_wire: int = 0
    unflushed: int = 0
    lazy: bool = False
    asked: int = 0
    gone_after: int = 1 << 60
    received: list[bytes] = field(default_factory=list)

    def send(self, data: bytes) -> None:
        if self.on_wire >= self.gone_after:
            raise ClientGone
        self.received.append(data)
        size = len(data) + len(f"{len(data):x}") + 4
        self.on_wire += size
        if self.lazy:
            self.unflushed += size

    def acked(self) -> tuple[int, int] | None:
        self.asked += 1
        return (BEFORE + self.taken, self.on_wire - self.unflushed - self.taken) if self.known else None

    def take(self, size: int = 1 << 60) -> None:
        self.taken = min(self.on_wire, self.taken + size)


class Call:
    def __init__(self) -> None:
        self.paused = False
        self.aborts = 0

    def pause(self) -> None:
        assert not self.paused
        self.paused = True

    def resume(self) -> None:
        assert self.paused
        self.paused = False

    def abort(self) -> None:
        self.aborts += 1


@pytest.fixture(scope="module")
def loop() -> asyncio.AbstractEventLoop:
    made = asyncio.new_event_loop()
    made.close()
    return made


Make = Callable[..., tuple[Relay, Call, Client]]


@pytest.fixture(scope="module")
def make(loop: asyncio.AbstractEventLoop) -> Make:
    def made(dialect: Dialect | None = None, **client: int) -> tuple[Relay, Call, Client]:
        call, out = Call(), Client(**client)  # type: ignore[arg-type]
        end = WORDS[dialect].stream_end() if dialect else None
        return Relay(call, out, end, loop, out.on_wire), call, out

    return made


def test_bytes_go_through_as_the_objects_they_are(make: Make) -> None:
    relay, _, out = make()
    pieces = [b"one", b"two" * 1000, b"three"]
    for piece in pieces:
        relay.on_data(piece)
    relay.on_end()
    assert all(sent is piece for sent, piece in zip(out.received, pieces, strict=True))
    assert relay.done.result() is None
    assert relay.sent == sum(map(len, pieces))


def test_the_kernel_is_asked_every_64_kib_and_not_before(make: Make) -> None:
    relay, _, out = make()
    for _ in range(63):
        relay.on_data(b"x" * KIB)
    assert out.asked == 0
    for _ in range(64 * 9 + 1):
        relay.on_data(b"x" * KIB)
        out.take()
    assert out.asked == 1 + 10, "once more to know where the body begins"


def test_a_client_that_reads_is_never_waited_for(make: Make) -> None:
    relay, call, out = make()
    for _ in range(2000):
        relay.on_data(b"x" * 16 * KIB)
        out.take()
    assert (relay.pauses, call.paused) == (0, False)


@pytest.mark.parametrize("size", [1, 100, 16 * KIB, 64 * KIB, 250 * KIB])
def test_a_client_that_does_not_read_pauses_its_upstream_above_256_kib(make: Make, size: int) -> None:
    relay, call, out = make()
    while not call.paused:
        relay.on_data(b"x" * size)
        assert out.on_wire < PAUSE_ABOVE_BYTES + (ASK_EVERY_BYTES + size) * 8, "it should have paused by now"
    assert out.on_wire > PAUSE_ABOVE_BYTES
    assert relay.paused
    assert relay.pauses == 1


def test_framing_is_counted_so_that_many_small_chunks_do_not_add_up_to_an_error(make: Make) -> None:
    relay, call, out = make()
    for _ in range(100_000):  # 6 bytes of framing each: 600 kB that are acknowledged too
        relay.on_data(b"x" * 40)
        out.take()
    assert not call.paused
    while not call.paused:
        relay.on_data(b"x" * 40)
    assert PAUSE_ABOVE_BYTES < out.on_wire - out.taken < PAUSE_ABOVE_BYTES + 2 * ASK_EVERY_BYTES


@pytest.mark.parametrize("later", [False, True], ids=["before", "while it waits"])
def test_what_the_gateway_said_before_is_counted_too(make: Make, later: bool) -> None:
    """Else a client's acknowledging it would pass for its reading the answer."""
    said = 100 * KIB
    relay, call, out = make(on_wire=0 if later else said, lazy=True)
    if later:
        relay.said(said)
        out.on_wire = said
    for _ in range(70):
        relay.on_data(b"x" * KIB)
    out.take(said)
    while not call.paused:
        relay.on_data(b"x" * KIB)
    under_way = out.on_wire - out.taken
    assert PAUSE_ABOVE_BYTES < under_way < PAUSE_ABOVE_BYTES + ASK_EVERY_BYTES + 8 * KIB


@pytest.mark.parametrize("size", [1 * KIB, 64 * KIB, 250 * KIB])
def test_what_the_server_host_has_not_handed_to_the_kernel_is_not_taken_for_acknowledged(
    make: Make, size: int
) -> None:
    relay, call, out = make(lazy=True)  # the kernel's queue is empty all the time
    while not call.paused:
        relay.on_data(b"x" * size)
        assert out.on_wire < PAUSE_ABOVE_BYTES + (ASK_EVERY_BYTES + size) * 2, "it should have paused by now"
    relay.tick(1.0, 30)  # may come at once behind the pause
    assert call.paused
    out.unflushed = 0
    relay.tick(1.02, 30)
    assert call.paused
    out.take()
    relay.tick(1.04, 30)
    assert not call.paused


def test_a_wrong_guess_of_the_framing_does_not_pause_a_stream_for_good(make: Make) -> None:
    relay, call, out = make()
    while not call.paused:
        relay.on_data(b"x" * KIB)
        out.on_wire -= 5  # less framing than was guessed
        out.take()
    relay.tick(1.0, 30)
    relay.tick(1.02, 30)
    assert not call.paused


def paused(make: Make) -> tuple[Relay, Call, Client]:
    relay, call, out = make()
    while not call.paused:
        relay.on_data(b"x" * 16 * KIB)
    return relay, call, out


def test_it_goes_on_once_256_kib_or_less_are_under_way(make: Make) -> None:
    relay, call, out = paused(make)
    relay.tick(1.0, 30)
    assert call.paused
    out.take(out.on_wire - PAUSE_ABOVE_BYTES - 1)
    relay.tick(1.02, 30)
    assert call.paused
    out.take(1)
    relay.tick(1.04, 30)
    assert not call.paused
    assert not relay.paused
    assert not relay.done.done()


def test_it_pauses_again_and_counts_each_time(make: Make) -> None:
    relay, call, out = paused(make)
    for round_ in range(2, 6):
        out.take()
        relay.tick(round_, 30)
        assert not call.paused
        while not call.paused:
            relay.on_data(b"x" * 16 * KIB)
        assert relay.pauses == round_


def test_a_client_that_acknowledges_nothing_for_write_timeout_s_is_dropped(make: Make) -> None:
    relay, call, _ = paused(make)
    relay.tick(100.0, 30)
    relay.tick(130.0, 30)
    assert not relay.done.done()
    relay.tick(130.1, 30)
    fault = relay.done.result()
    assert fault is not None
    assert (fault.kind, fault.status) == (Kind.CLIENT_STALLED, 499)
    assert call.aborts == 1


def test_any_progress_starts_that_time_anew(make: Make) -> None:
    relay, call, out = paused(make)
    relay.on_data(b"x" * 250 * KIB)  # what one read may still bring
    now = 100.0
    for _ in range(50):
        relay.tick(now, 30)
        out.take(1)
        now += 29
    assert not relay.done.done()
    assert call.paused


def test_where_the_kernel_cannot_tell_a_stream_may_send_4_mib(make: Make) -> None:
    relay, call, _ = make(known=0)
    relay.on_data(b"x" * UNKNOWN_LIMIT_BYTES)
    assert not relay.done.done()
    relay.on_data(b"x" * ASK_EVERY_BYTES)
    fault = relay.done.result()
    assert fault is not None
    assert fault.kind is Kind.STREAM_UNPACED
    assert "use HTTP/1.1 over TCP" in fault.message
    assert (call.aborts, relay.pauses) == (1, 0)


def test_a_kernel_that_falls_silent_while_paused_does_not_hold_the_stream_for_ever(make: Make) -> None:
    relay, call, out = paused(make)
    out.known = False
    relay.tick(1.0, 30)
    assert not call.paused


def test_a_client_that_left_closes_the_upstream(make: Make) -> None:
    relay, call, out = make(gone_after=100)
    relay.on_data(b"x" * 200)
    relay.on_data(b"x" * 200)
    fault = relay.done.result()
    assert fault is not None
    assert fault.kind is Kind.CLIENT_CLOSED
    assert call.aborts == 1
    relay.on_data(b"more")
    assert len(out.received) == 1


@pytest.mark.parametrize(
    ("dialect", "data", "kind"),
    [
        (None, b"anything", None),
        (Dialect.OPENAI, b"data: [DONE]\n\n", None),
        (Dialect.OPENAI, b"data: {}\n\n", Kind.UPSTREAM_INCOMPLETE),
        (Dialect.MESSAGES, b"event: message_stop\n\n", None),
        (Dialect.MESSAGES, b"data: [DONE]\n\n", Kind.UPSTREAM_INCOMPLETE),
        (Dialect.RESPONSES, b"event: response.completed\n\n", None),
    ],
)
def test_a_clean_end_counts_as_success_only_behind_the_terminal_event(
    make: Make, dialect: Dialect | None, data: bytes, kind: Kind | None
) -> None:
    relay, _, _ = make(dialect)
    relay.on_data(data)
    relay.on_end()
    fault = relay.done.result()
    assert (fault and fault.kind) is kind


def test_a_fault_of_the_backend_is_the_outcome_and_no_abort(make: Make) -> None:
    relay, call, _ = make(Dialect.OPENAI)
    relay.on_data(b"data: {}\n\n")
    relay.on_fault(UpstreamFault(FaultKind.BETWEEN_CHUNKS_TIMEOUT))
    fault = relay.done.result()
    assert fault is not None
    assert fault.status == 504
    assert call.aborts == 0


def test_the_last_bytes_say_whether_an_event_was_cut(make: Make) -> None:
    relay, _, _ = make(Dialect.OPENAI)
    relay.on_data(b"data: {}\n\n")
    relay.on_data(b"data: {")
    assert relay.last == b"data: {"


actions = st.lists(
    st.one_of(
        st.integers(1, 300_000).map(lambda n: ("data", n)),
        st.integers(1, 600_000).map(lambda n: ("take", n)),
        st.integers(0, 40).map(lambda n: ("tick", n)),
        st.sampled_from([("end", 0), ("fault", 0), ("gone", 0), ("silent", 0)]),
    ),
    max_size=60,
)


@given(actions, st.booleans())
def test_whatever_happens_the_outcome_is_one_and_nothing_is_sent_after_it(
    make: Make, steps: list[tuple[str, int]], known: bool
) -> None:
    relay, call, out = make(known=known)
    now = 1.0
    for what, n in steps:
        done = relay.done.done()
        outcome, sent = (relay.done.result() if done else None), len(out.received)
        if what == "data" and not (call.paused or call.aborts):
            relay.on_data(b"x" * n)
        elif what == "take":
            out.take(n)
        elif what == "tick":
            now += n
            relay.tick(now, 30)
        elif what == "end":
            relay.on_end()
        elif what == "fault":
            relay.on_fault(UpstreamFault(FaultKind.CLOSED))
        elif what == "gone":
            out.gone_after = 0
        elif what == "silent":
            out.known = False
        if done:
            assert relay.done.result() is outcome
            assert len(out.received) == sent
            assert not relay.paused
        assert call.aborts <= 1
        if relay.paused:
            assert call.paused
