"""Requests that go upstream together before a real vLLM, or the simulator: each answer is that of the request alone."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from penstock.loadtests.bench.scenarios.batching import WORKS, ask

from ..support.gateway import Gateway, gateway
from .conftest import KEY_ENV
from .target import Target

EMBED, COMPLETE = "/v1/embeddings", "/v1/completions"
TEXTS = ("one", "two and three", "four, five and six said the lighthouse keeper", "0.25")


def before(target: Target, **batching: Any) -> dict[str, Any]:
    """A gateway's configuration: both models, with the cache off."""
    pooling = os.environ.get("PENSTOCK_TEST_VLLM_POOLING_URL") if target.real else target.pooling_tap.url
    generating = os.environ.get("PENSTOCK_TEST_VLLM_URL") if target.real else target.tap.url
    models = {target.model: generating, target.pooling: pooling}
    return {
        "cache": {"mode": "off"},
        "models": {
            name: {"backends": [{"url": url, "api_key_env": KEY_ENV}], "batching": batching}
            for name, url in models.items()
            if name and url
        },
    }


@pytest.fixture(scope="module")
def together(target: Target) -> Iterator[Gateway]:
    """A gateway that waits for four."""
    if target.pooling is None or (target.real and not os.environ.get("PENSTOCK_TEST_VLLM_POOLING_URL")):
        pytest.skip("there is no server with a pooling model")
    config = before(target, window_ms=1000, max_items=4)
    with gateway(config, env={KEY_ENV: target.backend_key}) as running:
        yield running


def bodies_of(target: Target, path: str, more: dict[str, Any]) -> list[dict[str, Any]]:
    model, name = (target.pooling, "input") if path == EMBED else (target.model, "prompt")
    return [{"model": model, name: text, **more} for text in TEXTS]


def at_once(gate: Gateway, path: str, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def post(body: dict[str, Any]) -> dict[str, Any]:
        answer = httpx.post(gate.url + path, json=body, timeout=60, trust_env=False)
        answer.raise_for_status()
        told: dict[str, Any] = answer.json()
        return told

    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(post, bodies))


CASES = [
    (EMBED, {}),
    (EMBED, {"add_special_tokens": False}),
    (COMPLETE, {"max_tokens": 8, "temperature": 0}),
    (COMPLETE, {"max_tokens": 8, "temperature": 0, "return_token_ids": True}),
]


@pytest.mark.parametrize(("path", "more"), CASES, ids=str)
def test_each_answer_is_that_of_the_request_alone(target, together, path, more):
    bodies = bodies_of(target, path, more)
    alone = [target.post(path, body).json() for body in bodies]
    answered = together.metric("penstock_batches_total", outcome="answered")
    answers = at_once(together, path, bodies)
    assert together.metric("penstock_batches_total", outcome="answered") == answered + 1
    assert len({answer["id"] for answer in answers}) == len(answers)
    for mine, its in zip(answers, alone, strict=True):
        assert list(mine) == list(its)
        if path == EMBED:
            (vector,), (other,) = ([one.pop("embedding") for one in answer["data"]] for answer in (mine, its))
            # what else is in a server's batch moves the last bits of its sums
            assert vector == (pytest.approx(other, abs=1e-5) if target.real else other)
        for answer in (mine, its):
            del answer["id"], answer["created"]
        assert mine == its


def test_a_bad_request_is_told_so_alone(target, together):
    """A real server refuses what its model has no room for; the simulator has room."""
    bodies = bodies_of(target, EMBED, {})
    bodies[1]["input"] = "word " * 3000
    alone = [target.post(EMBED, body) for body in bodies]

    def post(body: dict[str, Any]) -> httpx.Response:
        return httpx.post(together.url + EMBED, json=body, timeout=60, trust_env=False)

    with ThreadPoolExecutor(len(bodies)) as pool:
        answers = list(pool.map(post, bodies))
    assert [one.status_code for one in answers] == [one.status for one in alone]
    assert [one.json().get("error") for one in answers] == [one.json().get("error") for one in alone]
    assert [one.status for one in alone] == [200, 400 if target.real else 200, 200, 200]


def test_throughput_with_and_without(target, capsys):
    if not target.real or not os.environ.get("PENSTOCK_TEST_VLLM_POOLING_URL"):
        pytest.skip("the bench asks the simulator")
    seconds = 5.0
    for window_ms, usage in ((0, "exact"), (10, "exact"), (10, "shared")):
        config = before(target, window_ms=window_ms, usage=usage)
        with gateway(config, env={KEY_ENV: target.backend_key}) as running:
            for work in WORKS:
                model = target.pooling if work.path == EMBED else target.model
                assert model is not None
                asyncio.run(ask(running.url, model, work, 1.0))
                found = asyncio.run(ask(running.url, model, work, seconds))
                assert found["bad"] == 0
                with capsys.disabled():
                    print(f"\n{work.name}, window {window_ms} ms, usage {usage}: {found}", end="")
