"""When a file has changed, told by looking at it.

Strategy: a look takes the file's inode, size and times, through symbolic links. Another inode is a file that was put in
its place whole, by a rename or by another target of a link, and counts at once; the same one changed is being written,
and counts when it has been still for one look. What is in it is somebody else's to judge.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from pathlib import Path

LOOK_S = 0.2
_Stamp = tuple[int, int, int, int, int]


async def changes(path: Path, look_s: float = LOOK_S) -> AsyncGenerator[None, None]:
    """At once, and then after each change of the file, its coming and going too; without end."""
    read = seen = stamp_of(path)
    yield
    while True:
        await asyncio.sleep(look_s)
        stamp = stamp_of(path)
        settled = stamp == seen or stamp is None or read is None or stamp[:2] != read[:2]
        if stamp != read and settled:
            read = stamp
            yield
        seen = stamp


def stamp_of(path: Path) -> _Stamp | None:
    """What another file, or another content, would have another of; None without a file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
