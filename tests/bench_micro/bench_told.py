"""What the access log and traces add to a hit: three hits and the end of the loop's turn, without a socket.

The thread that writes stands still meanwhile: what it does is measured with the whole gateway.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from penstock.cache.arena import Arena, ArenaGeometry
from penstock.cache.layout import Geometry
from penstock.cache.segment import Segment
from penstock.gateway.config import Machine, Published, load
from penstock.gateway.rsgi import App
from penstock.gateway.telemetry.outlet import Outlet
from penstock.gateway.upstream.pool import Pool
from penstock.gateway.worker import Worker

from .bench_request import _URL, _Pool, _Proto
from .material import MODEL, chat, scope_of

HITS = 3
SUBJECTS = {
    "off": "",
    "access_log": "log: {{access: {{path: {folder}/access.jsonl}}}}",
    "traces_unsampled": "telemetry: {{otlp_endpoint: 'http://127.0.0.1:9', sample_ratio: 0}}",
    "traces_sampled": "telemetry: {{otlp_endpoint: 'http://127.0.0.1:9'}}",
}


@pytest.fixture
async def app(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[App]:
    # its line is emptied at once, and nobody comes for what is in it
    monkeypatch.setattr(Outlet, "offer", lambda self, item, size, count: None)
    text = f"models: {{{MODEL}: {{backends: [{{url: {_URL!r}}}]}}}}\ncache: {{mode: all}}\n"
    text += SUBJECTS[request.param].format(folder=tmp_path)
    config = load(text, {}, machine=Machine(frozenset({0}), 1 << 20))
    segment = Segment.create(None, Geometry(slots=2), owner_pid=1, owner_start=1)
    worker = Worker(
        segment,
        0,
        Published(config=config, indices={f"{MODEL}\n{_URL}": 0}, model_indices={MODEL: 0}, generation=1),
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


@pytest.mark.parametrize("app", SUBJECTS, indirect=True)
async def test_hits_and_the_end_of_their_turn(benchmark: BenchmarkFixture, app: App) -> None:
    body = chat(2, temperature=0).body
    scope = scope_of(body)
    proto = _Proto(body)
    await app.__rsgi__(scope, proto)
    app.worker.turn.finish()  # it is kept

    def turn() -> None:
        for _ in range(HITS):
            try:
                app.__rsgi__(scope, proto).send(None)  # inside this test's task, and it never has to wait
            except StopIteration:
                continue
            raise AssertionError("the request waited for something")
        app._record_all()

    benchmark(turn)
