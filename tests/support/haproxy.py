"""HAProxy with the file in deploy/haproxy, before gateways of a test."""

import csv
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from .procs import Proc, free_port, run

FILE = Path(__file__).parents[2] / "deploy" / "haproxy" / "haproxy.cfg"


class HAProxy:
    """Handle on one HAProxy; its servers are `a` and `b`."""

    def __init__(self, proc: Proc, port: int, stats_port: int, scheme: str) -> None:
        self.proc = proc
        self.port = port
        self.url = f"{scheme}://127.0.0.1:{port}"
        self.stats_url = f"http://127.0.0.1:{stats_port}"

    def servers(self, backend: str = "ready") -> dict[str, dict[str, str]]:
        """What its statistics say of the servers of one backend."""
        text = httpx.get(f"{self.stats_url}/;csv", timeout=5, trust_env=False).text
        return {
            row["svname"]: row
            for row in csv.DictReader(text.removeprefix("# ").splitlines())
            if row["pxname"] == backend and row["svname"] not in ("BACKEND", "FRONTEND")
        }

    def up(self, *names: str, backend: str = "ready") -> bool:
        """Whether these servers, and no others, are given requests."""
        return {n for n, row in self.servers(backend).items() if row["status"].startswith("UP")} == {*names}

    def taken(self) -> dict[str, int]:
        """How many requests each server was chosen for."""
        return {name: int(row["lbtot"]) for name, row in self.servers().items()}


def haproxy_program() -> str:
    """Its path; Debian has it where only root looks."""
    found = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    assert found, "haproxy is not installed (make test-tools)"
    return found


def haproxy_check(file: Path, **env: str) -> tuple[int, str]:
    """What HAProxy itself says of a file; a warning is a fault."""
    return run([haproxy_program(), "-c", "-dW", "-f", str(file)], env=env)


@contextmanager
def haproxy(a: int, b: int, *, file: Path = FILE, **env: str) -> Iterator[HAProxy]:
    """HAProxy before the gateways at two ports of loopback; `env` are the file's other variables."""
    port, stats_port = free_port(), free_port()
    variables = {
        "PENSTOCK_BIND": f"127.0.0.1:{port}",
        "PENSTOCK_STATS": f"127.0.0.1:{stats_port}",
        "PENSTOCK_A": f"127.0.0.1:{a}",
        "PENSTOCK_B": f"127.0.0.1:{b}",
        **env,
    }
    scheme = "https" if "PENSTOCK_TLS_PEM" in env else "http"

    def ready() -> bool:
        try:
            return bool(handle.servers())
        except httpx.TransportError:
            return False

    proc = Proc(
        [haproxy_program(), "-db", "-f", str(file)], name="haproxy", env=variables, ready=ready, grace_s=2
    )
    handle = HAProxy(proc, port, stats_port, scheme)
    with proc:
        yield handle
