"""OS locks on the shared segment, one byte each: how processes that have no compare-and-swap exclude each
other.

Lock order, for whoever must hold two:

    1. a slot's lock      held from claim to death; death frees it, which is what makes it worth having
    2. a gate stripe, or a stripe of flight marks
                          held for a handful of stores, never two at once, nothing awaited or logged under it

Nothing ever waits for a lock. It is tried; who does not get it skips the work or falls back. So there is no
deadlock, and a process stopped while it holds a lock stops nobody.

These are Linux's open-file-description locks (`F_OFD_SETLK`). Plain record locks belong to the process and
vanish when anything in it closes any descriptor of the file. An OFD lock belongs to the open file
description, therefore: two descriptors that share one (dup, fork) share the lock and do not exclude each
other, so every process opens its own; and the lock is freed when the last descriptor of that description
goes, at the latest with the process.

This module refuses to know what a lock protects.
"""

from __future__ import annotations

import fcntl
import struct

# struct flock on 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid. OFD locks want l_pid 0.
_FLOCK = struct.Struct("@hhqqi4x")
_flock = _FLOCK.pack
_SETLK = fcntl.F_OFD_SETLK
_fcntl = fcntl.fcntl


class Stripes:
    """`count` locks on the bytes from `base` on, of one open file description that this process opened
    itself.

    An OFD lock can be taken twice through one description, so this object remembers which ones it holds and
    refuses those as well: use one object per description and range. Not for use from several threads.
    """

    __slots__ = ("_fd", "_held", "_requests", "count")

    def __init__(self, fd: int, base: int, count: int) -> None:
        self.count = count
        self._fd = fd
        self._held: set[int] = set()
        self._requests = _Requests(base, count)

    def try_lock(self, i: int) -> bool:
        """Take lock i if nobody has it, this object included. Raises IndexError past the last one."""
        request = self._requests[i][0]
        if i in self._held:
            return False
        try:
            _fcntl(self._fd, _SETLK, request)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: another description holds it
            return False
        self._held.add(i)
        return True

    def unlock(self, i: int) -> None:
        """Give lock i back; no harm done when this object does not hold it."""
        if i in self._held:
            _fcntl(self._fd, _SETLK, self._requests[i][1])
            self._held.discard(i)

    def unlock_all(self) -> None:
        """Give back whatever is held: for a descriptor to be closed while a mapping keeps a copy of it."""
        for i in tuple(self._held):
            self.unlock(i)

    def holds(self, i: int) -> bool:
        """Whether this object holds lock i."""
        return i in self._held

    def held_elsewhere(self, i: int) -> bool:
        """Whether another open file description holds lock i at this moment; takes nothing."""
        answer = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, self._requests[i][0])
        return int(_FLOCK.unpack(answer)[0]) != fcntl.F_UNLCK


class _Requests(dict[int, tuple[bytes, bytes]]):
    """What the kernel is told to take and to give back a lock: of thousands few are used, so it is made when one is."""

    def __init__(self, base: int, count: int) -> None:
        self._base = base
        self._count = count

    def __missing__(self, i: int) -> tuple[bytes, bytes]:
        if not 0 <= i < self._count:
            raise IndexError(f"lock {i} of {self._count}")
        at = self._base + i
        made = _flock(fcntl.F_WRLCK, 0, at, 1, 0), _flock(fcntl.F_UNLCK, 0, at, 1, 0)
        self[i] = made
        return made
