"""`penstock serve` without a configuration: a gateway in front of two simulated servers, to try things out.

One is always on. The other is a pool that starts at zero: the gateway itself starts it for the first request, and stops
it after a while without one; a narrator tells the terminal of it. Simulators and narrator are processes of their own,
started with the command line anybody could type; the kernel ends them when the one who started them dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import yaml

MODEL = "demo"
SLEEPER = "sleeper"
STARTUP_S = 3
IDLE_S = 10
_START_S = 30.0
_PR_SET_PDEATHSIG = 1


class DemoFailed(Exception):
    """A simulator did not start; the text is one line."""


@contextlib.contextmanager
def demo() -> Iterator[Path]:
    """A simulator that answers, a narrator of the other one, and the path of a configuration that names both; all gone
    at the end.
    """
    with contextlib.ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="penstock-demo-")))
        port, admin = _free_port(), _port(9090)
        process = undo.enter_context(_child(_simulator(MODEL, str(port))))
        _wait(process, port)
        config = {
            "listen": {"port": _port(8080)},
            "admin": {"port": admin},
            "log": {"level": "WARNING"},  # the narrator's lines are to be seen
            "cache": {"l1": {"size": "64MiB"}},  # not as much of the machine as a gateway would take
            "pools": {"state": str(folder / "state")},
            "models": {
                MODEL: {"backends": [{"url": f"http://127.0.0.1:{port}"}]},
                SLEEPER: {
                    "pool": {
                        "provider": "process",
                        "command": [*_simulator(SLEEPER, "{port}"), "--startup-s", str(STARTUP_S)],
                        "gpus": 0,
                        "idle_timeout_s": IDLE_S,
                        "stop_timeout_s": 5,
                    }
                },
            },
        }
        file = folder / "penstock.yaml"
        file.write_text(yaml.safe_dump(config, sort_keys=False))
        narrator = [sys.executable, "-m", f"{__package__}.narrator", f"http://127.0.0.1:{admin}", SLEEPER]
        undo.enter_context(_child(narrator, speaks=True))
        yield file


def greeting(port: int) -> str:
    """What there is to see, and the command lines to see it with, in their order."""
    again = (
        f"the same once more, also after {IDLE_S} s when no server runs: the cache answers and wakes nothing"
    )
    return f"""
Penstock runs in front of two simulated servers: `{MODEL}` is always on, `{SLEEPER}` is off until somebody asks for it.

1. twice: the first answer is the server's (x-penstock-cache: MISS), the second the cache's (HIT-L1)

  {_ask(port, MODEL, "Hello")}

2. wait for a server that sleeps: it is started, which takes {STARTUP_S} s (x-penstock-wake-ms), and this is its answer

  {_ask(port, SLEEPER, "Hello")}

3. {again}

4. something else: the server is started again

  {_ask(port, SLEEPER, "Good morning")}

What `{SLEEPER}` does is told here; Ctrl-C ends everything.
"""


def _ask(port: int, model: str, text: str) -> str:
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "{text}"}}], "temperature": 0}}'
    return f"curl -si http://127.0.0.1:{port}/v1/chat/completions -H 'content-type: application/json' -d '{body}'"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def _port(usual: int) -> int:
    """The usual port, or a free one where somebody has it."""
    try:
        with socket.create_server(("0.0.0.0", usual), reuse_port=False):
            return usual
    except OSError:
        return _free_port()


def _simulator(model: str, port: str) -> list[str]:
    argv = [sys.executable, "-m", f"{__package__}.cli", "sim", "--host", "127.0.0.1"]
    return [*argv, "--port", port, "--model", model]


@contextlib.contextmanager
def _child(argv: list[str], *, speaks: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """speaks: what it says is for the terminal."""
    libc = ctypes.CDLL(None)
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=None if speaks else subprocess.DEVNULL,
        start_new_session=True,  # the terminal's Ctrl-C is for the gateway, which drains first
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0),
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    """Until the simulator answers. Raises DemoFailed."""
    transport = httpx.HTTPTransport(retries=0)
    for _ in range(int(_START_S / 0.05)):
        try:
            with httpx.Client(transport=transport, trust_env=False) as client:
                if client.get(f"http://127.0.0.1:{port}/health", timeout=2).is_success:
                    return
        except httpx.HTTPError:
            pass
        try:
            status = process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
        raise DemoFailed(f"a simulator ended with status {status} instead of listening on port {port}")
    raise DemoFailed(f"a simulator on port {port} does not answer")
