"""Asks the processes of a gateway through their hatches, all at once, each with a bound in time and size.

A process that dies meanwhile closes its connection: it is named among the lost, and holds up nobody. Cancelled, it
closes all connections, and what was begun in the processes ends.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ...cache.segment import Segment
from ...cache.slots import read_slot
from .hatch import END, Wish, path_of

_MOST_BYTES = 128 << 20
_PATIENCE_S = 30.0
"""Beyond the time that was asked for."""


@dataclass(frozen=True, slots=True)
class Process:
    """One that may be asked. name: `controller`, or the worker's number."""

    name: str
    pid: int
    path: Path


@dataclass(frozen=True, slots=True)
class Told:
    """What a process said, line by line; None: it was lost."""

    process: Process
    lines: list[dict[str, Any]] | None


def processes(segment: Segment, folder: Path) -> list[Process]:
    """All that live, the controller last. In a rolling restart a number may be there twice."""
    slots = segment.geometry.slots
    found = []
    for slot in range(slots + 1):
        info = read_slot(segment, slot)
        if info.alive:
            name = "controller" if slot == slots else str(slot % (slots // 2))
            found.append(Process(name, info.pid, path_of(folder, slot, info.generation)))
    return sorted(found, key=lambda one: (one.name == "controller", one.name.zfill(9)))


async def ask_all(asked: Iterable[Process], wish: Wish) -> list[Told]:
    """What each of them says."""
    return list(await asyncio.gather(*(_ask(one, wish) for one in asked)))


async def _ask(process: Process, wish: Wish) -> Told:
    answer = bytearray()
    try:
        async with asyncio.timeout(wish.seconds + _PATIENCE_S):
            reader, writer = await asyncio.open_unix_connection(os.fspath(process.path))
            try:
                writer.write(msgspec.json.encode(wish) + b"\n")
                while piece := await reader.read(1 << 18):
                    answer += piece
                    if len(answer) > _MOST_BYTES:
                        return Told(process, None)
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError):
        return Told(process, None)
    if not answer.endswith(END):
        return Told(process, None)
    return Told(process, await asyncio.to_thread(_lines, bytes(answer)))


def _lines(answer: bytes) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in answer.splitlines()[:-1]]
