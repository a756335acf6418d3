"""Making a child process that is nobody else's business: fork, forget the parent's, run, leave.

Strategy: the supervisor has one thread and imports everything before it forks, so a replacement costs a fork and
not a start of the interpreter. The child gets default signals, closes every descriptor that is not its own,
asks the kernel for a SIGTERM when its parent dies, and looks whether the parent died before it asked.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable, Collection

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
FAILED = 1


def fork(name: str, keep: Collection[int], main: Callable[[], int]) -> int:
    """Start a child that runs `main` and ends with its result; the child's pid. Raises OSError.

    keep: the descriptors it inherits besides the standard three. name: at most 15 bytes, shown by `ps`.
    The calling process must have one thread only.
    """
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    # A signal between fork and the child's own handlers must find neither the parent's nor nobody.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
    except OSError:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pid
    code = FAILED
    try:
        _forget(name, keep, parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        code = main()
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else FAILED
    except BaseException:
        log.exception("child_failed name=%s", name)
    finally:
        logging.shutdown()
        # Threads of Granian's runtime may still run: no interpreter teardown under them.
        os._exit(code)


def _forget(name: str, keep: Collection[int], parent: int) -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    # A terminal sends these to the whole group; what they mean is decided by the supervisor.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(FAILED)
    close_others(keep)


def adopt_orphans() -> None:
    """Have this process become the parent of what its children leave behind, instead of pid 1."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap_orphans(own: Collection[int]) -> None:
    """Take note of the end of children that this process did not start; its `own` are somebody else's to wait for."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid in own:
            return
        os.waitpid(ended.si_pid, 0)


def close_others(keep: Collection[int]) -> None:
    """Close every descriptor but the standard three and those in `keep`."""
    kept = {0, 1, 2, *keep}
    for entry in os.listdir("/proc/self/fd"):
        fd = int(entry)
        if fd not in kept:
            try:
                os.close(fd)
            except OSError:
                continue  # the listing's own
