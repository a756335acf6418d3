"""Appends whole lines to a file that may be moved away, fill its disk or lose its reader; for a thread that may wait.

Strategy: every write looks whether its path still names the open file, as logging's WatchedFileHandler does, so that
whoever turns logs over needs to tell nobody. Workers append to the same file: one write call keeps lines whole, in a
pipe up to PIPE_BUF bytes. What cannot be written is left out; it is logged once that it begins, and once that it ends.
"""

from __future__ import annotations

import logging
import os
import select
import stat
from collections.abc import Iterator

from ..config.structs import STDERR

log = logging.getLogger(__name__)

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_STDERR_FD = 2


class LineFile:
    """``path`` may be ``stderr``."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._identity: tuple[int, int] | None = None
        self._regular = False
        #: what was written last ends within a line
        self._torn = False
        self._failing = False

    def write(self, data: bytes) -> int:
        """Append lines; how many of them are not there."""
        start = 1 if self._torn else 0
        data = b"\n" * start + data
        at = 0
        try:
            self._look()
            for piece in self._pieces(data):
                at += os.write(self._fd, piece)
                if at < len(data) and data[at - 1] != 0x0A:
                    raise OSError(0, "written in part")
        except OSError as fault:
            if at:
                self._torn = data[at - 1] != 0x0A
            if not self._failing:
                log.warning("access_log_lost path=%s: %s", self._path, fault.strerror)
            self._failing = True
            return data.count(b"\n", at or start)
        self._torn = False
        if self._failing:
            log.warning("access_log_written path=%s", self._path)
        self._failing = False
        return 0

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0 and self._fd != _STDERR_FD:
            os.close(self._fd)
        self._fd, self._identity = -1, None

    def _look(self) -> None:
        """Open the file, where it is not open or its path names another; raises OSError."""
        if self._path == STDERR:
            self._fd = _STDERR_FD
            self._regular = stat.S_ISREG(os.fstat(_STDERR_FD).st_mode)
            return
        try:
            now = os.stat(self._path)
        except FileNotFoundError:
            pass
        else:
            if self._identity == (now.st_dev, now.st_ino):
                return
        self.close()
        self._fd = os.open(self._path, _FLAGS, 0o640)
        opened = os.fstat(self._fd)
        self._identity = opened.st_dev, opened.st_ino
        self._regular = stat.S_ISREG(opened.st_mode)
        self._torn = False

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        """What may be written by one call each and is not mixed with what other processes write."""
        if self._regular:
            yield data
            return
        at = 0
        while at < len(data):
            end = data.rfind(b"\n", at, at + select.PIPE_BUF) + 1 or data.index(b"\n", at) + 1
            yield data[at:end]
            at = end
