"""A running gateway (`penstock serve`) for tests."""

import copy
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from .procs import Proc, children, command_line, console_script, free_port, is_running, wait_until

START_TIMEOUT_S = 45.0


class Gateway:
    """Handle on a supervisor and its processes."""

    def __init__(self, proc: Proc, file: Path, config: dict[str, Any]) -> None:
        self.proc = proc
        self.file = file
        self.config = config
        scheme = "https" if config["listen"].get("tls") else "http"
        self.port: int = config["listen"]["port"]
        self.admin_port: int = config["admin"]["port"]
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self.admin_url = f"http://127.0.0.1:{self.admin_port}"

    @property
    def pid(self) -> int:
        """The supervisor's pid."""
        return self.proc.pid

    def worker_pids(self) -> list[int]:
        """The workers' pids, by the name each gives itself, oldest first."""
        return [pid for pid in children(self.pid) if "[worker-" in command_line(pid) and is_running(pid)]

    def controller_pid(self) -> int | None:
        """The controller's pid, or None while there is none."""
        return next(
            (p for p in children(self.pid) if "[controller]" in command_line(p) and is_running(p)), None
        )

    def log(self) -> str:
        """Everything the gateway's processes wrote so far."""
        return self.proc.log()

    def write(self, config: dict[str, Any]) -> None:
        """Replace the configuration file; listeners stay as they are. The gateway is not told: see `reload`."""
        self.config = _complete(config, self.config)
        text = yaml.safe_dump(self.config, sort_keys=False)
        beside = self.file.with_suffix(".new")
        beside.write_text(text)
        beside.rename(self.file)

    def reload(self) -> None:
        """Send SIGHUP to the supervisor."""
        self.proc.send(signal.SIGHUP)

    def metrics(self) -> str:
        """The text of `/metrics`."""
        answer = httpx.get(f"{self.admin_url}/metrics", timeout=10, trust_env=False)
        answer.raise_for_status()
        return answer.text

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of `name` whose labels include `labels`; 0 when there is none."""
        from prometheus_client.parser import text_string_to_metric_families

        return sum(
            sample.value
            for family in text_string_to_metric_families(self.metrics())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def is_up(self, path: str = "/health") -> bool:
        """Whether a GET of `path` on the API port gets a 2xx answer now."""
        try:
            return httpx.get(self.url + path, timeout=2, verify=False, trust_env=False).is_success
        except httpx.TransportError:
            return False

    def wait_up(self, path: str = "/health", timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until `is_up`."""
        wait_until(lambda: self.is_up(path), timeout_s, f"{path} answers 200")


def _complete(config: dict[str, Any], base: dict[str, Any] | None = None) -> dict[str, Any]:
    """`config` with what a test does not care for: free ports on loopback, one worker, no wait before a drain."""
    full = copy.deepcopy(config)
    listen, admin, workers = (full.setdefault(key, {}) for key in ("listen", "admin", "workers"))
    listen.setdefault("host", "127.0.0.1")
    if base is None:
        listen.setdefault("port", free_port())
        admin.setdefault("port", free_port())
    else:
        listen.setdefault("port", base["listen"]["port"])
        admin.setdefault("port", base["admin"]["port"])
    workers.setdefault("count", 1)
    # a test that says nothing of the cache wants its requests to reach a backend; L1 not a quarter of the machine
    full.setdefault("cache", {"mode": "off"}).setdefault("l1", {}).setdefault("size", "32MiB")
    # nor of breakers: its backends may fail as often as it likes
    full.setdefault("breaker", {"failures": 1000})
    workers.setdefault("drain_delay_s", 0)  # nobody looks at /ready here before the listener closes
    return full


def one_model(*urls: str, name: str = "m", **settings: Any) -> dict[str, Any]:
    """The configuration of one model on these backends; `settings` are the model's other keys."""
    return {"models": {name: {"backends": [{"url": url} for url in urls], **settings}}}


@contextmanager
def gateway(
    config: Mapping[str, Any] | str,
    *,
    env: Mapping[str, str] | None = None,
    args: Sequence[str] = (),
    command: Sequence[str] = (),
    ready: str | None = "/health",
    grace_s: float = 40.0,
) -> Iterator[Gateway]:
    """`penstock serve` with `config` (a dict or YAML text; ports, loopback and one worker are filled in).

    Yields when GET `ready` on the API port answers 2xx and the admin port does too; `ready=None` yields at once.
    `command`: what is run in the place of `penstock`.
    """
    plain = yaml.safe_load(config) if isinstance(config, str) else dict(config)
    full = _complete(plain)
    folder = Path(tempfile.mkdtemp(prefix="penstock-test-config-"))
    file = folder / "penstock.yaml"
    file.write_text(yaml.safe_dump(full, sort_keys=False))
    argv = [*(command or [console_script()]), "serve", "-c", str(file), *args]
    # what outlives a gateway is this test's alone; by it servers are recognised that do
    state = {"XDG_STATE_HOME": str(folder / "state")}

    def up() -> bool:
        return handle.is_up(ready or "/health") and _answers(f"{handle.admin_url}/metrics")

    proc = Proc(
        argv,
        name="gateway",
        ready=up if ready else None,
        env={**state, **(env or {})},
        timeout_s=START_TIMEOUT_S,
        grace_s=grace_s,
    )
    handle = Gateway(proc, file, full)
    try:
        with proc:
            yield handle
    finally:
        for pid in with_environment("XDG_STATE_HOME", state["XDG_STATE_HOME"]):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def with_environment(name: str, value: str) -> list[int]:
    """The pids of processes that were started with this in their environment and run."""
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"{name}={value}".encode() in environ and pid != os.getpid() and is_running(pid):
            found.append(pid)
    return found


def _answers(url: str) -> bool:
    try:
        httpx.get(url, timeout=2, trust_env=False)
    except httpx.TransportError:
        return False
    return True
