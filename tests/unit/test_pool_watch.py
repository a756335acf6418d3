"""Watching servers that are ready, and servers that sleep."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from penstock.cache.layout import Geometry
from penstock.cache.segment import Segment
from penstock.cache.table import BackendTable
from penstock.gateway.config import Backend, Health
from penstock.workers.backend_scrape import BackendScrape
from penstock.workers.board import Board
from penstock.workers.pools import watch
from penstock.workers.pools.servers import Server
from penstock.workers.pools.watch import Watch


class Peer:
    """A server that hears what it is asked, and answers while it is not deaf."""

    def __init__(self) -> None:
        self.connections = 0
        self.heard = b""
        self.status = 200
        self.deaf = False

    async def open(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while data := await reader.read(65_536):
                self.heard += data
                if not self.deaf:
                    writer.write(
                        b"HTTP/1.1 %d x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % self.status
                    )
                    break
        except OSError:
            pass
        finally:
            writer.close()


class Told:
    """A watch of one server, and what it says."""

    def __init__(self, url: str, board: Board, gone_s: float) -> None:
        self.silent: list[bool] = []
        self.gone: list[str] = []
        self.server = Server(Backend(url=url), 0, (0,))
        self.watch = Watch(
            {},
            lambda: Health(path="/up"),
            board,
            BackendScrape(),
            lambda server, is_silent: self.silent.append(is_silent),
            lambda server, reason: self.gone.append(reason),
            gone_s=gone_s,
        )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"EVERY_S": 0.01, "ANSWER_S": 0.05, "AGAIN_S": 0.01, "ASLEEP_EVERY_S": 0.01}.items():
        monkeypatch.setattr(watch, name, value)


@pytest.fixture
def board() -> Iterator[Board]:
    segment = Segment.create(None, Geometry(slots=2, backends=8, models=8), owner_pid=1, owner_start=1)
    yield Board(BackendTable(segment), time.monotonic_ns)
    segment.close()


@pytest.fixture
async def peer() -> AsyncIterator[tuple[Peer, str, asyncio.Server]]:
    one = Peer()
    server = await asyncio.start_server(one.open, "127.0.0.1", 0)
    yield one, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", server
    server.close()


Given = tuple[Peer, str, asyncio.Server]


async def _until(true: object) -> None:
    while not true():  # type: ignore[operator]  # noqa: ASYNC110 - told by callbacks
        await asyncio.sleep(0.005)


async def test_one_that_is_silent_is_said_to_be_and_only_after_long_that_it_is_gone(
    peer: Given, board: Board
) -> None:
    one, url, _ = peer
    told = Told(url, board, gone_s=0.4)
    told.watch.look_at([told.server], [])
    await _until(lambda: b"GET /up " in one.heard)
    one.deaf = True
    await _until(lambda: told.silent)
    assert (told.silent, told.gone) == ([True], [])
    await _until(lambda: told.gone)
    assert told.gone[0] == "it has not answered for 0.4 s: /up is not answered"
    await told.watch.close()


async def test_one_that_answers_again_is_said_to(peer: Given, board: Board) -> None:
    one, url, _ = peer
    told = Told(url, board, gone_s=60)
    one.status = 503
    told.watch.look_at([told.server], [])
    await _until(lambda: told.silent == [True])
    one.status = 200
    await _until(lambda: told.silent == [True, False])
    assert told.gone == []
    await told.watch.close()


async def test_one_that_refuses_connections_is_gone(peer: Given, board: Board) -> None:
    _, url, server = peer
    told = Told(url, board, gone_s=60)
    told.watch.look_at([told.server], [])
    server.close()
    await _until(lambda: told.gone)
    assert told.gone[0] == "it refuses connections"
    await told.watch.close()


async def test_one_that_sleeps_is_connected_to_and_asked_nothing(peer: Given, board: Board) -> None:
    one, url, server = peer
    told = Told(url, board, gone_s=60)
    told.watch.look_at([], [told.server])
    await _until(lambda: one.connections >= 3)
    assert (one.heard, told.silent, told.gone) == (b"", [], [])
    server.close()
    await _until(lambda: told.gone)
    await told.watch.close()


async def test_what_is_watched_no_more_is_not_asked(peer: Given, board: Board) -> None:
    one, url, _ = peer
    told = Told(url, board, gone_s=60)
    told.watch.look_at([told.server], [])
    await _until(lambda: one.connections)
    await told.watch.close()
    asked = one.connections
    for _ in range(5):
        await asyncio.sleep(0.02)
    assert one.connections == asked
