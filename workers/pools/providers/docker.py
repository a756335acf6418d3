"""`provider: docker`: members are containers on this machine, made and ended through the Docker Engine's socket.

Strategy: the engine remembers, this does not. A member's container has one name that follows from gateway, model and
number, so making it twice finds the first one (409), and labels by which the next controller recognises it; whatever
is found is brought to what is wanted. A container that runs is taken over, one that was made and never started is
started, one that has ended or was made from another configuration gives way to a new one. Its end is heard through
`wait`, asked again when the engine was away. Refuses to know when to start, and which GPUs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ....gateway.config import DockerPool
from ..quote import one_line
from ..ready import until_ready
from .base import Order, Provider, ProviderFault, Running
from .docker_engine import Answer, DockerEngine, EngineRefused, segment
from .docker_strays import note_engine
from .docker_words import Container, Recipe, gateway_label, image_query, last_line, listed

log = logging.getLogger(__name__)

_REMOVE_S = 30.0
_AGAIN_S = 0.25
_MOST_AGAIN_S = 5.0
_LOG_LINES = 20
_MOST_LOG_BYTES = 64 << 10
_MOST_LINE_BYTES = 1 << 20


class DockerProvider(Provider):
    """The containers of one pool.

    state: the gateway's state folder, which also tells it from others at the same engine. name: the model's.
    health_path: answered with 2xx by a server that is ready. api_key: of the servers, where they have one.
    """

    local = True

    def __init__(
        self, state: Path, name: str, pool: DockerPool, *, health_path: str, api_key: str | None
    ) -> None:
        super().__init__()
        self.keep = pool.keep
        self._pool = pool
        self._recipe = Recipe(gateway_label(state), name, pool, api_key)
        self._state = state
        self._engine = DockerEngine(pool.socket)
        self._path = health_path
        self._api_key = api_key
        #: of members: who waits for its end, or clears away what a failed start left
        self._watches: dict[int, asyncio.Task[None]] = {}
        self._pids: dict[int, int] = {}

    async def ensure_ready(self, member: int, order: Order, timeout_s: float) -> Running:
        self._unwatch(member)
        name = self._recipe.name_of(member)
        step = ["the engine"]
        try:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._engine.negotiate()
                    container = await self._run(member, name, order, step)
                    step[0] = "the server in the container"
                    await self._healthy(container, name)
            except TimeoutError:
                words = await self._log_line(name) if step[0].startswith("the server") else ""
                raise ProviderFault(f"docker: {step[0]} was not ready after {timeout_s:g} s{words}") from None
        except ProviderFault:
            if not await self._left_nothing(name):
                self._watches[member] = asyncio.get_running_loop().create_task(self._clear_away(name))
            raise
        self._watch(member, container)
        return self._recipe.running(container)

    async def ensure_stopped(self, member: int, order: Order, timeout_s: float) -> None:
        self._unwatch(member)
        name = self._recipe.name_of(member)
        await self._engine.negotiate()
        container = await self._inspect(name)
        if container is None or not self._recipe.is_ours(container.labels):
            return
        await self._end(container.ident, name, timeout_s)

    async def status(self) -> Mapping[int, Running]:
        await self._engine.negotiate()
        query = {"all": "true", "filters": self._recipe.filters()}
        answer = await self._engine.call("GET", "/containers/json", query, what="list containers")
        members: dict[int, Running] = {}
        for member, ident, state in listed(answer.json()):
            if state != "running":
                continue  # it is replaced when the member is started; until then its log can be read
            container = await self._inspect(ident)
            if container is not None and container.running and self._recipe.is_ours(container.labels):
                members[member] = self._recipe.running(container)
                if member not in self._watches:
                    self._watch(member, container)
        return members

    def pids(self, member: int) -> Collection[int]:
        first = self._pids.get(member, 0)
        return _descendants(first) if first else ()

    async def close(self) -> None:
        for member in list(self._watches):
            self._unwatch(member)
        await self._engine.close()

    # ---- a container is had, and runs

    async def _run(self, member: int, name: str, order: Order, step: list[str]) -> Container:
        """A container of the member that runs with its port published: the one there is, or a new one."""
        while True:
            container = await self._inspect(name)
            if container is None:
                await self._make(member, name, order.gpus, step)
                continue
            if not self._recipe.is_ours(container.labels):
                raise ProviderFault(f"docker: {name} is somebody else's container")
            current = self._recipe.is_current(container.labels)
            if container.running and current:
                break
            if container.status != "created" or not current or container.gpus != order.gpus:
                await self._end(container.ident, name, self._pool.stop_timeout_s)
                continue
            path = f"/containers/{segment(container.ident)}"
            await self._engine.call("POST", f"{path}/start", accept=(204, 304, 404), what=f"start {name}")
            container = await self._inspect(container.ident)
            if container is not None:
                break
        if container.running and container.url is None:
            raise ProviderFault(f"docker: {name} runs without its port published")
        return container

    async def _make(self, member: int, name: str, gpus: tuple[int, ...], step: list[str]) -> None:
        """Make a member's container, with its image fetched where it is missing; or somebody else has."""
        note_engine(self._state, self._pool.socket)
        body = self._recipe.body(member, gpus)
        fetched = False
        while True:
            try:
                await _whole(
                    self._engine.call(
                        "POST",
                        "/containers/create",
                        {"name": name},
                        body=body,
                        accept=(201,),
                        what=f"create {name}",
                    )
                )
                return
            except EngineRefused as fault:
                if fault.status == 409:
                    # who made it is a controller before this one, or it is still being removed
                    await asyncio.sleep(_AGAIN_S)
                    return
                if fault.status != 404 or fetched:
                    raise
            step[0] = f"image {self._pool.image}"
            await self._fetch()
            step[0] = "the engine"
            fetched = True

    async def _fetch(self) -> None:
        """Have the engine fetch the image; layers that it has got stay, also when this takes too long."""
        image = self._pool.image
        log.info("docker_pull image=%s", image)
        try:
            async with self._engine.stream(
                "POST",
                "/images/create",
                image_query(image),
                what=f"image {image} is missing, and fetching it",
            ) as pieces:
                async for line in _lines(pieces):
                    if trouble := _trouble(line):
                        raise ProviderFault(f"docker: image {image} is missing: {trouble}")
        except EngineRefused as fault:
            raise ProviderFault(one_line(str(fault))) from None
        log.info("docker_pulled image=%s", image)

    async def _healthy(self, container: Container, name: str) -> None:
        """Until the server answers. Raises ProviderFault when the container ends before that."""
        ready = asyncio.ensure_future(self._answers(container))
        ended = asyncio.ensure_future(self._ended(container.ident, name))
        try:
            await asyncio.wait((ready, ended), return_when=asyncio.FIRST_COMPLETED)
            if ended.done() and not ready.done():
                how = ended.result()
                raise ProviderFault(f"docker: the container {how}{await self._log_line(name)}")
            ready.result()
        finally:
            for task in (ready, ended):
                task.cancel()
            await asyncio.gather(ready, ended, return_exceptions=True)

    async def _answers(self, container: Container) -> None:
        if container.url is None:
            await asyncio.Event().wait()  # it has ended already; how, the other task says
        else:
            await until_ready(container.url, path=self._path, api_key=self._api_key)

    # ---- a container has ended

    def _watch(self, member: int, container: Container) -> None:
        self._pids[member] = container.pid
        self._watches[member] = asyncio.get_running_loop().create_task(
            self._tell_end(member, container.ident)
        )

    def _unwatch(self, member: int) -> None:
        self._pids.pop(member, None)
        watch = self._watches.pop(member, None)
        if watch is not None:
            watch.cancel()

    async def _tell_end(self, member: int, ident: str) -> None:
        how = await self._ended(ident, self._recipe.name_of(member))
        words = await self._log_line(ident)
        del self._watches[member], self._pids[member]
        self.ended(member, f"docker: the container {how}{words}")

    async def _ended(self, ident: str, name: str) -> str:
        """Wait until a container has ended, and say how; an engine that is away is waited for."""
        pause = _AGAIN_S
        while True:
            with contextlib.suppress(ProviderFault):
                try:
                    path, query = f"/containers/{segment(ident)}/wait", {"condition": "not-running"}
                    async with self._engine.stream("POST", path, query, what=f"wait for {name}") as pieces:
                        async for _ in pieces:
                            pass
                except EngineRefused as fault:
                    if fault.status == 404:
                        return "was removed"
                container = await self._inspect(ident)
                if container is None:
                    return "was removed"
                if not container.running and container.status != "paused":
                    return container.ended()
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MOST_AGAIN_S)

    async def _log_line(self, ident: str) -> str:
        """The last line of its log, as the end of a sentence; nothing where it cannot be had."""
        query = {"stdout": "true", "stderr": "true", "tail": str(_LOG_LINES)}
        got = bytearray()
        try:
            async with (
                asyncio.timeout(2.0),
                self._engine.stream(
                    "GET", f"/containers/{segment(ident)}/logs", query, what="read logs"
                ) as pieces,
            ):
                async for piece in pieces:
                    got += piece
                    if len(got) > _MOST_LOG_BYTES:
                        break
        except (ProviderFault, TimeoutError):
            pass
        line = last_line(bytes(got))
        return f": {line}" if line else ""

    # ---- a container is ended

    async def _end(self, ident: str, name: str, timeout_s: float) -> None:
        """Stop a container and remove it; returns when it is gone."""
        path = f"/containers/{segment(ident)}"
        grace_s = math.ceil(timeout_s)
        with contextlib.suppress(EngineRefused):  # what cannot be stopped is removed by force
            await self._engine.call(
                "POST",
                path + "/stop",
                {"t": str(grace_s)},
                accept=(204, 304, 404),
                timeout_s=grace_s + _REMOVE_S,
                what=f"stop {name}",
            )
        await self._remove(ident, name)

    async def _remove(self, ident: str, name: str) -> None:
        path = f"/containers/{segment(ident)}"
        query = {"force": "true", "v": "true"}
        answer = await self._engine.call(
            "DELETE", path, query, accept=(204, 404, 409), timeout_s=_REMOVE_S, what=f"remove {name}"
        )
        if answer.status != 409:
            return
        gives_up = asyncio.get_running_loop().time() + _REMOVE_S
        while await self._inspect(ident) is not None:  # somebody else is removing it
            if asyncio.get_running_loop().time() >= gives_up:
                raise ProviderFault(f"docker: {name} is being removed since {_REMOVE_S:g} s")
            await asyncio.sleep(_AGAIN_S)

    async def _left_nothing(self, name: str) -> bool:
        """Remove what a start that failed has made; False where it could not be removed now."""
        try:
            container = await self._inspect(name)
            if container is not None and self._recipe.is_ours(container.labels):
                await self._remove(container.ident, name)
        except ProviderFault as fault:
            log.warning("docker_left container=%s: it could not be removed yet: %s", name, fault)
            return False
        return True

    async def _clear_away(self, name: str) -> None:
        """Try again until nothing is left: the GPUs of a container that nobody knows of would be taken for free."""
        pause = _AGAIN_S
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MOST_AGAIN_S)
            if await self._left_nothing(name):
                return

    async def _inspect(self, ident: str) -> Container | None:
        answer: Answer = await self._engine.call(
            "GET", f"/containers/{segment(ident)}/json", accept=(200, 404), what=f"look at {ident[:64]}"
        )
        return None if answer.status == 404 else self._recipe.inspected(answer.json())


async def _whole(call: Coroutine[Any, Any, Answer]) -> Answer:
    """To its end, also when the caller is cancelled meanwhile: whoever comes next must see what was made."""
    task = asyncio.ensure_future(call)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        raise


def _descendants(pid: int) -> set[int]:
    """A process and all that came of it, as far as they run."""
    found, left = set[int](), [pid]
    while left:
        one = left.pop()
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{one}/task"):
                with open(f"/proc/{one}/task/{task}/children") as file:
                    left += [child for child in map(int, file.read().split()) if child not in found]
            found.add(one)
    return found


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The lines of a stream; one that is longer than anything that makes sense ends it."""
    rest = bytearray()
    async for piece in pieces:
        rest += piece
        *whole, last = rest.split(b"\n")
        for line in whole:
            yield bytes(line)
        rest = last
        if len(rest) > _MOST_LINE_BYTES:
            raise ProviderFault("docker: the engine's words on an image are not understood")
    if rest:
        yield bytes(rest)


def _trouble(line: bytes) -> str:
    """What a line of progress says that went wrong: the answer's status was 200 before that."""
    try:
        said = msgspec.json.decode(line)
        return one_line(str(said["error"])) if "error" in said else ""
    except (msgspec.DecodeError, RecursionError, TypeError):
        return ""
