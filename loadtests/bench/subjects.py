"""What is compared: the backend itself, bare Granian, the gateway, another router. Each is a process and a URL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from .rig import payload
from .rig.exposition import Exposition
from .rig.process import (
    Child,
    RigError,
    affinity,
    answers,
    children,
    command_of,
    connections,
    cpu_s,
    free_port,
    memory_kib,
)

REQUESTS = "penstock_requests_total"
_CONCURRENT = 1100


class Subject(Protocol):
    """Something that answers chat requests."""

    name: str

    def url(self, model: str) -> str:
        """Return where requests for a model of the rig go."""
        ...

    def cpu_s(self) -> float:
        """Return the processor seconds used so far by what carries the requests."""
        ...

    def rss_kib(self) -> int:
        """Return the resident memory of the same, in KiB."""
        ...

    def stop(self) -> None:
        """End it."""
        ...


class Direct:
    """The backends, with nothing between."""

    def __init__(self, ports: dict[str, int], child: Child, name: str = "direct") -> None:
        self.name = name
        self._ports = ports
        self._child = child

    def url(self, model: str) -> str:
        """Return the backend of that model."""
        return _url(self._ports[model])

    def cpu_s(self) -> float:
        """Return the backend's own processor time."""
        return cpu_s(self._child.pid)

    def rss_kib(self) -> int:
        """Return the backend's memory."""
        return memory_kib(self._child.pid)["rss"]

    def stop(self) -> None:
        """Leave it: the rig owns it."""


class Echo:
    """Bare Granian answering 640 bytes: one worker of its own server, in the runtime the gateway uses."""

    name = "echo"

    def __init__(self, folder: Path, core: int) -> None:
        self._port = free_port()
        settings = {
            "--interface": "rsgi",
            "--host": "127.0.0.1",
            "--port": str(self._port),
            "--http": "1",
            "--loop": "uvloop",
            "--task-impl": "asyncio",
            "--runtime-mode": "st",
            "--runtime-threads": "1",
            "--backlog": "4096",
            "--backpressure": "16384",
            "--log-level": "warning",
        }
        program = Path(sys.executable).with_name("granian")
        argv = [str(program), *(word for pair in settings.items() for word in pair)]
        argv += ["--no-ws", "--no-access-log", f"{__package__}.rig.echo:app"]
        self._child = Child("echo", argv, folder / "echo.log", cores=[core])
        self._child.until(lambda: answers(self._port), "listening")

    def url(self, model: str) -> str:
        """Return the URL whose replies have the size of that model's."""
        return f"http://127.0.0.1:{self._port}/{model}" if model in payload.SIZED else _url(self._port)

    def cpu_s(self) -> float:
        """Return the processor time of server and worker."""
        return sum(cpu_s(pid) for pid in self._child.descendants())

    def rss_kib(self) -> int:
        """Return the worker's memory."""
        return memory_kib(self._child.descendants()[-1])["rss"]

    def stop(self) -> None:
        """End it."""
        self._child.stop()


class Gateway:
    """``penstock serve`` with all it starts: supervisor, workers on ``cores``, controller, admin port.

    Only the workers are pinned; supervisor and controller go where the kernel puts them, among ``machine``.
    ``program``: another command than ``penstock``, with the same arguments.
    """

    def __init__(
        self,
        folder: Path,
        backends: dict[str, int],
        *,
        cores: Iterable[int],
        machine: Iterable[int],
        name: str = "gateway",
        level: str = "INFO",
        concurrent: int = _CONCURRENT,
        more: dict[str, object] | None = None,
        program: Sequence[str] | None = None,
        counts: bool = True,
    ) -> None:
        self.name = name
        #: whether its own count of requests is to be held against what was sent
        self.counts = counts
        self._port, self._admin_port = free_port(), free_port()
        self._cores = cores = list(cores)
        config = {
            # less than the default, so that 5,000 streams fit into 20,000 descriptors
            "listen": {"host": "127.0.0.1", "port": self._port, "max_connections": 12_000},
            "admin": {"host": "127.0.0.1", "port": self._admin_port},
            "workers": {"count": len(cores), "cores": cores, "drain_delay_s": 0},
            "log": {"level": level},
            "models": {
                model: {"max_concurrent": concurrent, "backends": [{"url": f"http://127.0.0.1:{port}"}]}
                for model, port in backends.items()
            },
            **(more or {}),
        }
        file = folder / f"{name}.yaml"  # JSON is YAML
        file.write_text(json.dumps(config, indent=1))
        self.log = folder / f"{name}.log"
        command = program or [str(Path(sys.executable).with_name("penstock"))]
        self._child = Child(name, [*command, "serve", "-c", str(file)], self.log, cores=sorted(machine))
        self._child.until(lambda: answers(self._port, "/ready"), "ready")
        self._child.until(lambda: answers(self._admin_port, "/metrics"), "metrics on the admin port")
        self._child.until(lambda: len(self._pinned(cores)) == len(cores), "a worker pinned to each core")
        self.workers = self._pinned(cores)

    def renew_workers(self) -> None:
        """Kill the workers and wait for their successors: what these know of the cache is what is in the segment."""
        gone = self.workers
        for pid in gone:
            os.kill(pid, signal.SIGKILL)
        self._child.until(
            lambda: len(pids := self._pinned(self._cores)) == len(gone) and not set(pids) & set(gone),
            "new workers",
        )
        self._child.until(lambda: answers(self._port, "/ready"), "ready")
        self.workers = self._pinned(self._cores)

    def _pinned(self, cores: list[int]) -> list[int]:
        machine = affinity(self._child.pid)
        if len(cores) == len(machine) == 1:
            return children(self._child.pid)[:1]
        wanted = [[core] for core in cores]
        return [pid for pid in self._child.descendants()[1:] if affinity(pid) in wanted]

    def url(self, model: str) -> str:
        """Return the gateway's URL, the same for all models."""
        return _url(self._port)

    def cpu_s(self) -> float:
        """Return the workers' processor time."""
        return sum(cpu_s(pid) for pid in self.workers)

    def rss_kib(self) -> int:
        """Return the workers' memory."""
        return sum(memory_kib(pid)["rss"] for pid in self.workers)

    def anonymous_kib(self) -> int:
        """Return the workers' anonymous memory: what they hold themselves, without files and the segment."""
        return sum(memory_kib(pid)["anonymous"] for pid in self.workers)

    def others_cpu_s(self) -> float:
        """Return the processor time of supervisor and controller."""
        return sum(cpu_s(pid) for pid in self._child.descendants() if pid not in self.workers)

    def processes(self) -> list[int]:
        """Return the pids of all its processes."""
        return self._child.descendants()

    def metrics(self) -> Exposition:
        """Return a scrape of the admin port."""
        return Exposition.scrape(f"http://127.0.0.1:{self._admin_port}/metrics")

    def counted(self) -> int:
        """Return how many requests the gateway says it has answered."""
        page = self.metrics()
        if not page.has(REQUESTS):
            return 0
        return round(page.total(REQUESTS))

    def without_clients(self) -> None:
        """Wait until it has let go of all connections of clients."""
        self._child.until(lambda: not connections(self._port), "no connection")

    def clients(self) -> int:
        """Return how many connections of clients are open now, as the kernel has them."""
        return connections(self._port)

    def settled(self, timeout_s: float = 5.0) -> int:
        """Return the request counter once it has stopped moving."""
        deadline = time.monotonic() + timeout_s
        before = self.counted()
        while time.monotonic() < deadline:
            time.sleep(0.1)
            after = self.counted()
            if after == before:
                break
            before = after
        return before

    def layout(self) -> list[dict[str, object]]:
        """Return pid, cores and command of every process, as the kernel has them."""
        return [
            {"worker": pid in self.workers, "cores": affinity(pid), "command": command_of(pid)}
            for pid in self._child.descendants()
        ]

    def stop(self) -> None:
        """End it."""
        self._child.stop(timeout_s=40)


class Router:
    """vllm-router (PyPI, Rust) in an environment of its own, on the gateway's core, logging less than the gateway."""

    name = "vllm-router"

    def __init__(self, folder: Path, program: Path, backends: dict[str, int], core: int) -> None:
        self._ports = {model: free_port() for model in backends}
        self._children: list[Child] = []
        for model, port in self._ports.items():
            argv = [str(program), "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin"]
            argv += ["--worker-urls", f"http://127.0.0.1:{backends[model]}", "--log-level", "warning"]
            argv += ["--prometheus-port", str(free_port())]
            self._children.append(Child(self.name, argv, folder / f"router-{model}.log", cores=[core]))
        for child, port in zip(self._children, self._ports.values(), strict=True):
            child.until(_answering(port), "listening", 60)

    def url(self, model: str) -> str:
        """Return the router of that model."""
        return _url(self._ports[model])

    def cpu_s(self) -> float:
        """Return the routers' processor time."""
        return sum(cpu_s(child.pid) for child in self._children)

    def rss_kib(self) -> int:
        """Return the first router's memory."""
        return memory_kib(self._children[0].pid)["rss"]

    def stop(self) -> None:
        """End them."""
        for child in self._children:
            child.stop()


def install_router(environment: Path) -> Path:
    """Return the vllm-router program in its own virtual environment, made when absent. Raise RigError if it cannot."""
    program = environment / "bin" / "vllm-router"
    if program.exists():
        return program
    for argv in (
        [sys.executable, "-m", "venv", str(environment)],
        [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", "vllm-router>=0.1,<0.2"],
    ):
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise RigError(f"vllm-router cannot be installed: {lines[-1] if lines else 'no reason given'}")
    return program


def _answering(port: int) -> Callable[[], bool]:
    return lambda: answers(port)


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}{payload.CHAT_PATH}"
