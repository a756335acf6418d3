"""What the Docker Engine is told of a container, and what it says of one. Pure.

A container is recognised by its labels, and its name follows from them, so that making it twice finds the first one.
The digest is of everything that it is made from but the GPUs, which whoever orders the start chooses.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ....gateway.config import DockerPool
from ..quote import one_line
from .base import ProviderFault, Running

GATEWAY, POOL, MEMBER, DIGEST, GPUS = (
    f"penstock.{key}" for key in ("gateway", "pool", "member", "digest", "gpus")
)
_UNFIT = re.compile(r"[^a-zA-Z0-9_.-]+")
_HEADER_BYTES = 8
_MOST_GPUS = 64


@dataclass(frozen=True, slots=True)
class Container:
    """What the engine says of one. url: where it answers, None before its port is published.

    pid: of its first process, as this machine numbers it; 0 when it does not run.
    """

    ident: str
    labels: Mapping[str, str]
    status: str
    url: str | None
    exit_code: int = 0
    error: str = ""
    oom: bool = False
    pid: int = 0

    @property
    def running(self) -> bool:
        """Whether it does what it was made for."""
        return self.status == "running"

    @property
    def gpus(self) -> tuple[int, ...]:
        """The devices that it was started with, where somebody said which."""
        words = self.labels.get(GPUS, "").split(",")[:_MOST_GPUS]
        return tuple(int(word) for word in words if word.isascii() and word.isdigit() and len(word) < 5)

    def ended(self) -> str:
        """How it came to its end, as the end of a sentence."""
        if self.oom:
            return "was killed for want of memory"
        error = f": {one_line(self.error)}" if self.error else ""
        return f"exited with {self.exit_code}{error}"


def gateway_label(state: Path) -> str:
    """By what a gateway recognises its own, from its state folder."""
    return hashlib.sha256(str(state).encode()).hexdigest()[:16]


class Recipe:
    """What containers of one pool are made from. gateway: `gateway_label`."""

    def __init__(self, gateway: str, name: str, pool: DockerPool, api_key: str | None) -> None:
        self._gateway = gateway
        self._name = name
        self._pool = pool
        self._port = f"{pool.container_port}/tcp"
        filled = {"{port}": str(pool.container_port), "{model}": name}
        self._command = [_filled(word, filled) for word in pool.command]
        env = dict(pool.env)
        if api_key:
            env.setdefault("VLLM_API_KEY", api_key)
        if pool.sleep_after_s is not None:
            env.setdefault("VLLM_SERVER_DEV_MODE", "1")
        self._env = [f"{key}={value}" for key, value in sorted(env.items())]
        self.digest = hashlib.sha256(msgspec.json.encode(self.body(0, (), digest=""))).hexdigest()[:32]

    def name_of(self, member: int) -> str:
        """The name of a member's container: the same from one gateway with one state folder, always."""
        known = hashlib.sha256(f"{self._gateway} {self._name}".encode()).hexdigest()[:10]
        words = _UNFIT.sub("-", self._name).strip("-.")[:40]
        return f"penstock-{words}-{known}-{member}"

    def filters(self) -> str:
        """Which containers are this pool's, in the engine's words."""
        labels = [f"{GATEWAY}={self._gateway}", f"{POOL}={self._name}"]
        return msgspec.json.encode({"label": labels}).decode()

    def is_ours(self, labels: Mapping[str, str]) -> bool:
        """Whether these are the labels of a container of this pool."""
        return labels.get(GATEWAY) == self._gateway and labels.get(POOL) == self._name

    def is_current(self, labels: Mapping[str, str]) -> bool:
        """Whether such a container is made from what is configured now."""
        return labels.get(DIGEST) == self.digest

    def running(self, container: Container) -> Running:
        """A container that runs, as providers say it."""
        return Running(container.url, container.gpus, stale=not self.is_current(container.labels))

    def body(self, member: int, gpus: tuple[int, ...], digest: str | None = None) -> dict[str, Any]:
        """What is POSTed to make a member's container."""
        pool = self._pool
        host: dict[str, Any] = {
            "Binds": list(pool.volumes),
            "ShmSize": pool.shm_size,
            # of its own: with the host's /dev/shm the size would be the host's too
            "IpcMode": "private",
            # the engine chooses the port; nobody else reaches it than who is on this machine
            "PortBindings": {self._port: [{"HostIp": "127.0.0.1", "HostPort": ""}]},
            # who starts it again is the gateway
            "RestartPolicy": {"Name": "no"},
        }
        if gpus or pool.gpus:
            which = {"DeviceIDs": [str(gpu) for gpu in gpus]} if gpus else {"Count": pool.gpus}
            host["DeviceRequests"] = [{"Driver": "nvidia", "Capabilities": [["gpu"]], **which}]
        made: dict[str, Any] = {
            "Image": pool.image,
            "Env": self._env,
            "ExposedPorts": {self._port: {}},
            "StopTimeout": math.ceil(pool.stop_timeout_s),
            "Labels": {
                GATEWAY: self._gateway,
                POOL: self._name,
                MEMBER: str(member),
                DIGEST: self.digest if digest is None else digest,
                GPUS: ",".join(map(str, gpus)),
            },
            "HostConfig": host,
        }
        if self._command:
            made["Cmd"] = self._command
        return made

    def inspected(self, said: Any) -> Container:
        """What `GET /containers/{id}/json` said. Raises ProviderFault where it cannot be understood."""
        try:
            state, ports = said["State"], said["NetworkSettings"]["Ports"] or {}
            return Container(
                str(said["Id"]),
                _labels(said["Config"]["Labels"]),
                str(state["Status"]),
                _url(ports.get(self._port)),
                int(state.get("ExitCode") or 0),
                str(state.get("Error") or ""),
                bool(state.get("OOMKilled")),
                int(state.get("Pid") or 0),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ProviderFault("docker: the engine's words on a container are not understood") from None


def pools_of(said: Any) -> list[tuple[str, str]]:
    """Of each container that `GET /containers/json` said: its pool and its id. Raises ProviderFault."""
    try:
        return [(_labels(one["Labels"]).get(POOL, ""), str(one["Id"])) for one in said]
    except (KeyError, TypeError, AttributeError):
        raise ProviderFault("docker: the engine's list of containers is not understood") from None


def listed(said: Any) -> list[tuple[int, str, str]]:
    """Of each container that `GET /containers/json` said: member, id, state. Raises ProviderFault."""
    try:
        found = []
        for one in said:
            member = _labels(one["Labels"]).get(MEMBER, "")
            if member.isascii() and member.isdigit() and len(member) < 4:
                found.append((int(member), str(one["Id"]), str(one["State"])))
        return found
    except (KeyError, TypeError, AttributeError):
        raise ProviderFault("docker: the engine's list of containers is not understood") from None


def image_query(image: str) -> dict[str, str]:
    """How an image is asked for; without a tag the engine would fetch every one that there is."""
    last = image.rpartition("/")[2]
    if "@" in image or ":" in last:
        return {"fromImage": image}
    return {"fromImage": image, "tag": "latest"}


def last_line(stream: bytes) -> str:
    """The last line in a stream of logs: frames of 8 bytes of head (stream, 0, 0, 0, length) and a part each, or,
    from a container with a terminal, the plain text."""
    text = bytearray()
    at = 0
    while (
        len(stream) - at >= _HEADER_BYTES and stream[at] in (0, 1, 2) and stream[at + 1 : at + 4] == b"\0\0\0"
    ):
        length = int.from_bytes(stream[at + 4 : at + 8], "big")
        text += stream[at + _HEADER_BYTES : at + _HEADER_BYTES + length]
        at += _HEADER_BYTES + length
    if not at:
        text += stream
    lines = [line for raw in text.decode("utf-8", "replace").splitlines() if (line := one_line(raw))]
    return lines[-1] if lines else ""


def _labels(said: Any) -> dict[str, str]:
    return {str(key): str(value) for key, value in (said or {}).items()}


def _url(bindings: Any) -> str | None:
    if not bindings:
        return None
    port = int(bindings[0]["HostPort"])
    return f"http://127.0.0.1:{port}" if 0 < port < 65_536 else None


def _filled(word: str, filled: Mapping[str, str]) -> str:
    for name, value in filled.items():
        word = word.replace(name, value)
    return word
