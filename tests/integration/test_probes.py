"""Probes against real servers: each backend for itself, with its key, and what the servers report of themselves."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest

from penstock.cache.layout import Geometry
from penstock.cache.segment import Segment
from penstock.cache.table import DOWN, UP, BackendTable
from penstock.gateway.config import Backend, Config, Health, Model, Published
from penstock.workers import store
from penstock.workers.backend_scrape import BackendScrape
from penstock.workers.board import Board
from penstock.workers.probes import Prober

from ..support.h2_server import Asked, H2Peer, each, h2_scripted
from ..support.scripted import Peer, scripted, until

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"
PAGE = b"vllm:num_requests_waiting 7\nvllm:num_requests_running 2\nvllm:kv_cache_usage_perc 0.5\n"


def answer(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s" % (
        status.encode(),
        len(body),
        body,
    )


class Server:
    """Says `answers[path]`; of a path without one, nothing at all."""

    def __init__(self, **answers: bytes) -> None:
        self.answers = {"/" + name: text for name, text in answers.items()}
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.asked: Counter[str] = Counter()

    async def __call__(self, peer: Peer) -> None:
        head, body = await peer.request()
        path = head.split()[1].decode()
        self.heads.append(head)
        self.bodies.append(body)
        self.asked[path] += 1
        text = self.answers.get(path)
        if text is None:
            await peer.forever()
        else:
            await peer.send(text)


class Probing:
    """A prober that runs, on a table of its own."""

    def __init__(self, segment: Segment, environ: dict[str, str]) -> None:
        self.table = BackendTable(segment)
        self.board = Board(self.table, Clock())
        self.scrape = BackendScrape()
        self.told: list[tuple[str, bool]] = []
        self.prober = Prober(
            self.board, self.scrape, environ, lambda name, good: self.told.append((name, good))
        )


class Clock:
    """Nanoseconds that never stand still."""

    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        self.ns += 1
        return self.ns


@contextlib.asynccontextmanager
async def probing(published: Published, **environ: str) -> AsyncIterator[Probing]:
    segment = Segment.create(None, Geometry(slots=2, backends=8, models=8), owner_pid=1, owner_start=1)
    made = Probing(segment, environ)
    await made.prober.swap(published)
    running = asyncio.create_task(made.prober.run())
    try:
        yield made
    finally:
        assert not running.done()
        running.cancel()
        await asyncio.wait([running])
        await made.prober.close()
        segment.close()


def settings(
    *backends: Backend, interval_s: float = 0.02, timeout_s: float = 60.0, **health: object
) -> Config:
    return Config(
        models={"m": Model(backends=backends)},
        health=Health(interval_s=interval_s, timeout_s=timeout_s, **health),  # type: ignore[arg-type]
    )


def at_least(server: Server, path: str, count: int) -> Callable[[], bool]:
    return lambda: server.asked[path] >= count


async def test_a_backend_that_hangs_delays_no_others_probe() -> None:
    good, hangs = Server(health=OK, metrics=OK), Server()
    async with scripted(good) as one, scripted(hangs) as other:
        published = store.first(settings(Backend(url=other.url), Backend(url=one.url)))
        async with probing(published) as at:
            await until(at_least(good, "/health", 10))
            assert hangs.asked == {"/health": 1}
            assert at.board.health_of(1) == UP


async def test_metrics_that_hang_delay_the_probes_of_their_own_server_alone() -> None:
    good, hangs = Server(health=OK, metrics=answer(PAGE)), Server(health=OK)
    async with scripted(good) as one, scripted(hangs) as other:
        published = store.first(settings(Backend(url=other.url), Backend(url=one.url)))
        async with probing(published):
            await until(at_least(good, "/metrics", 10))
            assert hangs.asked == {"/health": 2, "/metrics": 1}


async def test_a_probe_that_is_late_has_failed_and_so_have_refusals_and_errors(
    caplog: pytest.LogCaptureFixture,
) -> None:
    late, wrong = Server(), Server(health=answer(b"", "503 No"))
    async with scripted(late) as gone:
        nobody = gone.url
    async with scripted(late) as one, scripted(wrong) as other:
        backends = [Backend(url=url) for url in (one.url, other.url, nobody)]
        async with probing(store.first(settings(*backends, timeout_s=0.05))) as at:
            await until(lambda: [at.board.health_of(i) for i in range(3)] == [DOWN] * 3)
            name = one.url.removeprefix("http://")
            assert (name, False) in at.told
            assert (name, True) not in at.told
    lines = sorted(m.split("health=")[1] for m in caplog.messages if m.startswith("backend_health "))
    assert lines == [
        "down: /health answered 503",
        "down: All connection attempts failed",
        "down: TimeoutError",
    ]


async def test_the_backends_key_goes_with_the_probe() -> None:
    server = Server(health=OK, metrics=OK)
    async with scripted(server) as one:
        published = store.first(settings(Backend(url=one.url, api_key_env="KEY")))
        async with probing(published, KEY="sk-1"):
            await until(at_least(server, "/metrics", 1))
            assert all(b"\r\nauthorization: Bearer sk-1\r\n" in head for head in server.heads)


async def test_a_probe_may_be_a_completion_of_each_model() -> None:
    server = Server()
    server.answers["/v1/completions"] = OK
    server.answers["/metrics"] = OK
    async with scripted(server) as one:
        backends = (Backend(url=one.url),)
        config = Config(
            models={name: Model(backends=backends) for name in "mn"},
            health=Health(interval_s=0.02, completion=True),
        )
        async with probing(store.first(config)) as at:
            await until(lambda: [at.board.health_of(i) for i in range(2)] == [UP, UP])
            asked = {body for body in server.bodies if body}
            assert asked == {b'{"model":"%s","prompt":"1","max_tokens":1}' % name for name in (b"m", b"n")}
            assert server.asked["/health"] == 0


async def test_what_an_up_server_reports_is_on_the_board_and_on_the_page() -> None:
    server = Server(health=OK, metrics=answer(PAGE))
    async with scripted(server) as one, probing(store.first(settings(Backend(url=one.url)))) as at:
        await until(lambda: at.board.row(0).updated_ns > 0)
        row = at.table.read(0)
        assert row is not None
        assert (row.waiting, row.running, row.kv_permille) == (7, 2, 500)
        name = one.url.removeprefix("http://").encode()
        assert b'vllm:num_requests_waiting{backend="%s"} 7\n' % name in await at.scrape.exposition()
        server.answers["/health"] = answer(b"", "500 No")
        await until(lambda: at.board.health_of(0) == DOWN)
        assert await at.scrape.exposition() == b""


async def test_metrics_without_end_cost_a_bound_and_no_verdict() -> None:
    class Flood(Server):
        async def __call__(self, peer: Peer) -> None:
            head, _ = await peer.request()
            self.asked[head.split()[1].decode()] += 1
            if b"/metrics" in head:
                await peer.send(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
                while True:
                    await peer.send(b"vllm:x 1\n" * 10_000)
            await peer.send(OK)

    server = Flood()
    async with scripted(server) as one, probing(store.first(settings(Backend(url=one.url)))) as at:
        await until(at_least(server, "/metrics", 2))
        assert at.board.health_of(0) == UP
        assert at.board.row(0).updated_ns == 0
        assert await at.scrape.exposition() == b""


async def test_a_reload_begins_with_what_is_new_and_leaves_what_is_gone() -> None:
    old, new = Server(health=OK, metrics=OK), Server(health=OK, metrics=OK)
    async with scripted(old) as one, scripted(new) as other:
        first = store.first(settings(Backend(url=one.url)))
        async with probing(first) as at:
            await until(at_least(old, "/health", 2))
            second = store.following(settings(Backend(url=other.url), interval_s=0.01), first)
            await at.prober.swap(second)
            seen = old.asked["/health"]
            await until(at_least(new, "/health", 10))
            assert old.asked["/health"] == seen
            assert at.board.health_of(second.indices[store.backend_key("m", other.url)]) == UP


async def test_a_shorter_interval_counts_at_once() -> None:
    server = Server(health=OK, metrics=OK)
    async with scripted(server) as one:
        first = store.first(settings(Backend(url=one.url), interval_s=3600))
        async with probing(first) as at:
            await until(lambda: at.board.health_of(0) == UP)
            assert server.asked["/health"] == 1
            await at.prober.swap(store.following(settings(Backend(url=one.url)), first))
            await until(at_least(server, "/health", 5))


async def test_probes_and_metrics_are_asked_for_in_the_backends_protocol() -> None:
    asked: dict[bytes | None, Asked] = {}

    async def answer(peer: H2Peer, request: Asked) -> None:
        path = request.field(b":path")
        asked[path] = request
        peer.reply(request.number, PAGE if path == b"/metrics" else b"{}")

    async with h2_scripted(each(answer)) as server:
        first = store.first(settings(Backend(url=server.url, api_key_env="KEY")))
        async with probing(first, KEY="sk-backend") as at:
            await until(lambda: at.board.health_of(0) == DOWN)  # it does not speak HTTP/1.1
            assert not asked
            second = Backend(url=server.url, api_key_env="KEY", protocol="http2")
            await at.prober.swap(store.following(settings(second), first))
            await until(lambda: at.board.row(0).waiting == 7)
            assert at.board.health_of(0) == UP
            assert set(asked) == {b"/health", b"/metrics"}
            for request in asked.values():
                assert request.field(b"authorization") == b"Bearer sk-backend"
            await until(lambda: server.open <= 2)  # a connection of its own each time, and none is kept
