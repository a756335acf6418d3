"""The bench's generator of a constant rate: what it reports is what a client would have waited."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from penstock.loadtests.bench.rig import steady
from penstock.loadtests.bench.rig.steady import Plan, Steady
from penstock.loadtests.suite import questions

_PLAIN = b"HTTP/1.1 200 OK\r\nX-Penstock-Cache: HIT-L1\r\nContent-Length: 2\r\n\r\n{}"
_HEAD = b"HTTP/1.1 200 OK\r\nx-penstock-cache: MISS\r\ntransfer-encoding: chunked\r\n\r\n"
_EVENT, _DONE = b"data: {}\n\n", b"data: [DONE]\n\n"


def _chunks(*events: bytes) -> bytes:
    return _HEAD + b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in events) + b"0\r\n\r\n"


_STREAM = _chunks(_EVENT, _DONE)


@dataclass
class Server:
    """Answers as it is told, a thread a connection; what it was asked, in the order it came."""

    answer: Callable[[int, bytes], bytes | None]
    asked: list[bytes] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    pause: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as reader:
            while line := reader.readline():
                length = 0
                while line.strip():
                    if line.startswith(b"content-length: "):
                        length = int(line[16:])
                    line = reader.readline()
                body = reader.read(length)
                with self.lock:
                    number = len(self.asked)
                    self.asked.append(body)
                answer = self.answer(number, body)
                if answer is None:
                    return
                for piece in answer.split(b"|"):
                    connection.sendall(piece)
                    if piece is not answer:
                        self.pause.wait(0.001)  # so that it is read before the next one comes


@contextmanager
def server(answer: Callable[[int, bytes], bytes | None]) -> Iterator[Server]:
    one = Server(answer)
    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/chat/completions"

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threads.append(threading.Thread(target=one.serve, args=(connection,)))
                threads[-1].start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield one
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for thread in threads:
                thread.join()


def corpus(*streams: bool) -> questions.Corpus:
    asked = [questions.Question("m", one, f'{{"q":"{n} {questions.LAP}"}}') for n, one in enumerate(streams)]
    return questions.Corpus(asked, range(len(asked)), 0.0)


def run(one: Server, asked: questions.Corpus, **plan: float) -> steady.Found:
    load = Steady(Plan(one.url, **plan), asked)  # type: ignore[arg-type]
    load.open()
    return load.run()


def test_when_a_request_is_due_depends_on_its_number_alone():
    plan = Plan("", rate=8000, seconds=2.5)
    assert plan.requests == 20_000
    assert [plan.due_ns(n) for n in (0, 1, 8, 16_000)] == [0, 125_000, 1_000_000, 2_000_000_000]
    assert Plan("", rate=3, seconds=1).due_ns(3_000_000) == 10**15  # nothing adds up


def test_a_server_that_stalls_once_made_everybody_wait_who_was_due_meanwhile():
    """One connection, a request each millisecond, and the first is answered after 60 ms: who was due in the first 40
    of them has waited 20 at least, though it was sent only when the first had its answer."""
    stall = threading.Event()
    with server(lambda number, _: (stall.wait(0.06) and None) or _PLAIN if not number else _PLAIN) as one:
        found = run(one, corpus(False), rate=1000, seconds=0.08, connections=1)
    times = found.whole[("HIT-L1", False)]
    assert len(times) == 80
    assert sum(ns >= 20_000_000 for ns in times) >= 40
    assert len(found.lag) == 80 - found.waited < 80  # it was the server that was late


def test_every_lap_asks_the_corpus_in_its_order_under_a_number_of_its_own():
    with server(lambda *_: _PLAIN) as one:
        found = run(one, corpus(False, False, False), rate=1000, seconds=0.007, connections=1, lap=99_999)
    assert [body.decode() for body in one.asked] == [
        f'{{"q":"{n % 3} {lap}"}}' for n, lap in enumerate(["99999"] * 3 + ["00000"] * 3 + ["00001"])
    ]
    assert found.good == found.planned == 7


def test_outcomes_are_told_apart_however_answers_are_cut():
    cut = b"|".join(_STREAM[at : at + 23] for at in range(0, len(_STREAM), 23))
    with server(lambda _, body: cut if b'"1 ' in body else _PLAIN) as one:
        found = run(one, corpus(False, True), rate=500, seconds=0.04, connections=2)
    assert found.outcomes == {"HIT-L1": 10, "MISS": 10}
    assert found.hits == 10
    assert not found.failed
    first, whole = found.first[("MISS", True)], found.whole[("MISS", True)]
    assert all(a <= b for a, b in zip(first, whole, strict=True))
    told = found.as_dict()
    assert told["miss_stream"] == steady.quantiles(whole)
    assert told["miss_first"] == steady.quantiles(first)
    assert told["miss_plain"] == {}


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (_PLAIN.replace(b"200 OK", b"429 No"), "status 429"),
        (_chunks(_EVENT), "stream without its end"),
        (_chunks(_EVENT, b'data: {"error":{}}\n\n'), "stream without its end"),
        (_PLAIN + b"}", "longer than its length"),
        (None, "closed"),
    ],
    ids=["status", "cut", "error-frame", "longer", "closed"],
)
def test_an_answer_that_is_none_is_counted_as_that_and_not_timed(answer: bytes | None, why: str):
    """Every second one fails; the others, on whatever connection there is then, do not."""
    with server(lambda _, body: answer if b'"1 ' in body else _STREAM) as one:
        found = run(one, corpus(True, True), rate=500, seconds=0.02, connections=1)
    assert found.failed == {why: 5}
    assert found.good == 5


def test_quantiles_are_values_that_were_seen():
    told = steady.quantiles([n * 1000 for n in range(1000)])
    assert told == {"p50_us": 500.0, "p95_us": 950.0, "p99_us": 990.0, "p999_us": 999.0, "max_us": 999.0}
    assert steady.quantiles([]) == {}


@pytest.mark.parametrize(
    ("cpu", "lag", "why"),
    [
        (0.79, {"p50_us": 100.0, "p99_us": 1000.0}, ""),
        (0.80, {"p50_us": 1.0, "p99_us": 2.0}, "used 80% of its core"),
        (0.1, {"p50_us": 101.0, "p99_us": 102.0}, "p50"),
        (0.1, {"p50_us": 1.0, "p99_us": 1001.0}, "p99 1.00 ms, 1 ms allowed"),
        (0.1, {}, ""),
    ],
    ids=["in-time", "busy", "half", "hundredth", "none"],
)
def test_a_generator_that_was_late_says_so(cpu: float, lag: dict[str, float], why: str):
    told = steady.late(cpu, lag)
    assert why in told
    assert bool(told) == bool(why)


def test_what_comes_to_warm_up_is_counted_and_not_timed():
    with server(lambda *_: _PLAIN) as one:
        found = run(one, corpus(False), rate=1000, seconds=0.02, connections=2, warm_s=0.01)
    assert found.outcomes == {"HIT-L1": 30}
    assert found.good == found.planned == len(found.lag) + found.waited == 20
