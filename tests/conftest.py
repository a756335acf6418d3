"""What all tests share: hypothesis profiles, a watchdog, and a check that a run leaves no process behind."""

import os
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import certifi
import pytest
from hypothesis import HealthCheck, settings

from .support.procs import RUN_MARK, WaitFailed, command_line, is_running, wait_until

_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]

# Durations vary with the machine and its neighbours; the watchdog (pytest-timeout) bounds them.
settings.register_profile("default", max_examples=250, deadline=None, suppress_health_check=_SLOW)
settings.register_profile("deep", max_examples=20_000, deadline=None, suppress_health_check=_SLOW)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session", autouse=True)
def _few_authorities() -> Iterator[None]:
    """A client of HTTP loads all the web's authorities before it asks anything, 18 ms each time. Nothing here asks the
    web: one of them is enough.
    """
    first = re.match(r".*?-----END CERTIFICATE-----\n", Path(certifi.where()).read_text(), re.DOTALL)
    assert first is not None
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file, pytest.MonkeyPatch.context() as patch:
        file.write(first[0])
        file.flush()
        patch.setattr(certifi, "where", lambda: file.name)
        yield


def pytest_sessionstart() -> None:
    # A run that is told to end tears down what it started, as it does for Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _no_process_is_left_behind() -> Iterator[None]:
    """Every process inherits a mark; at the end none with it may be running."""
    mark = f"{RUN_MARK}={uuid4().hex}"
    name, _, value = mark.partition("=")
    os.environ[name] = value
    yield
    try:
        wait_until(lambda: not _marked(mark), 5, "the end of what tests started")
    except WaitFailed:
        left = {pid: f"{command_line(pid)}, started by {_started_by(pid)}" for pid in _marked(mark)}
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        if left:
            pytest.fail(
                "processes left behind:\n" + "\n".join(f"{pid}: {what}" for pid, what in left.items())
            )
    finally:
        del os.environ[name]


def _environment(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _marked(mark: str) -> list[int]:
    pids = (int(entry) for entry in os.listdir("/proc") if entry.isdigit())
    return [p for p in pids if p != os.getpid() and mark in _environment(p) and is_running(p)]


def _started_by(pid: int) -> str:
    return next((e.partition("=")[2] for e in _environment(pid) if e.startswith("PYTEST_CURRENT_TEST=")), "?")
