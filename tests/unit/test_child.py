"""What a forked child keeps of its parent, and what it does not."""

import os
import signal
import subprocess
import sys
import textwrap

_START = """
import ctypes, os, signal, sys
from penstock.workers import child
"""


def _run(script: str) -> str:
    """The output of a fresh interpreter with one thread, as the supervisor has."""
    done = subprocess.run(
        [sys.executable, "-c", _START + textwrap.dedent(script)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_child_has_its_own_descriptors_alone_and_default_signals() -> None:
    out = _run(
        """
        signal.signal(signal.SIGTERM, lambda *_: None)
        kept, foreign = os.pipe()[1], os.pipe()[1]
        def main():
            listed = [int(fd) for fd in os.listdir("/proc/self/fd")]
            fds = [fd for fd in sorted(listed) if os.path.exists(f"/proc/self/fd/{fd}")]  # without the listing's own
            print(fds == [0, 1, 2, kept], signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
                  signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
                  signal.pthread_sigmask(signal.SIG_BLOCK, []) == set(), flush=True)
            print(open("/proc/self/comm").read().strip(), flush=True)
            return 7
        pid = child.fork("worker-3", [kept], main)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """
    )
    assert out.split() == ["True", "True", "True", "True", "worker-3", "7"]


def test_a_child_that_fails_says_so_and_ends_with_1() -> None:
    out = _run(
        """
        def main():
            raise RuntimeError("broken")
        pid = child.fork("worker-0", [], main)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """
    )
    assert out.split() == ["1"]


def test_a_child_is_told_when_its_parent_dies() -> None:
    read, write = os.pipe()
    script = f"""
    def main():
        def told(*_):
            os.write({write}, b"told")
            os._exit(0)
        signal.signal(signal.SIGTERM, told)
        os.write({write}, b"up ")
        while True:
            signal.pause()
    child.fork("worker-0", [{write}], main)
    os.close({write})
    sys.stdin.read()
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", _START + textwrap.dedent(script)], stdin=subprocess.PIPE, pass_fds=[write]
    )
    os.close(write)
    assert os.read(read, 3) == b"up "
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    heard = b""
    while data := os.read(read, 16):
        heard += data
    assert heard == b"told"
    os.close(read)
    assert parent.stdin is not None
    parent.stdin.close()
