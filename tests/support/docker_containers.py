"""Containers as the Docker Engine has them, but that what runs in them is a process of this machine.

States, names, ids, messages and statuses are the engine's (moby, API 1.47). What an image runs is a function from the
container's arguments and environment to a command; the port that the command is told to listen on is one of this
machine's, and a relay listens on the published one from the start on, as docker-proxy does: until the server listens
a connection is accepted and closed.
"""

import asyncio
import contextlib
import os
import re
import secrets
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .procs import console_script, free_port

NAME = re.compile(r"^[a-zA-Z0-9][a-zA-Z0-9_.-]+$")
ZERO_TIME = "0001-01-01T00:00:00Z"

Image = Callable[[Sequence[str], int], list[str]]
"""From arguments and the port that it is to listen on to a command."""


class Refused(Exception):
    """The engine says no: a status and its message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def sim_image(*flags: str) -> Image:
    """An image with `penstock sim` for its entrypoint."""

    def command(args: Sequence[str], port: int) -> list[str]:
        words = list(args)
        if "--port" in words:
            words[words.index("--port") + 1] = str(port)
        else:
            words += ["--port", str(port)]
        return [console_script(), "sim", "--host", "127.0.0.1", *flags, *words]

    return command


def script_image(*argv: str) -> Image:
    """An image that runs this, whatever its arguments are; `{port}` is where it is to listen."""
    return lambda args, port: [word.replace("{port}", str(port)) for word in argv]


@dataclass
class Container:
    """One container."""

    name: str
    config: dict[str, Any]
    image: Image
    ident: str = field(default_factory=lambda: secrets.token_hex(32))
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    status: str = "created"
    exit_code: int = 0
    error: str = ""
    oom: bool = False
    started_at: str = ZERO_TIME
    finished_at: str = ZERO_TIME
    process: subprocess.Popen[bytes] | None = None
    port: int = 0
    published: int = 0
    relay: asyncio.Server | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    removed: asyncio.Event = field(default_factory=asyncio.Event)
    stops: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """The engine does one thing to a container at a time."""

    @property
    def log(self) -> Path:
        return Path(tempfile.gettempdir()) / f"penstock-test-container-{self.ident}"

    @property
    def running(self) -> bool:
        return self.status == "running"

    @property
    def labels(self) -> dict[str, str]:
        return self.config.get("Labels") or {}

    @property
    def host(self) -> dict[str, Any]:
        return self.config.get("HostConfig") or {}

    @property
    def target(self) -> str:
        return next(iter(self.config.get("ExposedPorts") or {}), "")

    async def start(self, gpus: int) -> None:
        """Run it. Raises Refused as the engine does; the container is then as it was, with an error."""
        try:
            environ = self._environment(gpus)
        except Refused as fault:
            self.error, self.exit_code = fault.message, 128
            raise
        self.port = free_port()
        self.published = free_port()
        self.relay = await asyncio.start_server(self._relayed, "127.0.0.1", self.published)
        argv = self.image(self.config.get("Cmd") or [], self.port)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: ASYNC220 - so that its pid is known at once
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **environ},
                start_new_session=True,
            )
        self.status, self.error, self.exit_code = "running", "", 0
        self.started_at, self.ended = _now(), asyncio.Event()
        self._reaper = asyncio.get_running_loop().create_task(self._reap(self.process))

    def _environment(self, gpus: int) -> dict[str, str]:
        environ = dict(pair.split("=", 1) for pair in self.config.get("Env") or [])
        for request in self.host.get("DeviceRequests") or []:
            if request.get("Driver") != "nvidia" or not gpus:
                wanted = f'"{request.get("Driver", "")}" with capabilities: [[gpu]]'
                raise Refused(500, f"could not select device driver {wanted}")
            which = request.get("DeviceIDs") or [str(i) for i in range(request.get("Count", 0))]
            for device in which:
                if not device.isdigit() or int(device) >= gpus:
                    raise Refused(
                        500,
                        "failed to create task for container: failed to create shim task: OCI runtime create "
                        "failed: runc create failed: unable to start container process: error during container "
                        "init: error running hook #0: nvidia-container-cli: device error: "
                        f"{device}: unknown device: unknown",
                    )
            environ["NVIDIA_VISIBLE_DEVICES"] = ",".join(which)
        return environ

    async def _reap(self, process: subprocess.Popen[bytes]) -> None:
        code = await asyncio.get_running_loop().run_in_executor(None, process.wait)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        self.status, self.exit_code = "exited", code if code >= 0 else 128 - code
        self.finished_at = _now()
        if self.relay is not None:
            self.relay.close()
            self.relay = None
        self.ended.set()

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL; returns when it has ended."""
        self.stops += 1
        self.signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.ended.wait(), grace_s)
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self.ended.wait()

    async def forget(self) -> None:
        """End it whatever it does, and leave nothing of it."""
        if self.running:
            self.signal(signal.SIGKILL)
            await self.ended.wait()
        self.status = "removing"
        self.log.unlink(missing_ok=True)
        self.removed.set()

    async def _relayed(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            writer.close()
            return
        try:
            await asyncio.gather(_pump(reader, there[1]), _pump(there[0], writer))
        finally:
            writer.close()
            there[1].close()

    # ---- what is said of it

    def state(self) -> dict[str, Any]:
        return {
            "Status": self.status,
            "Running": self.running,
            "Paused": False,
            "Restarting": False,
            "OOMKilled": self.oom,
            "Dead": False,
            "Pid": self.process.pid if self.running and self.process else 0,
            "ExitCode": self.exit_code,
            "Error": self.error,
            "StartedAt": self.started_at,
            "FinishedAt": self.finished_at,
        }

    def inspected(self) -> dict[str, Any]:
        ports: dict[str, Any] = {}
        if self.running and self.target:
            ports[self.target] = [{"HostIp": "127.0.0.1", "HostPort": str(self.published)}]
        return {
            "Id": self.ident,
            "Created": self.created.isoformat().replace("+00:00", "Z"),
            "Path": "vllm",
            "Args": self.config.get("Cmd") or [],
            "State": self.state(),
            "Image": "sha256:" + "0" * 64,
            "Name": "/" + self.name,
            "RestartCount": 0,
            "Driver": "overlay2",
            "Platform": "linux",
            "HostConfig": self.host,
            "Mounts": [],
            "Config": {
                "Hostname": self.ident[:12],
                "Tty": bool(self.config.get("Tty")),
                "Env": self.config.get("Env"),
                "Cmd": self.config.get("Cmd"),
                "Image": self.config["Image"],
                "Labels": self.labels,
                "ExposedPorts": self.config.get("ExposedPorts"),
            },
            "NetworkSettings": {"Ports": ports, "Networks": {}},
        }

    def listed(self) -> dict[str, Any]:
        ports: list[dict[str, Any]] = []
        if self.running and self.target:
            private, _, kind = self.target.partition("/")
            ports = [
                {
                    "IP": "127.0.0.1",
                    "PrivatePort": int(private),
                    "PublicPort": self.published,
                    "Type": kind,
                }
            ]
        seen = {"running": "Up 1 second", "created": "Created"}
        return {
            "Id": self.ident,
            "Names": ["/" + self.name],
            "Image": self.config["Image"],
            "ImageID": "sha256:" + "0" * 64,
            "Command": " ".join(self.config.get("Cmd") or ["vllm"]),
            "Created": int(self.created.timestamp()),
            "Ports": ports,
            "Labels": self.labels,
            "State": self.status,
            "Status": seen.get(self.status, f"Exited ({self.exit_code}) 1 second ago"),
            "HostConfig": {"NetworkMode": "bridge"},
            "NetworkSettings": {"Networks": {}},
            "Mounts": [],
        }


def checked(config: Any) -> dict[str, Any]:
    """What is to be made, as far as the engine looks at it before it makes it."""
    if not isinstance(config, dict) or not isinstance(config.get("Image"), str) or not config["Image"]:
        raise Refused(400, "config cannot be empty in order to create a container")
    _list_of_text(config, "Cmd")
    for pair in _list_of_text(config, "Env"):
        if not pair.partition("=")[0]:
            raise Refused(400, f"invalid environment variable: {pair}")
    labels = config.get("Labels") or {}
    if not all(isinstance(value, str) for value in labels.values()):
        raise Refused(400, "json: cannot unmarshal into Go struct field .Labels of type string")
    host = config.get("HostConfig") or {}
    for bind in _list_of_text(host, "Binds"):
        if not re.fullmatch(r"/[^:]+:/[^:]+(:(ro|rw))?", bind):
            raise Refused(400, f"invalid volume specification: '{bind}'")
    if not isinstance(host.get("ShmSize", 0), int) or host.get("ShmSize", 0) < 0:
        raise Refused(400, "SHM size can not be less than 0")
    if host.get("IpcMode", "private") not in ("", "none", "private", "shareable", "host"):
        raise Refused(400, f"invalid IPC mode: {host['IpcMode']}")
    if host.get("RestartPolicy", {}).get("Name", "no") not in (
        "",
        "no",
        "always",
        "on-failure",
        "unless-stopped",
    ):
        raise Refused(400, "invalid restart policy")
    for port, bindings in (host.get("PortBindings") or {}).items():
        if not re.fullmatch(r"\d+/(tcp|udp)", port) or not all(
            isinstance(b["HostPort"], str) for b in bindings
        ):
            raise Refused(400, f"invalid port specification: {port!r}")
    for request in host.get("DeviceRequests") or []:
        if request.get("Count") and request.get("DeviceIDs"):
            raise Refused(
                400, "invalid device request: cannot set both Count and DeviceIDs on device request"
            )
    return config


def _list_of_text(config: Mapping[str, Any], key: str) -> list[str]:
    value = config.get(key) or []
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise Refused(400, f"json: cannot unmarshal into Go struct field .{key} of type []string")
    return value


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:  # a reset: who was killed says no more, and the other side must not wait for it
        writer.transport.abort()


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
