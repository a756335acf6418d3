"""Processes of the rig: started on chosen cores, watched through /proc, ended by their pid and by nothing else."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class RigError(Exception):
    """A part of the rig did not start, died, or answered what it should not."""


class Child:
    """One process of the rig, with its descendants.

    ``cores`` is the affinity it starts with (None: this process's own); output goes to ``log``.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        log: Path,
        *,
        cores: Sequence[int] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = log
        pinned = ["taskset", "-c", ",".join(map(str, cores))] if cores is not None else []
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [*pinned, *argv],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        self.pid = self._process.pid

    def tail(self) -> str:
        """Return the last lines of the process's output."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])

    def until(self, ready: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
        """Wait for ``ready``. Raise RigError when the process ends first or the time is up."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            if self._process.poll() is not None:
                raise RigError(f"{self.name} ended with {self._process.returncode}: {self.tail()}")
            if time.monotonic() > deadline:
                raise RigError(f"{self.name}: {what} did not happen in {timeout_s:g} s: {self.tail()}")
            time.sleep(0.02)

    def wait(self, timeout_s: float) -> int:
        """Return its exit status. Raise RigError when it has not ended in time."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise RigError(f"{self.name} did not end in {timeout_s:g} s: {self.tail()}") from None

    def descendants(self) -> list[int]:
        """Return the pids of this process and everything below it, parents first."""
        found, waiting = [], [self.pid]
        while waiting:
            pid = waiting.pop(0)
            found.append(pid)
            waiting.extend(children(pid))
        return found

    def stop(self, timeout_s: float = 15.0) -> None:
        """End it: SIGTERM, then SIGKILL for whatever of its own tree is left."""
        tree = self.descendants() if self._process.poll() is None else []
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
                for pid in tree[1:]:
                    if parent_of(pid) in (1, self.pid):
                        os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    """Return the direct children of a process, over all its threads."""
    found: list[int] = []
    for entry in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found.extend(int(word) for word in entry.read_text().split())
        except OSError:  # the thread ended while we looked
            continue
    return found


def parent_of(pid: int) -> int | None:
    """Return a process's parent, or None when there is no such process."""
    try:
        return int(_stat(pid)[1])
    except OSError:
        return None


def cpu_s(pid: int) -> float:
    """Return the processor seconds (user + system) a process has used; 10 ms steps."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def affinity(pid: int) -> list[int]:
    """Return the cores a process's main thread may use, as the kernel has them."""
    return sorted(os.sched_getaffinity(pid))


def memory_kib(pid: int) -> dict[str, int]:
    """Return ``rss`` and ``anonymous`` memory of a process in KiB (/proc/<pid>/smaps_rollup)."""
    wanted = {"Rss:": "rss", "Anonymous:": "anonymous"}
    found: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        words = line.split()
        if words[0] in wanted:
            found[wanted[words[0]]] = int(words[1])
    return found


def command_of(pid: int) -> str:
    """Return a process's command line."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()


def connections(port: int) -> int:
    """Return how many TCP connections a server on this port of 127.0.0.1 has open (/proc/net/tcp)."""
    local, is_open = f"0100007F:{port:04X}", ("01", "08")  # established, closed by the other side alone
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(words[1] == local and words[3] in is_open for words in map(str.split, lines))


def free_port() -> int:
    """Return a TCP port nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int, path: str = "/health", host: str = "127.0.0.1") -> bool:
    """Say whether ``GET path`` gets a 200 within a second."""
    try:
        with socket.create_connection((host, port), 1.0) as probe:
            probe.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            return b" 200 " in probe.recv(64)
    except OSError:
        return False


def raise_file_limit(wanted: int) -> int:
    """Raise this process's descriptor limit towards ``wanted``; return what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
        except (ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _stat(pid: int) -> list[str]:
    """Return /proc/<pid>/stat after the command, so that index 0 is the state."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
