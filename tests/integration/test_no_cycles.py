"""What a request makes dies with it, by reference counts: the collector finds nothing of the gateway's to collect.

A cycle keeps a request's body and answer until the collector comes by, and every request then waits for it. What fails
is not looked at: an exception refers to the frames that hold it.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from ..support.dataplane import DataPlane, data_plane
from ..support.sim import Simulator, simulator

PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with simulator() as running:
        yield running


@pytest.fixture
def plane(sim: Simulator, tmp_path: Path) -> Iterator[DataPlane]:
    config = {
        "models": {"m": {"backends": [{"url": sim.url}]}},
        "cache": {"mode": "all", "l1": {"size": "32MiB"}},
        "log": {"access": {"path": str(tmp_path / "access.jsonl")}},
    }
    with data_plane(config) as running:
        yield running
    sim.reset()


def _ask(plane: DataPlane, text: str, **more: Any) -> httpx.Response:
    body = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 8, **more}
    return httpx.post(f"http://127.0.0.1:{plane.port}{PATH}", json=body, timeout=20, trust_env=False)


def _miss(plane: DataPlane, sim: Simulator, number: int) -> None:
    assert _ask(plane, f"miss {number}").headers["x-penstock-cache"] == "MISS"


def _hit(plane: DataPlane, sim: Simulator, number: int) -> None:
    _ask(plane, "hit")
    assert _ask(plane, "hit").headers["x-penstock-cache"] == "HIT-L1"


def _stream(plane: DataPlane, sim: Simulator, number: int) -> None:
    assert _ask(plane, f"stream {number}", stream=True).headers["x-penstock-cache"] == "MISS"


def _stream_again(plane: DataPlane, sim: Simulator, number: int) -> None:
    _ask(plane, "stream", stream=True)
    assert _ask(plane, "stream", stream=True).headers["x-penstock-cache"] == "HIT-L1"


def _bypass(plane: DataPlane, sim: Simulator, number: int) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "past it"}], "stream": number % 2 == 0}
    url, headers = f"http://127.0.0.1:{plane.port}{PATH}", {"cache-control": "no-cache, no-store"}
    answer = httpx.post(url, json=body, headers=headers, timeout=20, trust_env=False)
    assert answer.headers["x-penstock-cache"] == "BYPASS"


def _together(plane: DataPlane, sim: Simulator, number: int) -> None:
    sim.faults({"path": "/v1/*", "kind": "slow", "seconds": 0.2})
    with ThreadPoolExecutor(4) as pool:
        for streams in (False, True):
            asked = [pool.submit(_ask, plane, f"together {number}", stream=streams) for _ in range(4)]
            found = Counter(one.result().headers["x-penstock-cache"] for one in asked)
            assert found["MISS"] == 1
    sim.reset()


def _refused(plane: DataPlane, sim: Simulator, number: int) -> None:
    assert _ask(plane, "", model="nobody").status_code == 404
    assert _ask(plane, f"bad {number}", max_tokens="x").status_code == 400


KINDS: dict[str, Callable[[DataPlane, Simulator, int], None]] = {
    "misses": _miss,
    "hits": _hit,
    "streams": _stream,
    "streams that are kept": _stream_again,
    "past the cache": _bypass,
    "one flight for many": _together,
    "refused": _refused,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_leaves_nothing_to_the_collector(plane: DataPlane, sim: Simulator, kind: str) -> None:
    ask = KINDS[kind]
    ask(plane, sim, -1)
    plane.wait_settled()
    gc.collect()
    gc.disable()
    try:
        for number in range(3):
            ask(plane, sim, number)
        plane.wait_settled()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        gc.set_debug(0)
        found = Counter(
            type(one).__qualname__
            for one in gc.garbage
            if type(one).__module__.startswith("penstock.gateway")
        )
    finally:
        gc.set_debug(0)
        gc.enable()
        gc.garbage.clear()
    assert not found
