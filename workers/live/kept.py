"""The document that was in force last, kept in the state folder: for a start while the Redis that has it is away."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from ...gateway.config import Layer
from ...gateway.config.source import MAX_FILE_BYTES
from ..pools import state

_NAME = "config-document.json"


def read(folder: Path) -> Layer | None:
    """The one that was kept; None where there is none that can be read."""
    try:
        with open(folder / _NAME, "rb") as file:
            return msgspec.json.decode(file.read(8 * MAX_FILE_BYTES), type=Layer)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def write(folder: Path, layer: Layer) -> None:
    """Keep this one instead. Raises OSError."""
    target = state.make(folder) / _NAME
    temporary = target.with_suffix(".new")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(fd, "wb") as file:
        file.write(msgspec.json.encode(layer))
        file.flush()
        os.fsync(fd)
    temporary.rename(target)
