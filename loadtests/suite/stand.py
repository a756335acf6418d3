"""What a load is put on: simulators, gateways, and HAProxy before them where it is asked for. All on loopback.

Strategy: processes of the command line anybody could type, with a folder of their own; ended by pid, newest first.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bench.rig.exposition import Exposition
from ..bench.rig.process import Child, answers, cpu_s, free_port

HAPROXY = Path(__file__).resolve().parents[2] / "deploy" / "haproxy" / "haproxy.cfg"

_CONCURRENT = 2000
_CONNECTIONS = 6000


class StandError(Exception):
    """What is needed is not there; the text is one line."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to stand. pace_ms: between two events of a simulator's stream; haproxy: its configuration, or none."""

    models: Sequence[str]
    cache: bool = True
    gateways: int = 1
    workers: int = 1
    pace_ms: float = 0.0
    haproxy: Path | None = None


class Stand:
    """Running processes, and the address to load. A context manager."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan
        self.simulators: list[Child] = []
        self.gateways: list[Child] = []
        self.balancer: Child | None = None
        self._admin: list[int] = []
        self._undo = ExitStack()
        self.url = ""

    def __enter__(self) -> Stand:
        try:
            ports = [self._simulator(model) for model in self.plan.models]
            doors = [self._gateway(number, ports) for number in range(self.plan.gateways)]
            door = self._haproxy(doors, self.plan.haproxy) if self.plan.haproxy else doors[0]
        except BaseException:
            self._undo.close()
            raise
        self.url = f"http://127.0.0.1:{door}"
        return self

    def __exit__(self, *exc: object) -> None:
        self._undo.close()

    def scrapes(self) -> list[Exposition]:
        """The metrics of each gateway now. Raises OSError."""
        return [Exposition.scrape(f"http://127.0.0.1:{port}/proxy/metrics") for port in self._admin]

    def gateway_cpu_s(self) -> float:
        """Processor seconds that the gateways' processes have used, all of them together."""
        return used(self.gateways)

    def _child(self, name: str, argv: list[str], env: dict[str, str] | None = None) -> Child:
        child = Child(name, argv, self.folder / f"{name}.log", env=env)
        self._undo.callback(child.stop)
        return child

    def _simulator(self, model: str) -> int:
        port = free_port()
        argv = [*_penstock(), "sim", "--host", "127.0.0.1", "--port", str(port), "--model", model, "--canned"]
        child = self._child(f"sim-{model}", [*argv, "--canned-pace-ms", f"{self.plan.pace_ms:g}"])
        self.simulators.append(child)
        child.until(lambda: answers(port), "listening")
        return port

    def _gateway(self, number: int, ports: Sequence[int]) -> int:
        port, admin = free_port(), free_port()
        config: dict[str, Any] = {
            "listen": {"host": "127.0.0.1", "port": port, "max_connections": _CONNECTIONS},
            "admin": {"host": "127.0.0.1", "port": admin},
            "workers": {"count": self.plan.workers, "drain_delay_s": 0, "drain_timeout_s": 10},
            "log": {"level": "WARNING"},
            "cache": {"mode": "deterministic" if self.plan.cache else "off", "l1": {"size": "256MiB"}},
            "models": {
                model: {"max_concurrent": _CONCURRENT, "backends": [{"url": f"http://127.0.0.1:{at}"}]}
                for model, at in zip(self.plan.models, ports, strict=True)
            },
        }
        file = self.folder / f"gateway-{number}.yaml"  # JSON is YAML
        file.write_text(json.dumps(config, indent=1))
        env = {"XDG_STATE_HOME": str(self.folder / f"state-{number}")}
        child = self._child(f"gateway-{number}", [*_penstock(), "serve", "-c", str(file)], env)
        self.gateways.append(child)
        self._admin.append(admin)
        child.until(lambda: answers(port, "/ready"), "ready")
        child.until(lambda: answers(admin, "/proxy/metrics"), "metrics on the admin port")
        return port

    def _haproxy(self, doors: Sequence[int], file: Path) -> int:
        program = shutil.which("haproxy") or shutil.which("/usr/sbin/haproxy")
        if program is None:
            raise StandError("haproxy is not installed: apt install haproxy")
        if not file.is_file():
            raise StandError(f"{file}: no such file; deploy/haproxy/haproxy.cfg of the repository is meant")
        if len(doors) != 2:
            raise StandError("that configuration has two gateways")
        port, statistics = free_port(), free_port()
        env = {
            "PENSTOCK_A": f"127.0.0.1:{doors[0]}",
            "PENSTOCK_B": f"127.0.0.1:{doors[1]}",
            "PENSTOCK_BIND": f"127.0.0.1:{port}",
            "PENSTOCK_STATS": f"127.0.0.1:{statistics}",
            "PENSTOCK_SLOWSTART": "1s",
        }
        child = self._child("haproxy", [program, "-db", "-f", str(file)], env)
        self.balancer = child
        child.until(lambda: answers(port, "/ready"), "ready")
        return port


def used(children: Sequence[Child]) -> float:
    """Processor seconds of these processes and all below them, as far as they still run."""
    total = 0.0
    for child in children:
        for pid in child.descendants():
            try:
                total += cpu_s(pid)
            except OSError:  # it ended while we looked
                continue
    return total


def _penstock() -> list[str]:
    return [sys.executable, "-m", "penstock.workers.cli"]
