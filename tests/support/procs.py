"""Starting, watching and ending real processes from tests.

Every process is ended by the pid of the one who started it, never by a name. Waiting means asking a condition again
until a watchdog gives up; no test relies on how long something takes.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")

RUN_MARK = "PENSTOCK_TEST_RUN"
"""Environment variable by which processes started by one test run are recognised afterwards."""

_POLL_S = 0.02
_LOG_TAIL_CHARS = 6000
# Below the range the kernel gives to outgoing connections, so that none of those can take a port in between.
_PORTS = range(12_000, 32_000)

_given: set[int] = set()
_pick = random.SystemRandom()


class WaitFailed(AssertionError):
    """A condition did not come true before the watchdog gave up."""


def wait_until(predicate: Callable[[], T], timeout_s: float = 30.0, what: str = "the condition") -> T:
    """Ask `predicate` until it returns something true, and return that. Raises WaitFailed after `timeout_s`."""
    end = time.monotonic() + timeout_s
    while True:
        result = predicate()
        if result:
            return result
        if time.monotonic() >= end:
            raise WaitFailed(f"{what}: not within {timeout_s:g} s (last answer: {result!r})")
        threading.Event().wait(_POLL_S)


def free_port() -> int:
    """A TCP port that nobody on this machine listens on, given out once in this process."""
    while True:
        port = _pick.choice(_PORTS)
        if port not in _given and _is_free(port):
            _given.add(port)
            return port


def _is_free(port: int) -> bool:
    for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET, "127.0.0.1")):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True


def accepts(host: str, port: int) -> bool:
    """Whether a TCP connection to the port is accepted."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def children(pid: int) -> list[int]:
    """The pids of the direct children of `pid`, oldest first; empty when there is no such process."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    except OSError:
        return sorted(found)
    return sorted(found)


def command_line(pid: int) -> str:
    """The command line and the kernel's name of `pid`, or an empty text when it is gone."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return f"{words.strip()} [{Path(f'/proc/{pid}/comm').read_text().strip()}]"
    except OSError:
        return ""


def is_running(pid: int) -> bool:
    """Whether `pid` exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def console_script(name: str = "penstock") -> str:
    """The path of a command installed beside this interpreter."""
    return str(Path(sys.executable).parent / name)


class Proc:
    """One child process with its output in a file; a context manager that leaves nothing running.

    `ready` is asked until true after the start. `stop()` sends SIGTERM, then SIGKILL after `grace_s`.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        name: str,
        ready: Callable[[], object] | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 30.0,
        grace_s: float = 40.0,
        cwd: str | Path | None = None,
    ) -> None:
        self.name = name
        self._argv = list(argv)
        self._ready = ready
        self._env = {**os.environ, **(env or {})}
        self._timeout_s = timeout_s
        self._grace_s = grace_s
        self._cwd = cwd
        self._folder = Path(tempfile.mkdtemp(prefix=f"penstock-test-{name}-"))
        self._output = self._folder / "output"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    def start(self, *, wait: bool = True) -> Self:
        """Start it and, unless told otherwise, wait until it is ready."""
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._env,
                cwd=self._cwd,
                start_new_session=True,
            )
        if wait and self._ready is not None:
            try:
                self.wait_ready()
            except BaseException:
                self.stop(grace_s=2)
                self._forget()
                raise
        return self

    def wait_ready(self) -> None:
        """Wait until `ready` says so. Raises WaitFailed with the output when the process ends before that."""
        assert self._ready is not None
        ready = self._ready

        def look() -> object:
            if self.exit_status() is not None:
                raise WaitFailed(
                    f"{self.name} ended with {self.exit_status()} before it was ready:\n{self.tail()}"
                )
            return ready()

        try:
            wait_until(look, self._timeout_s, f"{self.name} ready")
        except WaitFailed as fault:
            raise WaitFailed(f"{fault}\n{self.tail()}") from None

    def exit_status(self) -> int | None:
        """The exit status, negative for a signal, or None while it runs."""
        return self._process.poll() if self._process is not None else None

    def wait(self, timeout_s: float = 60.0) -> int:
        """Wait for its end and return the exit status. Raises WaitFailed with the output."""
        assert self._process is not None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise WaitFailed(f"{self.name} still runs after {timeout_s:g} s:\n{self.tail()}") from None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to this process alone."""
        os.kill(self.pid, number)

    def stop(self, *, grace_s: float | None = None) -> int | None:
        """End it, its children included, and return the exit status (None when it never ran)."""
        if self._process is None:
            return None
        family = self._family(self._process.pid)
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(self._grace_s if grace_s is None else grace_s)
            except subprocess.TimeoutExpired:
                family = self._family(self._process.pid)
                self._process.kill()
                self._process.wait(10)
        for pid in family:
            # What outlives its parent was started by this Proc too: same session, so the pid is not somebody else's.
            if is_running(pid) and _session(pid) == self._process.pid:
                _end(pid)
        return self._process.returncode

    def _family(self, pid: int) -> list[int]:
        """Processes of the session that this Proc opened, without its leader."""
        return [
            p for p in map(int, filter(str.isdigit, os.listdir("/proc"))) if p != pid and _session(p) == pid
        ]

    def log(self) -> str:
        """Everything it wrote so far, standard output and standard error together."""
        return self._output.read_text(errors="replace") if self._output.exists() else ""

    def tail(self) -> str:
        """The end of `log()`."""
        return self.log()[-_LOG_TAIL_CHARS:]

    def __enter__(self) -> Self:
        return self.start() if self._process is None else self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            if error is not None:
                sys.stderr.write(f"\n--- output of {self.name} ---\n{self.tail()}\n")
            self._forget()

    def _forget(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def run(
    argv: Sequence[str], *, env: Mapping[str, str] | None = None, timeout_s: float = 60.0
) -> tuple[int, str]:
    """Run a command to its end; its exit status and output (both streams)."""
    done = subprocess.run(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **(env or {})},
        timeout=timeout_s,
        check=False,
    )
    return done.returncode, done.stdout.decode(errors="replace")
