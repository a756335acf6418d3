"""Waiting for a server, and where a gateway's state is."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock.workers.pools import state
from penstock.workers.pools.ready import MOST_BYTES, until_ready


class Door:
    """Answers connection after connection from a list; what it was asked is kept."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.asked: list[bytes] = []

    async def open(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.asked.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


@pytest.fixture
async def url() -> AsyncIterator[tuple[str, Door]]:
    door = Door(OK)
    async with await asyncio.start_server(door.open, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", door


async def test_it_returns_with_the_first_2xx_over_a_connection_of_its_own_each_time(
    url: tuple[str, Door], monkeypatch: pytest.MonkeyPatch
) -> None:
    where, door = url
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # is not for servers of pools
    door.answers = [b"HTTP/1.1 503 x\r\ncontent-length: 0\r\n\r\n", b"nonsense\r\n\r\n", b"", OK]
    await until_ready(where, path="/up", api_key="open", every_s=0.01)
    assert len(door.asked) == 4
    assert all(
        one.startswith(b"GET /up ") and b"authorization: bearer open" in one.lower() for one in door.asked
    )


async def test_without_a_key_none_is_sent_and_nobody_there_is_asked_again(url: tuple[str, Door]) -> None:
    where, door = url
    await until_ready(where, path="/health", api_key=None, every_s=0.01)
    assert b"authorization" not in door.asked[0].lower()
    waiting = asyncio.ensure_future(until_ready("http://127.0.0.1:9", path="/", api_key=None, every_s=0.01))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    waiting.cancel()


async def test_what_it_reads_is_bounded(url: tuple[str, Door]) -> None:
    where, door = url
    door.answers = [b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n" + b"x" * (2 * MOST_BYTES)]
    await until_ready(where, path="/health", api_key=None, every_s=0.01)


@pytest.mark.parametrize(
    ("configured", "environ", "where"),
    [
        ("/srv/state", {"STATE_DIRECTORY": "/var/lib/penstock"}, "/srv/state"),
        (None, {"STATE_DIRECTORY": "/var/lib/penstock:/other", "XDG_STATE_HOME": "/x"}, "/var/lib/penstock"),
        (None, {"XDG_STATE_HOME": "/x", "HOME": "/home/me"}, "/x/penstock"),
        (None, {"XDG_STATE_HOME": "relative", "HOME": "/home/me"}, "/home/me/.local/state/penstock"),
    ],
    ids=["configured", "systemd", "xdg", "home"],
)
def test_the_state_is_where_it_is_said_to_be(
    configured: str | None, environ: dict[str, str], where: str
) -> None:
    assert state.base(configured, environ) == Path(where)


def test_each_gateway_has_a_folder_of_its_own_for_its_user_alone(tmp_path: Path) -> None:
    one, other, port = (
        state.of_gateway(str(tmp_path / "s"), {}, tmp_path / name, number)
        for name, number in (("a.yaml", 1), ("b.yaml", 1), ("a.yaml", 2))
    )
    assert len({one, other, port}) == 3
    os.symlink(tmp_path / "a.yaml", tmp_path / "link.yaml")
    assert state.of_gateway(str(tmp_path / "s"), {}, tmp_path / "link.yaml", 1) == one
    state.make(one)
    one.chmod(0o755)
    state.make(one)
    assert stat.S_IMODE(one.stat().st_mode) == 0o700
