"""Asks a gateway over plain sockets, and keeps what a library hides: where chunks end, and which worker answered."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httptools
import msgspec

from .procs import wait_until
from .sim import Simulator
from .wire import Reply, Wire, request

CHAT = "/v1/chat/completions"

_CONTROL = ("/sim/", "/health", "/metrics", "/load", "/version", "/ping")


@dataclass
class Answer(Reply):
    """A response and the chunks it came in."""

    chunks: list[bytes] = field(default_factory=list)
    _at: int = 0

    @property
    def cache(self) -> str | None:
        """What the cache had to do with it."""
        return self.header("x-penstock-cache")

    @property
    def reason(self) -> str | None:
        """Why it had nothing to do with it."""
        return self.header("x-penstock-cache-reason")

    def on_chunk_complete(self) -> None:
        if len(self.body) > self._at:
            self.chunks.append(self.body[self._at :])
            self._at = len(self.body)


def question(n: object = 0, /, **more: Any) -> dict[str, Any]:
    """The n-th chat, the same for equal arguments; cacheable in every mode but `off` and `opt_in`."""
    said = {"role": "user", "content": f"Question {n}: how high is the tower?"}
    return {"model": "m", "messages": [said], "max_tokens": 8, "temperature": 0, **more}


class Line(Wire):
    """A connection on which one question follows another."""

    def put(
        self, body: dict[str, Any] | bytes, path: str = CHAT, headers: Mapping[str, str] | None = None
    ) -> Line:
        """Send a question; the answer is for `receive`."""
        encoded = body if isinstance(body, bytes) else msgspec.json.encode(body)
        self.send(request(path, encoded, headers=headers))
        self._answer = Answer()
        self._parser = httptools.HttpResponseParser(self._answer)
        return self

    def receive(self, *, chunks: int | None = None) -> Answer:
        """The answer, to its end or that of the connection; or until so many chunks of it have come, and later on."""
        answer = self._answer
        while not answer.complete and (chunks is None or len(answer.chunks) < chunks):
            data = self.read(answer.more)
            if not data:
                break
            self._parser.feed_data(data)
            answer.status = self._parser.get_status_code()
        return answer

    def ask(
        self, body: dict[str, Any] | bytes, path: str = CHAT, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a question and get the whole answer, which must come."""
        answer = self.put(body, path, headers).receive()
        assert answer.complete, f"the answer broke off: {answer}"
        return answer

    def served_by(self, pids: Sequence[int]) -> int:
        """Which of these processes has the other end. Only once it has answered, or it may have nobody yet."""
        here, there = self.socket.getsockname()[1], self.socket.getpeername()[1]
        return holder(there, here, pids)


def holder(port: int, peer_port: int, pids: Sequence[int]) -> int:
    """Which process holds the end at `port` of the loopback connection between the two ports."""
    wanted = f":{port:04X}", f":{peer_port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if (words[1][-5:], words[2][-5:]) == wanted:
            name = f"socket:[{words[9]}]"
            for pid in pids:
                for fd in os.scandir(f"/proc/{pid}/fd"):
                    try:
                        if os.readlink(fd.path) == name:
                            return pid
                    except FileNotFoundError:
                        continue
    raise AssertionError(f"none of {pids} has the connection {port}-{peer_port}")


def line_to(port: int, pid: int, pids: Sequence[int]) -> Line:
    """A connection that worker `pid` serves; the kernel shares them out, so others are opened and closed."""

    def opened() -> Line | None:
        line = Line(port)
        line.send(request("/health", method="GET"))
        reply = line.reply()
        assert reply is not None
        assert reply.status == 200
        if line.served_by(pids) == pid:
            return line
        line.socket.close()
        return None

    line = wait_until(opened, 30, f"a connection to worker {pid}")
    assert line is not None
    return line


def ask(
    port: int, body: dict[str, Any] | bytes, path: str = CHAT, headers: Mapping[str, str] | None = None
) -> Answer:
    """One question on a connection of its own."""
    with Line(port) as line:
        return line.ask(body, path, headers)


def calls(sim: Simulator) -> int:
    """Requests that a simulator got since its reset, answered or not yet, without probes."""
    stats = sim.stats()
    ended = {path: counted["total"] for path, counted in stats["paths"].items()}
    under_way = stats["in_flight_by_path"]
    return sum(
        ended.get(path, 0) + under_way.get(path, 0)
        for path in {*ended, *under_way}
        if not path.startswith(_CONTROL) and path != "/v1/models"
    )
