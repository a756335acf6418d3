"""Shared memory had in full or not at all: the part that every shared file of ours begins with.

A sparse file would be quicker to make, and would kill a process with SIGBUS on the day tmpfs is full. So every
page is reserved when the file is made, and what cannot be had is one line that says how much there is. Knows
nothing of what the bytes mean.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator

_MIB = 1024 * 1024


class NotReady(Exception):
    """The file is there, but its creator has not published it (yet)."""


class WrongVersion(Exception):
    """The file has another layout, is damaged, or is none of ours."""


class NoRoom(Exception):
    """The file system cannot hold the file. `needed_bytes`; `free_bytes`, None where it does not say."""

    def __init__(
        self, where: str, needed_bytes: int, free_bytes: int | None, what: str = "the shared segment"
    ) -> None:
        free = "too little is" if free_bytes is None else f"{free_bytes / _MIB:.1f} MiB are"
        super().__init__(f"{what} needs {needed_bytes / _MIB:.1f} MiB in {where}, where {free} free")
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


@contextlib.contextmanager
def made(path: str | None, name: str, size_bytes: int, what: str = "the shared segment") -> Iterator[int]:
    """A new file of ours, mode 0600, every page of it had, as a descriptor: at `path`, or without a path a memfd
    called `name`.

    What fails within the block leaves nothing behind; else the descriptor is the caller's. what: the file in an
    operator's words. Raises FileExistsError and NoRoom.
    """
    if path is None:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.fchmod(fd, 0o600)
        _allocate(fd, size_bytes, path, what)
        yield fd
    except BaseException:
        os.close(fd)
        if path is not None:
            os.unlink(path)
        raise


def _allocate(fd: int, size_bytes: int, path: str | None, what: str) -> None:
    """Reserve every page, so that no later store can die of SIGBUS; fix the size of a memfd for good.

    path: where the file lies, None for a memfd. what: its name in an operator's words. Raises NoRoom.
    """
    free_bytes = None
    if path is not None:
        stat = os.fstatvfs(fd)
        free_bytes = stat.f_bavail * stat.f_frsize if stat.f_blocks else None
    try:
        os.posix_fallocate(fd, 0, size_bytes)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT, errno.EFBIG):
            where = "memory" if path is None else os.path.dirname(path) or "."
            raise NoRoom(where, size_bytes, free_bytes, what) from error
        raise
    if path is None:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
