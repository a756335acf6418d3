"""`penstock serve` without a configuration: two simulators and a gateway in front of them, to try things out.

The simulators are processes of their own, started with the command line anybody could type; the kernel ends them
when the one who started them dies.
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

MODEL = "demo"
SIMULATORS = 2
_START_S = 30.0
_PR_SET_PDEATHSIG = 1


class DemoFailed(Exception):
    """A simulator did not start; the text is one line."""


@contextlib.contextmanager
def demo() -> Iterator[Path]:
    """Two simulators that answer, and the path of a configuration that names them; all gone at the end."""
    with contextlib.ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="penstock-demo-")))
        ports = _free_ports(SIMULATORS)
        started = [undo.enter_context(_simulator(port)) for port in ports]
        for process, port in zip(started, ports, strict=True):
            _wait(process, port)
        lines = [f"listen: {{port: {_port(8080)}}}", f"admin: {{port: {_port(9090)}}}"]
        lines += ["cache: {l1: {size: 64MiB}}"]  # not as much of the machine as a gateway would take
        lines += ["models:", f"  {MODEL}:", "    backends:"]
        lines += [f"      - url: http://127.0.0.1:{port}" for port in ports]
        file = folder / "penstock.yaml"
        file.write_text("\n".join(lines) + "\n")
        yield file


def try_it(port: int) -> str:
    """A command line that asks the demo's model something."""
    body = f'{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "Hello"}}], "temperature": 0}}'
    return f"curl -si http://127.0.0.1:{port}/v1/chat/completions -H 'content-type: application/json' -d '{body}'"


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(one.getsockname()[1]) for one in sockets]


def _port(usual: int) -> int:
    """The usual port, or a free one where somebody has it."""
    try:
        with socket.create_server(("0.0.0.0", usual), reuse_port=False):
            return usual
    except OSError:
        return _free_ports(1)[0]


@contextlib.contextmanager
def _simulator(port: int) -> Iterator[subprocess.Popen[bytes]]:
    libc = ctypes.CDLL(None)
    argv = [sys.executable, "-m", __package__ + ".cli", "sim", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [*argv, "--model", MODEL],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
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
