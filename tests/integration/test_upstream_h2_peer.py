"""The gateway before a server of HTTP/2 that was not written here: nghttpx, with a simulator behind it."""

import asyncio
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import yaml

from penstock.gateway.upstream.h2_pool import H2Pool
from penstock.gateway.upstream.pool import Pool
from tests.support.dataplane import DataPlane, data_plane, published
from tests.support.nghttpx import needs_nghttpx, nghttpx
from tests.support.procs import wait_until
from tests.support.scripted import certificate
from tests.support.sim import Simulator, simulator

pytestmark = needs_nghttpx


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with simulator() as running:
        yield running


def config(url: str, **backend: Any) -> dict[str, Any]:
    return {
        "models": {"sim-model": {"backends": [{"url": url, "protocol": "http2", **backend}]}},
        "upstream": {"http2": {"min_connections": 2, "max_connections": 4, "max_streams": 50}},
    }


@pytest.fixture(scope="module", params=["h2c", "tls"])
def plane(
    request: pytest.FixtureRequest, sim: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DataPlane]:
    pem = certificate(tmp_path_factory.mktemp("tls"), "127.0.0.1") if request.param == "tls" else None
    tls = {"tls": {"ca": str(pem)}} if pem is not None else {}
    with nghttpx(sim.url, pem) as url, data_plane(config(url, **tls)) as running:
        yield running


def ask(url: str, stream: bool, **more: Any) -> httpx.Response:
    body = {
        "model": "sim-model",
        "messages": [{"role": "user", "content": "hi"}],
        "seed": 1,
        "max_tokens": 40,
    }
    return httpx.post(
        f"{url}/v1/chat/completions", json={**body, "stream": stream, **more}, timeout=30, trust_env=False
    )


def same(text: str) -> list[str]:
    """An answer without what changes from one to the next."""
    return re.sub(r'"(id|created)":\s*("[^"]*"|\d+)', "", text).split("\n\n")


@pytest.mark.parametrize("stream", [False, True])
def test_answers_are_those_of_the_backend(plane: DataPlane, sim: Simulator, stream: bool) -> None:
    there, here = ask(sim.url, stream), ask(f"http://127.0.0.1:{plane.port}", stream)
    assert (here.status_code, here.headers["content-type"]) == (200, there.headers["content-type"])
    assert same(here.text) == same(there.text)
    assert not stream or here.text.endswith("data: [DONE]\n\n")


def test_a_long_request_goes_through(plane: DataPlane) -> None:
    answer = ask(f"http://127.0.0.1:{plane.port}", False, user="x" * 500_000)
    assert answer.status_code == 200


def test_an_error_is_the_backends_own(plane: DataPlane, sim: Simulator) -> None:
    there, here = (ask(url, False, max_tokens=-1) for url in (sim.url, f"http://127.0.0.1:{plane.port}"))
    assert (here.status_code, here.json()) == (there.status_code, there.json())
    assert here.status_code == 400


def test_a_hundred_at_a_time_and_half_of_them_leave(plane: DataPlane) -> None:
    async def one(client: httpx.AsyncClient, number: int) -> int:
        body = {"model": "sim-model", "prompt": str(number), "max_tokens": 30, "stream": True}
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            async for _ in answer.aiter_raw():
                if number % 2:
                    break
            return answer.status_code

    async def all_of_them() -> list[int]:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{plane.port}", timeout=30, trust_env=False
        ) as client:
            return await asyncio.gather(*[one(client, number) for number in range(100)])

    assert asyncio.run(all_of_them()) == [200] * 100
    plane.wait_settled()
    assert plane.call(lambda: plane.worker.fleet.backends[0].pool.connections) <= 4  # type: ignore[union-attr]


def test_a_reload_to_http2_makes_a_new_pool_and_loses_no_request(sim: Simulator) -> None:
    """One port, which speaks both: what has begun ends over HTTP/1.1, what begins after the reload is a stream."""

    def settings(protocol: str) -> dict[str, Any]:
        return config(url, protocol=protocol)

    with nghttpx(sim.url) as url, data_plane(settings("http1")) as plane:
        gate = f"http://127.0.0.1:{plane.port}"
        before = plane.worker.fleet.backends[0].pool
        stop = threading.Event()
        statuses: list[int] = []

        def keep_asking() -> None:
            while not stop.is_set():
                statuses.append(ask(gate, False).status_code)

        with (
            ThreadPoolExecutor(4) as threads,
            httpx.Client(base_url=gate, timeout=30, trust_env=False) as client,
        ):
            sim.faults({"path": "/v1/completions", "kind": "hang", "stage": "stream"})
            body = {"model": "sim-model", "prompt": "x", "max_tokens": 30, "stream": True}
            with client.stream("POST", "/v1/completions", json=body) as answer:
                pieces = answer.iter_text()
                text = next(pieces)
                asking = [threads.submit(keep_asking) for _ in range(4)]
                try:
                    wait_until(lambda: len(statuses) > 10, what="answers over HTTP/1.1")
                    plane.call(lambda: plane.worker.swap(published(yaml.safe_dump(settings("http2")))))
                    after = plane.worker.fleet.backends[0].pool
                    assert isinstance(before, Pool)
                    assert isinstance(after, H2Pool)
                    wait_until(lambda: before.active == 1, what="the end of all but the stream")
                    seen = len(statuses)
                    wait_until(lambda: len(statuses) > seen + 10, what="answers over HTTP/2")
                finally:
                    stop.set()
                    sim.reset()
                text += "".join(pieces)
            for thread in asking:
                thread.result()
        assert text.endswith("data: [DONE]\n\n")
        assert '"error"' not in text
        assert set(statuses) == {200}
        wait_until(lambda: (before.active, before.idle) == (0, 0), what="the end of the old pool")
        assert 1 <= after.connections <= 4
        plane.assert_no_trouble()
