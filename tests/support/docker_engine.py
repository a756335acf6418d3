"""A double of the Docker Engine API over a Unix socket: real HTTP/1.1, real processes, the engine's words.

No engine runs where these tests run. What the double says was written down from the API's reference and moby's
sources, and the `docker` command understands it (`tests/integration/test_docker_double.py`). It answers on a thread
of its own. Faults are switched on for calls of a method and a path that a pattern finds, each for a number of times.
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import h11

from .docker_containers import NAME, Container, Image, Refused, checked

T = TypeVar("T")
_VERSIONED = re.compile(r"^/v(\d+)\.(\d+)(/.*)$")
_MULTIPLEXED = "application/vnd.docker.multiplexed-stream"
_RAW = "application/vnd.docker.raw-stream"


@dataclass
class Call:
    """One call as it came. version: "" without one in the path."""

    method: str
    path: str
    query: dict[str, str]
    body: bytes
    version: str


@dataclass
class Fault:
    """kind: `status`, `slow`, `dies` (no answer), `half` (of one), `html`, `hangs`, `endless` or `not_http`."""

    method: str
    path: re.Pattern[str]
    kind: str
    status: int = 500
    message: str = "an error"
    seconds: float = 0.0
    times: int = 1


class DockerDouble:
    """Handle on the double. images: by name with tag; registry: those that can be fetched."""

    def __init__(self, api: tuple[int, int] = (1, 47), gpus: int = 0) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="penstock-test-docker-"))
        self.socket = self.folder / "docker.sock"
        self.images: dict[str, Image] = {}
        self.registry: dict[str, Image] = {}
        self.containers: list[Container] = []
        self.calls: list[Call] = []
        self.api = api
        self.oldest = (1, 24)
        self.gpus = gpus
        self._faults: list[Fault] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None
        self._over = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="docker-double")

    # ---- for tests, from their thread

    def fault(self, method: str, path: str, kind: str, **fields: Any) -> None:
        """Switch a fault on; `times=0` is for ever."""
        self._faults.append(Fault(method, re.compile(path), kind, **fields))

    def mend(self) -> None:
        """Switch all faults off; what hangs goes on."""
        self._faults.clear()
        self._on_loop(self._let_go())

    def down(self) -> None:
        """The engine is gone, its containers run on (live-restore)."""
        self._on_loop(self._close())

    def up(self) -> None:
        """It is back."""
        self._on_loop(self._listen())

    def called(self, method: str, path: str) -> int:
        """How often this was called."""
        return sum(call.method == method and re.search(path, call.path) is not None for call in self.calls)

    def named(self, part: str = "") -> list[Container]:
        """The containers there are whose name has this part."""
        return [container for container in self.containers if part in container.name]

    def kill(self, container: Container, number: int = signal.SIGKILL) -> None:
        """End what runs in it."""
        self._loop.call_soon_threadsafe(container.signal, number)

    # ---- life

    def __enter__(self) -> "DockerDouble":
        self._thread.start()
        self._on_loop(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._on_loop(self._end())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _on_loop(self, doing: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(doing, self._loop).result(30)

    async def _listen(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.socket)

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.socket)
        for writer in list(self._writers):
            writer.transport.abort()

    async def _let_go(self) -> None:
        self._over.set()
        self._over = asyncio.Event()

    async def _end(self) -> None:
        await self._close()
        for container in list(self.containers):
            await container.forget()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- HTTP

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while await self._one(h11.Connection(h11.SERVER), reader, writer):
                pass
        except (OSError, h11.RemoteProtocolError, h11.LocalProtocolError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _one(
        self, connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        head: h11.Request | None = None
        body = bytearray()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(65_536))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return False
        assert head is not None
        keep = b"close" not in dict(head.headers).get(b"connection", b"")
        reply = _Reply(writer, head.method == b"HEAD", keep)
        await self._answer(head, bytes(body), reply)
        return keep and not reply.broken

    async def _answer(self, head: h11.Request, body: bytes, reply: "_Reply") -> None:
        parts = urlsplit(head.target.decode())
        query = {key: values[-1] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
        versioned = _VERSIONED.match(parts.path)
        version, path = (
            ("", parts.path) if versioned is None else (".".join(versioned.groups()[:2]), versioned[3])
        )
        call = Call(head.method.decode(), unquote(path), query, body, version)
        self.calls.append(call)
        reply.headers = {
            "Api-Version": ".".join(map(str, self.api)),
            "Docker-Experimental": "false",
            "Ostype": "linux",
            "Server": "Docker/27.0.0 (linux)",
        }
        if await self._struck(call, reply):
            return
        try:
            if versioned is not None:
                self._speaks((int(versioned[1]), int(versioned[2])))
            if call.body and not dict(head.headers).get(b"content-type", b"").startswith(b"application/json"):
                given = dict(head.headers).get(b"content-type", b"").decode()
                raise Refused(400, f"unsupported Content-Type header ({given}): must be 'application/json'")
            await self._routed(call, reply)
        except Refused as fault:
            await reply.json(fault.status, {"message": fault.message})

    def _speaks(self, version: tuple[int, int]) -> None:
        words = ".".join(map(str, version))
        if version > self.api:
            newest = ".".join(map(str, self.api))
            raise Refused(
                400, f"client version {words} is too new. Maximum supported API version is {newest}"
            )
        if version < self.oldest:
            oldest = ".".join(map(str, self.oldest))
            raise Refused(
                400,
                f"client version {words} is too old. Minimum supported API version is {oldest}, please upgrade "
                "your client to a newer version",
            )

    async def _struck(self, call: Call, reply: "_Reply") -> bool:
        for fault in self._faults:
            if fault.method != call.method or not fault.path.search(call.path):
                continue
            if fault.times:
                fault.times -= 1
                if not fault.times:
                    self._faults.remove(fault)
            return await self._strike(fault, reply)
        return False

    async def _strike(self, fault: Fault, reply: "_Reply") -> bool:
        if fault.kind == "slow":
            await asyncio.sleep(fault.seconds)
            return False
        if fault.kind == "hangs":
            await self._over.wait()
            return False
        if fault.kind == "status":
            await reply.json(fault.status, {"message": fault.message})
        elif fault.kind == "html":
            await reply.whole(200, b"<html>It works!</html>", "text/html")
        elif fault.kind == "half":
            reply.raw(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"Id": "ab')
        elif fault.kind == "not_http":
            reply.raw(b"SSH-2.0-OpenSSH_9.6\r\n")
        elif fault.kind == "endless":
            with contextlib.suppress(OSError):
                async with reply.chunked(200, "application/json") as send:
                    for _ in range(1 << 12):
                        await send(b'"' + b"x" * 65_536)
        elif fault.kind != "dies":
            raise AssertionError(fault.kind)
        reply.hang_up()
        return True

    # ---- the API

    async def _routed(self, call: Call, reply: "_Reply") -> None:
        if call.path == "/_ping" and call.method in ("GET", "HEAD"):
            await reply.whole(200, b"OK", "text/plain; charset=utf-8")
            return
        for method, pattern, handler in _ROUTES:
            found = re.fullmatch(pattern, call.path)
            if found is not None and call.method == method:
                await handler(self, call, reply, *found.groups())
                return
        raise Refused(404, "page not found")

    async def _list(self, call: Call, reply: "_Reply") -> None:
        filters = json.loads(call.query.get("filters") or "{}")
        shown = []
        for container in self.containers:
            if not container.running and call.query.get("all") not in ("1", "true", "True"):
                continue
            wanted = [label.partition("=") for label in filters.get("label", [])]
            if all(
                key in container.labels and (not equals or container.labels[key] == value)
                for key, equals, value in wanted
            ):
                shown.append(container.listed())
        async with reply.chunked(200, "application/json") as send:
            await send(json.dumps(shown).encode())

    async def _create(self, call: Call, reply: "_Reply") -> None:
        name = call.query.get("name", "")
        if name and not NAME.match(name):
            raise Refused(400, f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
        try:
            config = checked(json.loads(call.body))
        except ValueError as fault:
            raise Refused(400, f"invalid JSON: {fault}") from None
        image = self.images.get(_tagged(config["Image"]))
        if image is None:
            raise Refused(404, f"No such image: {_tagged(config['Image'])}")
        for other in self.containers:
            if name == other.name:
                raise Refused(
                    409,
                    f'Conflict. The container name "/{name}" is already in use by container "{other.ident}". '
                    "You have to remove (or rename) that container to be able to reuse that name.",
                )
        container = Container(name, config, image)
        container.name = name or f"nameless_{container.ident[:8]}"
        self.containers.append(container)
        await reply.json(201, {"Id": container.ident, "Warnings": []})

    def _found(self, ident: str) -> Container:
        for container in self.containers:
            if ident.lstrip("/") == container.name or (len(ident) > 2 and container.ident.startswith(ident)):
                return container
        raise Refused(404, f"No such container: {ident}")

    async def _inspect(self, _: Call, reply: "_Reply", ident: str) -> None:
        await reply.json(200, self._found(ident).inspected())

    async def _start(self, _: Call, reply: "_Reply", ident: str) -> None:
        container = self._found(ident)
        async with container.lock:
            running = container.running
            if container not in self.containers:
                raise Refused(404, f"No such container: {ident}")
            if not running:
                await container.start(self.gpus)
        if running:
            await reply.whole(304)
            return
        await reply.whole(204)

    async def _stop(self, call: Call, reply: "_Reply", ident: str) -> None:
        container = self._found(ident)
        if not container.running:
            await reply.whole(304)
            return
        grace = call.query.get("t", str(container.config.get("StopTimeout", 10)))
        if not re.fullmatch(r"-?\d+", grace):
            raise Refused(400, f'strconv.Atoi: parsing "{grace}": invalid syntax')
        await container.stop(float(grace))
        await reply.whole(204)

    async def _kill(self, call: Call, reply: "_Reply", ident: str) -> None:
        container = self._found(ident)
        if not container.running:
            raise Refused(409, f"cannot kill container: {ident}: container {container.ident} is not running")
        word = call.query.get("signal", "SIGKILL")
        container.signal(int(word) if word.isdigit() else signal.Signals[word])
        await reply.whole(204)

    async def _remove(self, call: Call, reply: "_Reply", ident: str) -> None:
        container = self._found(ident)
        forced = call.query.get("force") in ("1", "true")
        if container.running and not forced:
            raise Refused(
                409,
                f'cannot remove container "/{container.name}": container is running: stop the container before '
                "removing or force remove",
            )
        if container.status == "removing":
            raise Refused(409, f"removal of container {container.ident} is already in progress")
        async with container.lock:
            await container.forget()
            if container in self.containers:
                self.containers.remove(container)
        await reply.whole(204)

    async def _wait(self, call: Call, reply: "_Reply", ident: str) -> None:
        container = self._found(ident)
        condition = call.query.get("condition", "not-running")
        if condition not in ("not-running", "next-exit", "removed"):
            raise Refused(400, f'invalid condition: "{condition}"')
        async with reply.chunked(200, "application/json") as send:
            if condition == "not-running" and not container.running:
                pass
            elif condition == "removed":
                await container.removed.wait()
            else:
                await container.ended.wait()
            await send(json.dumps({"StatusCode": container.exit_code}).encode() + b"\n")

    async def _logs(self, call: Call, reply: "_Reply", ident: str) -> None:
        container = self._found(ident)
        if not {"1", "true"} & {call.query.get("stdout"), call.query.get("stderr")}:
            raise Refused(400, "Bad parameters: you must choose at least one stream")
        written = container.log.read_bytes() if container.log.exists() else b""
        lines = written.splitlines(keepends=True)
        tail = call.query.get("tail", "all")
        if tail.isdigit():
            lines = lines[-int(tail) :] if int(tail) else []
        kind = _MULTIPLEXED if call.version and _number(call.version) >= (1, 42) else _RAW
        async with reply.chunked(200, kind) as send:
            for line in lines:
                await send(b"\x01\0\0\0" + len(line).to_bytes(4, "big") + line)

    async def _pull(self, call: Call, reply: "_Reply") -> None:
        image = call.query.get("fromImage", "")
        if call.query.get("tag"):
            image += ":" + call.query["tag"]
        assert ":" in image.rpartition("/")[2], "without a tag the engine fetches every one that there is"
        image = _tagged(image)
        found = self.registry.get(image)
        if found is None:
            repository = image.partition(":")[0]
            raise Refused(
                404,
                f"pull access denied for {repository}, repository does not exist or may require 'docker login': "
                "denied: requested access to the resource is denied",
            )
        async with reply.chunked(200, "application/json") as send:
            await send(_line({"status": f"Pulling from {image}", "id": image.rpartition(":")[2]}))
            for done in (1, 2):
                detail = {"current": done, "total": 2}
                await send(_line({"status": "Downloading", "progressDetail": detail, "id": "a1b2c3"}))
            if self._strikes("PULL", image):
                error = "write /var/lib/docker/tmp/x: no space left on device"
                await send(_line({"errorDetail": {"message": error}, "error": error}))
                return
            self.images[image] = found
            await send(_line({"status": f"Status: Downloaded newer image for {image}"}))

    def _strikes(self, method: str, path: str) -> bool:
        return any(fault.method == method and fault.path.search(path) for fault in self._faults)


class _Reply:
    """One answer."""

    def __init__(self, writer: asyncio.StreamWriter, headless: bool, keep: bool) -> None:
        self._writer = writer
        self._bodyless = headless
        self._keep = keep
        self.headers: dict[str, str] = {}
        self.broken = False

    def _head(self, status: int, more: dict[str, str]) -> bytes:
        lines = {**self.headers, **more} | ({} if self._keep else {"Connection": "close"})
        return b"".join(
            [
                f"HTTP/1.1 {status} X\r\n".encode(),
                *(f"{key}: {value}\r\n".encode() for key, value in lines.items()),
                b"\r\n",
            ]
        )

    async def whole(self, status: int, body: bytes = b"", kind: str = "application/json") -> None:
        more = {} if status in (204, 304) else {"Content-Type": kind, "Content-Length": str(len(body))}
        self._writer.write(self._head(status, more) + (b"" if self._bodyless else body))
        await self._writer.drain()

    async def json(self, status: int, value: Any) -> None:
        await self.whole(status, json.dumps(value).encode() + b"\n")

    @contextlib.asynccontextmanager
    async def chunked(
        self, status: int, kind: str
    ) -> AsyncIterator[Callable[[bytes], Coroutine[Any, Any, None]]]:
        """The head goes out at once, each piece as it comes."""
        self._writer.write(self._head(status, {"Content-Type": kind, "Transfer-Encoding": "chunked"}))
        await self._writer.drain()

        async def send(piece: bytes) -> None:
            self._writer.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
            await self._writer.drain()

        yield send
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    def raw(self, data: bytes) -> None:
        self._writer.write(data)

    def hang_up(self) -> None:
        self.broken = True
        self._writer.close()


_ID = r"/containers/([^/]+)"
_ROUTES: list[tuple[str, str, Callable[..., Coroutine[Any, Any, None]]]] = [
    ("GET", r"/containers/json", DockerDouble._list),
    ("POST", r"/containers/create", DockerDouble._create),
    ("GET", _ID + r"/json", DockerDouble._inspect),
    ("POST", _ID + r"/start", DockerDouble._start),
    ("POST", _ID + r"/stop", DockerDouble._stop),
    ("POST", _ID + r"/kill", DockerDouble._kill),
    ("POST", _ID + r"/wait", DockerDouble._wait),
    ("GET", _ID + r"/logs", DockerDouble._logs),
    ("DELETE", _ID, DockerDouble._remove),
    ("POST", r"/images/create", DockerDouble._pull),
]


def _tagged(image: str) -> str:
    """As the engine shows it: without its default registry, with its default tag."""
    image = image.removeprefix("docker.io/library/").removeprefix("docker.io/")
    return image if ":" in image.rpartition("/")[2] else image + ":latest"


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\r\n"


@contextmanager
def docker_engine(**settings: Any) -> Iterator[DockerDouble]:
    """A double that listens; see DockerDouble."""
    with DockerDouble(**settings) as double:
        yield double
