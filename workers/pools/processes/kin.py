"""A server's processes: whether one is the very one that was started, and which others came of it.

Strategy: a process is recognised by its pid and its start time, of the same boot, and by the mark in its environment,
as long as it has not written over that (programs that change their title do). Those that came of it are in its
session, have its mark, or descend from one that does; each is sent a signal through a descriptor of its own, so that a
pid that was given to somebody else meanwhile is never hit.
"""

from __future__ import annotations

import contextlib
import os
import signal

from ....cache.segment import process_start
from .record import Record, boot_id

MARK = "PENSTOCK_POOL_MEMBER"
KILL = signal.SIGKILL
_MOST_BYTES = 1 << 20

Kin = dict[int, int]
"""Start time by pid."""


def is_alive(record: Record) -> bool:
    """Whether that very process still runs."""
    if record.boot != boot_id() or process_start(record.pid) != record.start:
        return False
    return _is_marked(record.pid, record.mark) is not False


def _is_marked(pid: int, mark: str) -> bool | None:
    """Whether the process has the mark; None where its environment cannot be read, or was written over."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environ = file.read(_MOST_BYTES)
    except OSError:
        return None
    if f"{MARK}={mark}".encode() in environ.split(b"\0"):
        return True
    return False if b"=" in environ else None


def kin_of(record: Record, *, just_ended: bool = False) -> Kin:
    """All processes that came of a server, and itself, as far as they run.

    just_ended: its first process has, and this very moment, so that the number of its session is nobody else's yet.
    """
    session: dict[int, int] = {}
    parents: dict[int, int] = {}
    starts: Kin = {}
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
            if fields[0] not in (b"Z", b"X"):
                pid = int(name)
                parents[pid], session[pid], starts[pid] = int(fields[1]), int(fields[3]), int(fields[19])
    own = just_ended or is_alive(record)
    found: set[int] = set()
    for pid in starts:
        if starts[pid] < record.start or pid == os.getpid():
            continue
        marked = _is_marked(pid, record.mark)
        in_session = session[pid] == record.pid and (own or marked is None)
        if marked or in_session or (own and pid == record.pid):
            found.add(pid)
    while more := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
        found |= more
    return {pid: starts[pid] for pid in found}


def still(kin: Kin) -> Kin:
    """Those that still run."""
    return {pid: start for pid, start in kin.items() if process_start(pid) == start}


def send(kin: Kin, number: signal.Signals) -> None:
    """Send each of them a signal."""
    for pid, start in kin.items():
        with contextlib.suppress(OSError):
            fd = os.pidfd_open(pid)
            try:
                if process_start(pid) == start:
                    signal.pidfd_send_signal(fd, number)
            finally:
                os.close(fd)
