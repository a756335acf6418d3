"""When a stream that waits for servers is opened, when it gets its comments, and when it is given up."""

import weakref
from types import SimpleNamespace
from typing import Any

import pytest
from granian.rsgi import ProtocolClosed
from hypothesis import given
from hypothesis import strategies as st

from penstock.gateway.ack import Acked
from penstock.gateway.errors import Fault, Kind
from penstock.gateway.exchange import Exchange
from penstock.gateway.keepalive import COMMENT, KeepAlive
from penstock.gateway.limits.usage import StreamUsage

SILENT_S, EVERY_S, WRITE_S = 25.0, 10.0, 30.0
SINCE_S = 1000.0
OPENS_S = SINCE_S + SILENT_S


class Stream:
    """Wants to be looked at at these times."""

    def __init__(self, *times: float) -> None:
        self._times = list(times)
        self.looked: list[float] = []

    def look(self, now: float, write_timeout_s: float) -> float | None:
        self.looked.append(now)
        return self._times.pop(0) if self._times else None


def test_each_is_looked_at_when_it_is_due_and_not_before() -> None:
    keep = KeepAlive()
    early, late = Stream(30.0), Stream()
    keep.add(late, 20.0)
    keep.add(early, 10.0)
    for now in (9.9, 10.0, 10.1, 19.9, 20.5, 29.9, 31.0, 99.0):
        keep.tick(now, WRITE_S)
    assert early.looked == [10.0, 31.0]
    assert late.looked == [20.5]
    assert len(keep) == 0


def test_one_that_wants_to_be_looked_at_at_once_does_not_hold_the_tick() -> None:
    keep = KeepAlive()
    eager = Stream(0.0, 0.0)
    keep.add(eager, 0.0)
    keep.tick(1.0, WRITE_S)
    assert eager.looked == [1.0]
    keep.tick(2.0, WRITE_S)
    assert eager.looked == [1.0, 2.0]


def test_nobody_is_kept_from_ending() -> None:
    keep, stream = KeepAlive(), Stream()
    known = weakref.ref(stream)
    keep.add(stream, 10.0)
    del stream
    assert known() is None
    keep.tick(11.0, WRITE_S)
    assert len(keep) == 0


# ---- an exchange


class Transport:
    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.gone = False

    def send_bytes(self, data: bytes) -> None:
        if self.gone:
            raise ProtocolClosed
        self.sent.append(data)


class Client:
    """Its connection, and all of the gateway that an exchange asks while it waits."""

    def __init__(self, http: str = "1.1", scheme: str = "http") -> None:
        self.transport = Transport()
        self.heads: list[tuple[int, dict[str, str]]] = []
        self.unread: int | None = 0
        self.condemned: list[str] = []
        self.ended = False
        self.cancelled = 0
        worker: Any = SimpleNamespace(
            clock=lambda: SINCE_S,
            draining=False,
            keepalive=KeepAlive(),
            meter=SimpleNamespace(acked=self._acked),
            sweep=SimpleNamespace(condemn=lambda client, held: self.condemned.append(client)),
        )
        scope = SimpleNamespace(http_version=http, scheme=scheme, client="1.2.3.4:5", server="0.0.0.0:80")
        proto = SimpleNamespace(response_stream=self._stream)
        task: Any = SimpleNamespace(done=lambda: self.ended, cancel=self._cancel)
        self.keep = worker.keepalive
        self.exchange = Exchange(worker, scope, proto, task)
        self.exchange.request_id = "r-1"

    def _acked(self, client: str, server: str) -> Acked | None:
        return None if self.unread is None else Acked(0, self.unread)

    def _stream(self, status: int, headers: list[tuple[str, str]]) -> Transport:
        self.heads.append((status, dict(headers)))
        return self.transport

    def _cancel(self) -> None:
        self.cancelled += 1

    def waits(self, silent_s: float = SILENT_S, every_s: float = EVERY_S) -> None:
        pool: Any = SimpleNamespace(hold_silent_s=silent_s, keepalive_s=every_s)
        self.exchange.hold_pool, self.exchange.hold_since = pool, SINCE_S
        self.exchange.keep_alive()

    def tick(self, now: float) -> int:
        self.keep.tick(now, WRITE_S)
        return len(self.transport.sent)


def test_it_is_silent_first_then_open_then_there_is_a_comment_now_and_then() -> None:
    client = Client()
    client.waits()
    assert client.tick(OPENS_S - 0.02) == 0
    assert client.heads == []
    assert client.tick(OPENS_S) == 1
    status, fields = client.heads[0]
    assert status == 200
    assert fields["content-type"].startswith("text/event-stream")
    assert fields["x-request-id"] == "r-1"
    assert [client.tick(OPENS_S + s) for s in (0.02, 9.98, 10.0, 19.9, 20.1)] == [1, 1, 2, 2, 3]
    assert len(client.heads) == 1
    assert set(client.transport.sent) == {COMMENT}
    assert client.exchange.opened
    assert client.exchange.status == 200


def test_without_a_pace_it_is_never_opened() -> None:
    client = Client()
    client.waits(every_s=0.0)
    assert len(client.keep) == 0
    client.tick(OPENS_S + 1000)
    assert client.heads == []


def test_one_whose_servers_came_in_time_is_not_opened_however_long_its_answer_takes() -> None:
    client = Client()
    client.waits()
    client.exchange.hold_since = 0.0
    client.tick(OPENS_S + 1000)
    assert client.heads == []
    assert len(client.keep) == 0


def test_one_that_waits_again_has_its_first_waiting_counted_and_stands_there_once() -> None:
    client = Client()
    client.waits()
    client.exchange.wake_ns = 20 * 10**9
    client.exchange.hold_since = SINCE_S + 90
    client.exchange.keep_alive()
    assert len(client.keep) == 1
    assert client.tick(SINCE_S + 94.9) == 0
    assert client.tick(SINCE_S + 95) == 1
    client.exchange.hold_since = 0.0
    client.exchange.keep_alive()
    assert len(client.keep) == 1


def test_one_that_has_been_forgotten_may_wait_again() -> None:
    client = Client()
    client.waits()
    client.exchange.hold_since = 0.0
    client.tick(OPENS_S + 1)
    client.waits()
    assert client.tick(OPENS_S + 2) == 1


def test_an_open_one_is_kept_alive_until_the_first_byte_of_its_answer() -> None:
    client = Client()
    client.waits()
    client.tick(OPENS_S)
    client.exchange.hold_since = 0.0
    assert client.tick(OPENS_S + 10) == 2
    said: list[int] = []
    relay: Any = SimpleNamespace(sent=0, said=said.append)
    client.exchange.relay = relay
    assert client.tick(OPENS_S + 20) == 3
    assert said == [len(b"e\r\n" + COMMENT + b"\r\n")]
    assert client.exchange.said_bytes == 3 * said[0]
    relay.sent = 1
    assert client.tick(OPENS_S + 30) == 3
    assert len(client.keep) == 0


def test_one_whose_answer_has_begun_by_itself_is_not_begun_again() -> None:
    """Though no byte of its body has come, and though it was seen waiting last."""
    client = Client()
    client.waits()
    relay: Any = SimpleNamespace(sent=0)
    client.exchange.relay = relay
    client.exchange.stream(200, [])
    assert client.tick(OPENS_S + 1000) == 0
    assert len(client.heads) == 1
    assert len(client.keep) == 0


@pytest.mark.parametrize("what", ["ended", "left", "aborted"])
def test_one_that_is_over_gets_nothing_more(what: str) -> None:
    client = Client()
    client.waits()
    client.tick(OPENS_S)
    if what == "ended":
        client.ended = True
    elif what == "left":
        client.exchange.left = True
    else:
        client.exchange.abort(Fault(Kind.DRAINING, "bye"))
    assert client.tick(OPENS_S + 10) == 1
    assert len(client.keep) == 0


def test_what_an_answer_costs_is_counted_from_its_beginning_not_from_the_opening() -> None:
    """One that is never asked for costs nothing."""
    client = Client()
    calls: list[str] = []

    class Grant:
        def fields(self, headers: list[tuple[str, str]], body: bytes | None = None) -> list[tuple[str, str]]:
            calls.append("fields")
            return [*headers, ("x-ratelimit-limit-requests", "5")]

        def streamed(self, life: object) -> StreamUsage:
            calls.append("streamed")
            return usage

    usage = StreamUsage()
    client.exchange.grant = Grant()  # type: ignore[assignment]
    client.waits()
    client.tick(OPENS_S)
    assert calls == ["fields"]
    assert client.heads[0][1]["x-ratelimit-limit-requests"] == "5"
    out = client.exchange.stream(200, [("x-penstock-backend", "b")])
    assert calls == ["fields", "streamed"]
    assert len(client.heads) == 1
    out.send(b'data: {"usage":{"total_tokens":7}}\n\n')
    assert usage.tokens(100) == 7


def test_a_client_that_is_gone_ends_its_request() -> None:
    client = Client()
    client.waits()
    client.tick(OPENS_S)
    client.transport.gone = True
    client.tick(OPENS_S + 10)
    assert client.cancelled == 1
    assert client.exchange.aborted is not None
    assert client.exchange.aborted.kind is Kind.CLIENT_CLOSED


def test_a_client_that_takes_nothing_gets_nothing_more_and_is_dropped_in_the_end() -> None:
    client = Client()
    client.waits()
    client.tick(OPENS_S)
    client.unread = 200
    assert [client.tick(OPENS_S + s) for s in (10, 20, 30, 40)] == [1, 1, 1, 1]
    assert client.cancelled == 0
    client.tick(OPENS_S + 50)
    assert client.cancelled == 1
    assert client.condemned == ["1.2.3.4:5"]
    assert client.exchange.aborted is not None
    assert client.exchange.aborted.kind is Kind.CLIENT_STALLED


def test_others_who_wait_for_the_same_do_not_suffer_for_a_client_that_takes_nothing() -> None:
    client = Client()
    client.exchange.flight = SimpleNamespace(leave_leader=lambda: True)  # type: ignore[assignment]
    client.waits()
    client.tick(OPENS_S)
    client.unread = 200
    for s in (10, 50):
        client.tick(OPENS_S + s)
    assert client.condemned == ["1.2.3.4:5"]
    assert client.exchange.left
    assert client.cancelled == 0


def test_a_client_that_reads_again_is_not_dropped() -> None:
    client = Client()
    client.waits()
    client.tick(OPENS_S)
    client.unread = 200
    for s in (10, 20, 30):
        client.tick(OPENS_S + s)
    client.unread = 0
    assert client.tick(OPENS_S + 40) == 2
    client.unread = 14
    client.tick(OPENS_S + 50)
    client.tick(OPENS_S + 70)
    assert client.cancelled == 0


def test_where_it_cannot_be_seen_what_is_read_there_is_an_end_to_the_comments() -> None:
    client = Client(http="2")
    client.waits(silent_s=0.0, every_s=0.02)
    for tick in range(20_000):
        client.tick(SINCE_S + tick * 0.02)
    assert 1000 < len(client.transport.sent) < 5000
    assert client.exchange.said_bytes < (64 << 10) + 100


@given(
    gaps=st.lists(st.floats(0.001, 30.0), min_size=1, max_size=60),
    silent_s=st.floats(0.0, 60.0),
    every_s=st.floats(0.001, 30.0),
)
def test_whenever_it_is_looked_the_times_hold(gaps: list[float], silent_s: float, every_s: float) -> None:
    """Never before the silent time, never closer than the pace, at the first look that may."""
    client = Client()
    client.waits(silent_s, every_s)
    due, now, sent = SINCE_S + silent_s, SINCE_S, 0
    for gap in gaps:
        now += gap
        count = client.tick(now)
        assert count - sent == (1 if now >= due else 0)
        if now >= due:
            due = now + every_s
        sent = count
