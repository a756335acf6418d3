"""API keys in a file: read when it changes, written whole or not at all.

Strategy: `file_watch` says when a reader reads. Writers are kept apart by a lock on the folder, which a new file in it
leaves alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ...gateway.config import ConfigError
from ...gateway.config.load import read_text
from ...gateway.config.source import MAX_FILE_BYTES
from ...gateway.keys import Key
from ..file_watch import changes
from . import text
from .source import ROUND_S, Listener
from .text import BadKeys, NoKeys

_LOCK_S = 10.0


class KeysFile:
    """The file at `path`, which need not be there yet."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    @property
    def name(self) -> str:
        """For people."""
        return f"file {self._path}"

    def once(self) -> dict[str, Key]:
        """All keys in it. Raises BadKeys, NoKeys where there is no file."""
        if not self._path.exists():
            raise NoKeys(self._path)
        try:
            return text.parse(str(self._path), read_text(str(self._path), self._path))
        except ConfigError as fault:
            raise BadKeys(self._path, fault.what) from None

    async def follow(self, listener: Listener) -> None:
        """Until cancelled; a broken file is told of once for each time that it changed."""
        async for _ in changes(self._path, ROUND_S):
            try:
                listener.found(await asyncio.to_thread(self.once))
            except BadKeys as fault:
                listener.lost(str(fault))

    def add(self, id: str, key: Key, check: Callable[[dict[str, Key]], None]) -> None:
        """Add a key to those that `check` has seen and raised nothing about. Raises BadKeys."""

        def more(keys: dict[str, Key]) -> dict[str, Key]:
            check(keys)
            return {**keys, id: key}

        self._change(more)

    def remove(self, id: str) -> bool:
        """Revoke a key; False when there is none of that id. Raises BadKeys."""

        def fewer(keys: dict[str, Key]) -> dict[str, Key]:
            del keys[id]
            return keys

        try:
            self._change(fewer)
        except KeyError:
            return False
        return True

    def _change(self, how: Callable[[dict[str, Key]], dict[str, Key]]) -> None:
        """Put `how` of what there is in its place; nobody else changes it meanwhile.

        What `how` raises comes out, and nothing has changed.
        """
        target = Path(os.path.realpath(self._path))
        try:
            with _alone(target.parent):
                old = _stat(target)
                keys = self.once() if old is not None else {}
                data = text.dump(how(dict(keys))).encode()
                if len(data) > MAX_FILE_BYTES:
                    raise BadKeys(target, "over 1 MiB with one more; keep so many keys in a Redis")
                _replace(target, data, old)
        except OSError as fault:
            raise BadKeys(target, fault.strerror or "cannot be written") from None


def _stat(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _replace(target: Path, data: bytes, old: os.stat_result | None) -> None:
    """A new file is private; one that was there keeps its owner, and its mode but for the rights of others."""
    temporary = target.with_name(f".{target.name}.new")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if old is not None:
            if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
                with contextlib.suppress(PermissionError):
                    os.fchown(fd, old.st_uid, old.st_gid)
            os.fchmod(fd, (stat.S_IMODE(old.st_mode) & 0o640) | 0o600)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
        os.rename(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. Raises OSError, and BadKeys when somebody else has it for long."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        end = time.monotonic() + _LOCK_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise BadKeys(folder, "another command changes keys there and does not end") from None
                time.sleep(0.01)
        yield
        os.fsync(fd)  # the new name, too, outlives the machine
    finally:
        os.close(fd)
