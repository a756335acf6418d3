"""Becomes a pool's server, when it is told to: run as a program of its own, with nothing of Penstock imported.

`python -I -S launcher.py GATE PROGRAM ARGUMENT…`: waits for one byte from the descriptor GATE, which comes when it is
on record that this process exists. An end of file says that who started it is gone: then nothing is run. What a
server must not inherit from the controller is undone: signals that are ignored, cores it is pinned to, its priority.
"""

import os
import signal
import sys


def main() -> int:
    gate, argv = int(sys.argv[1]), sys.argv[2:]
    if os.read(gate, 1) != b"g":
        return 0
    os.close(gate)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        try:
            signal.signal(number, signal.SIG_DFL)
        except (OSError, ValueError):
            continue  # the C library's own
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    except OSError:
        pass
    try:
        os.execvp(argv[0], argv)
    except OSError as fault:
        sys.stderr.write(f"cannot run {argv[0]}: {fault.strerror}\n")
    return 127


if __name__ == "__main__":
    sys.exit(main())
