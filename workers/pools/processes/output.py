"""What a server writes: a file each that it appends to itself, so that it writes on when the gateway is gone.

A start keeps the file of the one before beside it (`.1`). A file that grows too large is copied there and cut; the
server appends, so it goes on at the start, and never waits for anybody.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from .. import state as folders
from ..quote import one_line

MOST_BYTES = 16 << 20
_TAIL_BYTES = 8 << 10


def path_of(state: Path, model: str, member: int) -> Path:
    """The file of one member."""
    stem = "".join(c if c.isalnum() or c in "._" else "-" for c in model)[:80]
    return state / "logs" / f"{stem}-{member}.log"


def open_new(path: Path) -> int:
    """A descriptor to append to an empty file; what was there is kept beside it. Raises OSError."""
    folders.make(path.parent.parent)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        path.rename(beside(path))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def beside(path: Path) -> Path:
    """Where the older part is."""
    return path.with_name(path.name + ".1")


def cut(path: Path, most_bytes: int = MOST_BYTES) -> bool:
    """Put what there is aside where it is too much; whether it was. Blocks for as long as a copy takes."""
    try:
        if path.stat().st_size <= most_bytes:
            return False
        shutil.copyfile(path, beside(path))
        beside(path).chmod(0o600)
        os.truncate(path, 0)
    except OSError:
        return False
    return True


def last_line(path: Path) -> str:
    """The last line that says anything, shortened; empty without one."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            tail = file.read(_TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line for raw in tail.splitlines() if (line := one_line(raw))]
    return lines[-1] if lines else ""
