"""Load at a constant rate, timed from when each request was due. Run as a script; prints JSON.

Strategy: request i is due at begin + i / rate, whatever became of those before it (open loop). Its latency counts from
then: a request that waits for a free connection because answers do not come waits on the clock, too, and so a server
that stalls for a second has a second's worth of slow requests, not one (no coordinated omission). One thread, plain
sockets and epoll, no library: a request costs some 30 µs of processor, most of it the kernel's. Where it may,
it runs before everything else on its core (SCHED_FIFO), so that a backend there does not delay it.

How late it was itself (*lag*: due, a connection free, and not yet sent) is counted within the latencies, said beside
them, and judged by :func:`late`: a generator that cannot keep up measures itself.

It knows of HTTP what a server of ours sends: a length or chunks; an event stream must end in ``[DONE]``.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import select
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from ...suite import questions
from .client import address
from .process import cpu_s, raise_file_limit

#: A generator that used more of its core than this has measured itself.
MOST_CPU = 0.80
#: And one that sent half of its requests, or a hundredth, later than this.
MOST_LAG_P50_US = 100.0
MOST_LAG_P99_US = 1000.0

_READ = 1 << 18
_EVENTS = 16
_GRACE_NS = 5 * 10**9
_OPEN_S = 10.0
_AGAIN_S = 0.5
_AT_ONCE = 50
_PAUSE_S = 0.01
_LAP_DIGITS = len(questions.LAP)
_CHUNKS_END = b"\r\n0\r\n\r\n"
_STREAM_END = b"data: [DONE]\n\n"
_TAIL = len(_STREAM_END + _CHUNKS_END)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is sent. ``rate``: requests a second. For ``warm_s`` before the clock runs they come at the same rate
    and are not timed. ``lap``: the first lap of the corpus; ``pid``: whose processor time is taken, 0: nobody's.
    """

    url: str
    rate: float
    seconds: float
    connections: int = 256
    warm_s: float = 0.0
    bearer: str = ""
    lap: int = 0
    pid: int = 0

    @property
    def requests(self) -> int:
        """How many there will be that are timed."""
        return round(self.rate * self.seconds)

    @property
    def before(self) -> int:
        """How many come before these."""
        return round(self.rate * self.warm_s)

    def due_ns(self, number: int) -> int:
        """When a request is due, counted from the beginning; it depends on nothing but its number."""
        return round(number * 1e9 / self.rate)


@dataclass(slots=True)
class Found:
    """What was seen. Times in nanoseconds since the request was due, by outcome and whether it was a stream.

    ``outcomes`` and ``failed`` are of all requests, the rest of those that were timed.
    """

    planned: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    first: dict[tuple[str, bool], list[int]] = field(default_factory=dict)
    whole: dict[tuple[str, bool], list[int]] = field(default_factory=dict)
    failed: Counter[str] = field(default_factory=Counter)
    lag: list[int] = field(default_factory=list)
    waited: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    watched_cpu_s: float = 0.0

    @property
    def good(self) -> int:
        """Whole answers of status 200."""
        return sum(map(len, self.whole.values()))

    @property
    def hits(self) -> int:
        """Good answers that the cache gave."""
        return sum(len(times) for (outcome, _), times in self.whole.items() if outcome.startswith("HIT"))

    def as_dict(self) -> dict[str, object]:
        """Counts, and quantiles in microseconds."""
        return {
            "planned": self.planned,
            "good": self.good,
            "failed": dict(self.failed),
            "hits": self.hits,
            "outcomes": dict(self.outcomes),
            "waited": self.waited,
            "seconds": round(self.seconds, 4),
            "cpu": round(self.cpu_s / max(1e-9, self.seconds), 4),
            "watched_cpu": round(self.watched_cpu_s / max(1e-9, self.seconds), 4),
            "lag": quantiles(self.lag),
            "hit": quantiles(self._times(self.whole, "HIT")),
            "miss_first": quantiles(self._times(self.first, "MISS")),
            "miss_plain": quantiles(self._times(self.whole, "MISS", stream=False)),
            "miss_stream": quantiles(self._times(self.whole, "MISS", stream=True)),
            "direct_first": quantiles(self._times(self.first, "", exactly=True)),
        }

    @staticmethod
    def _times(
        of: dict[tuple[str, bool], list[int]],
        outcome: str,
        *,
        stream: bool | None = None,
        exactly: bool = False,
    ) -> list[int]:
        return [
            one
            for (found, streamed), times in of.items()
            if (found == outcome if exactly else found.startswith(outcome))
            and (stream is None or streamed == stream)
            for one in times
        ]


def quantiles(times_ns: Sequence[int]) -> dict[str, float]:
    """Return values that were seen, in microseconds; nothing where there were none."""
    if not times_ns:
        return {}
    ordered = sorted(times_ns)
    last = len(ordered) - 1
    shares = {"p50_us": 0.5, "p95_us": 0.95, "p99_us": 0.99, "p999_us": 0.999, "max_us": 1.0}
    return {name: round(ordered[min(last, int(len(ordered) * s))] / 1e3, 1) for name, s in shares.items()}


def late(cpu: float, lag: dict[str, float]) -> str:
    """Say why a run's figures are the generator's own; empty where they are not."""
    if cpu >= MOST_CPU:
        return f"the generator used {cpu:.0%} of its core"
    for name, most in (("p50_us", MOST_LAG_P50_US), ("p99_us", MOST_LAG_P99_US)):
        if lag.get(name, 0.0) > most:
            return f"the generator was late: {name[:3]} {lag[name] / 1000:.2f} ms, {most / 1000:g} ms allowed"
    return ""


class _Link:
    """One keep-alive connection, one request at a time."""

    __slots__ = (
        "chunked",
        "due",
        "first",
        "head",
        "left",
        "outcome",
        "recv",
        "send",
        "sock",
        "stream",
        "tail",
    )

    def __init__(self, where: tuple[str, int], timeout_s: float) -> None:
        self.sock = socket.create_connection(where, timeout_s)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)
        self.send, self.recv = self.sock.send, self.sock.recv
        self.due = self.first = 0
        self.head = self.tail = b""
        self.chunked = False
        self.left = 0  # bytes of the body that are to come, where it is not chunked
        self.outcome = ""
        self.stream = False


class Steady:
    """One run of a plan over a corpus."""

    def __init__(self, plan: Plan, corpus: questions.Corpus) -> None:
        self.plan = plan
        self.found = Found(planned=plan.requests)
        self._where = address(plan.url)
        self._requests = _requests(plan, corpus)
        self._epoll = select.epoll()
        self._links: dict[int, _Link] = {}
        self._free: deque[_Link] = deque()
        #: due, but every connection has a request under way
        self._backlog: deque[tuple[int, int]] = deque()
        self._busy = 0
        self._ready = [self._epoll.fileno()]
        self._timed_from = 0

    def open(self) -> None:
        """Open the connections, no faster than a server on this very core accepts them."""
        for number in range(self.plan.connections):
            self._free.append(self._open(_OPEN_S))
            if number % _AT_ONCE == _AT_ONCE - 1:
                time.sleep(_PAUSE_S)

    def run(self) -> Found:
        """Send everything when it is due, wait for what is missing, close the connections."""
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            pid, before = self.plan.pid, self.plan.before
            began = time.perf_counter_ns()
            self._timed_from = began + self.plan.due_ns(before)
            self._loop(began, 0, before)
            self.found.lag.clear()
            self.found.waited = 0
            watched, used = cpu_s(pid) if pid else 0.0, time.process_time()
            self._loop(began, before, before + self.plan.requests)
            self._rest()
            self.found.seconds = (time.perf_counter_ns() - self._timed_from) / 1e9
            self.found.cpu_s = time.process_time() - used
            self.found.watched_cpu_s = cpu_s(pid) - watched if pid else 0.0
        finally:
            gc.enable()
            gc.unfreeze()
            for link in self._links.values():
                link.sock.close()
            self._epoll.close()
        unanswered = self._busy + len(self._backlog)
        if unanswered:
            self.found.failed["unanswered"] += unanswered
        return self.found

    def _loop(self, began: int, number: int, end: int) -> None:
        """Send requests up to ``end`` when they are due, and read what comes until the next one is."""
        clock, due_ns, free, lag = time.perf_counter_ns, self.plan.due_ns, self._free, self.found.lag
        due = began + due_ns(number)
        while number < end:
            now = clock()
            while due <= now and number < end:
                if free:
                    self._send(free.popleft(), number, due)
                    now = clock()
                    lag.append(now - due)
                else:
                    self._backlog.append((number, due))
                    self.found.waited += 1
                number += 1
                due = began + due_ns(number)
            self._read_some(due)

    def _rest(self) -> None:
        """Read what is under way."""
        gives_up = time.perf_counter_ns() + _GRACE_NS
        while (self._busy or self._backlog) and time.perf_counter_ns() < gives_up:
            self._read_some(gives_up)

    def _read_some(self, until_ns: int) -> None:
        events = self._epoll.poll(0, _EVENTS)
        if not events:
            # epoll waits in whole milliseconds, select in microseconds
            select.select(self._ready, (), (), max(0, until_ns - time.perf_counter_ns()) / 1e9)
        for fd, _ in events:
            self._read(self._links[fd])

    def _open(self, timeout_s: float) -> _Link:
        link = _Link(self._where, timeout_s)
        self._links[link.sock.fileno()] = link
        self._epoll.register(link.sock.fileno(), select.EPOLLIN)
        return link

    def _send(self, link: _Link, number: int, due: int) -> None:
        lap, at = divmod(number, len(self._requests))
        before, after, link.stream = self._requests[at]
        digits = b"%0*d" % (_LAP_DIGITS, (self.plan.lap + lap) % questions.LAPS)
        data = before + digits + after
        link.due, link.first, link.head = due, 0, b""
        self._busy += 1
        try:
            sent = link.send(data)
        except OSError as fault:
            self._lost(link, f"not sent: {type(fault).__name__}")
            return
        if sent != len(data):  # a keep-alive connection whose answer was read has room for far more
            self._lost(link, "sent in part")

    def _read(self, link: _Link) -> None:
        try:
            data = link.recv(_READ)
        except BlockingIOError:
            return
        except OSError as fault:
            self._lost(link, type(fault).__name__)
            return
        now = time.perf_counter_ns()
        if not data or not link.due:
            self._lost(link, "closed" if not data else "unasked bytes")
            return
        if not link.first:
            link.head += data
            end = link.head.find(b"\r\n\r\n")
            if end < 0:
                return
            link.first = now
            data = self._begin(link, end)
        link.tail = (link.tail + data)[-_TAIL:]
        link.left -= len(data)
        if link.tail.endswith(_CHUNKS_END) if link.chunked else link.left <= 0:
            self._ended(link, now)

    @staticmethod
    def _begin(link: _Link, end: int) -> bytes:
        """Read the head; return what came after it."""
        data, head = link.head[end + 4 :], link.head[:end].lower()
        at = head.find(b"\r\ncontent-length: ")
        link.chunked = at < 0
        link.left = 0 if link.chunked else int(head[at + 18 :].split(b"\r\n", 1)[0])
        at = head.find(b"\r\nx-penstock-cache: ")
        link.outcome = head[at + 20 :].split(b"\r\n", 1)[0].decode().upper() if at >= 0 else ""
        link.tail = b""
        link.head = head
        return data

    def _ended(self, link: _Link, now: int) -> None:
        found = self.found
        if link.head[9:12] != b"200":
            found.failed[f"status {link.head[9:12].decode()}"] += 1
        elif link.left < 0 and not link.chunked:
            found.failed["longer than its length"] += 1
        elif link.stream and not link.tail.removesuffix(_CHUNKS_END).endswith(_STREAM_END):
            found.failed["stream without its end"] += 1
        else:
            found.outcomes[link.outcome] += 1
            if link.due >= self._timed_from:
                key = (link.outcome, link.stream)
                if key not in found.whole:
                    found.whole[key], found.first[key] = [], []
                found.whole[key].append(now - link.due)
                found.first[key].append(link.first - link.due)
        link.due = 0
        self._busy -= 1
        self._next(link)

    def _lost(self, link: _Link, why: str) -> None:
        if link.due:
            self.found.failed[why] += 1
            self._busy -= 1
            link.due = 0
        elif link in self._free:
            self._free.remove(link)
        del self._links[link.sock.fileno()]
        link.sock.close()  # which takes it out of epoll
        self._next(self._open(_AGAIN_S))

    def _next(self, link: _Link) -> None:
        if self._backlog:
            self._send(link, *self._backlog.popleft())
        else:
            self._free.append(link)


def _requests(plan: Plan, corpus: questions.Corpus) -> list[tuple[bytes, bytes, bool]]:
    """Each draw as what comes before the number of its lap, what comes after it, and whether it is a stream."""
    parts = urlsplit(plan.url)
    auth = f"authorization: Bearer {plan.bearer}\r\n" if plan.bearer else ""
    top = f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n{auth}"
    made = []
    for one in corpus.questions:
        before, after = one.body.encode().split(questions.LAP.encode(), 1)
        length = len(before) + _LAP_DIGITS + len(after)
        made.append((f"{top}content-length: {length}\r\n\r\n".encode() + before, after, one.stream))
    return [made[number] for number in corpus.draws]


def first_of_all() -> bool:
    """Run before everything else on this core, where the kernel lets us."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except OSError:
        return False
    return True


def main() -> int:
    """Run the plan of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--connections", type=int, default=256)
    parser.add_argument("--warm-s", type=float, default=0.0)
    parser.add_argument("--lap", type=int, default=0)
    parser.add_argument("--pid", type=int, default=0)
    given = parser.parse_args()
    raise_file_limit(given.connections + 1000)
    with given.corpus.open() as lines:
        corpus = questions.read(lines)
    load = Steady(_plan(given), corpus)
    load.open()
    ahead = first_of_all()
    print("ready", flush=True)
    found = load.run().as_dict()
    print(json.dumps({**found, "ahead": ahead}), flush=True)
    return 0


def _plan(given: argparse.Namespace) -> Plan:
    return Plan(
        **{name: value for name, value in vars(given).items() if name != "corpus"},
        bearer=os.environ.get("PENSTOCK_BENCH_KEY", ""),
    )


if __name__ == "__main__":
    sys.exit(main())
