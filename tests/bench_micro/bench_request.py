"""One whole request through the gateway's own code: the adapter and the pipeline, without a socket on either side.

Granian and the upstream connection are stand-ins that answer at once, so what is timed is what Penstock adds in
Python. It is the sum that the other steps are parts of.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from penstock.cache.arena import Arena, ArenaGeometry
from penstock.cache.layout import Geometry
from penstock.cache.segment import Segment
from penstock.gateway.config import Published, load
from penstock.gateway.rsgi import App
from penstock.gateway.upstream.pool import Pool
from penstock.gateway.worker import Worker

from .material import MODEL, chat, scope_of

_URL = "http://127.0.0.1:1"
_CONFIG = f"models: {{{MODEL}: {{backends: [{{url: {_URL!r}}}]}}}}"
_REPLY = b'{"choices":[]}' * 46


class _Pool:
    """Answers every call at once with a whole response."""

    def tick(self, now: float) -> None: ...

    async def call(self, *_: object, **__: object) -> Any:
        return SimpleNamespace(
            status=200,
            headers=[(b"server", b"uvicorn"), (b"content-type", b"application/json")],
            content_length=len(_REPLY),
            complete=True,
            body=_REPLY,
            abort=lambda: None,
        )

    async def close(self) -> None: ...


class _Proto:
    """What Granian hands over with a request: the body, and a way to answer."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.answered = 0

    async def __call__(self) -> bytes:
        return self._body

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        assert status == 200
        self.answered += 1


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    segment = Segment.create(None, Geometry(slots=2), owner_pid=1, owner_start=1)
    published = Published(
        config=load(_CONFIG, {}), indices={f"{MODEL}\n{_URL}": 0}, model_indices={MODEL: 0}, generation=1
    )
    worker = Worker(
        segment,
        0,
        published,
        arena=Arena.create(None, ArenaGeometry.of(32 << 20, 1 << 16, 2), 0),
        generation=1,
        node=bytes(16),
        folder=tmp_path,
        workers=1,
        loop=asyncio.get_running_loop(),
        clock=time.monotonic,
        environ={},
    )
    for backend in worker.fleet.backends:
        backend.pool = cast(Pool, _Pool())
    yield App(worker)
    await worker.close()


@pytest.mark.parametrize("temperature", [0, 0.7], ids=["with_a_key", "with_a_veto"])
async def test_request_without_its_sockets(benchmark: BenchmarkFixture, app: App, temperature: float) -> None:
    body = chat(2, temperature=temperature).body
    scope = scope_of(body)
    proto = _Proto(body)

    def request() -> None:
        try:
            app.__rsgi__(scope, proto).send(None)  # inside this test's task, and it never has to wait
        except StopIteration:
            return
        raise AssertionError("the request waited for something")

    benchmark(request)
    assert proto.answered
