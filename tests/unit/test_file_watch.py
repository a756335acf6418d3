"""A file is read when it is another, or has been still for a look; never while it is being written."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from penstock.workers import file_watch
from tests.support.procs import wait_until

Stamp = tuple[int, int, int, int, int]
ONE: Stamp = (1, 10, 5, 100, 100)


async def read_at(monkeypatch: pytest.MonkeyPatch, looks: list[Stamp | None]) -> list[int]:
    """After which looks the file was read; the last look is repeated."""
    at = -1

    def stamp_of(_: Path) -> Stamp | None:
        nonlocal at
        at += 1
        return looks[min(at, len(looks) - 1)]

    monkeypatch.setattr(file_watch, "stamp_of", stamp_of)
    reads: list[int] = []

    async def follow() -> None:
        async for _ in file_watch.changes(Path("/none"), look_s=0.0):
            reads.append(at)

    following = asyncio.ensure_future(follow())
    await asyncio.to_thread(wait_until, lambda: at > len(looks) + 2, 20, "all looks")
    following.cancel()
    await asyncio.wait([following])
    return reads


def changed(stamp: Stamp, size: int) -> Stamp:
    return (stamp[0], stamp[1], size, stamp[3] + size, stamp[4] + size)


OTHER_INODE: Stamp = (1, 11, 5, 100, 100)
OTHER_DEVICE: Stamp = (2, 10, 5, 100, 100)


@pytest.mark.parametrize(
    ("looks", "reads"),
    [
        ([ONE, ONE, ONE], [0]),
        ([ONE, OTHER_INODE, OTHER_INODE], [0, 1]),
        ([ONE, OTHER_DEVICE], [0, 1]),
        ([ONE, changed(ONE, 1), changed(ONE, 2), changed(ONE, 2)], [0, 3]),
        ([ONE, changed(ONE, 1), ONE], [0]),
        ([ONE, None, None, ONE], [0, 1, 3]),
        ([None, None, ONE, ONE], [0, 2]),
    ],
    ids=["still", "renamed", "other device", "written in pieces", "back", "gone and back", "comes"],
)
async def test_when_a_file_is_read(
    monkeypatch: pytest.MonkeyPatch, looks: list[Stamp | None], reads: list[int]
) -> None:
    assert await read_at(monkeypatch, looks) == reads
