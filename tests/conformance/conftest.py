"""The targets of the suite: a gateway before the simulator, or before a real vLLM where one is named.

Read from the environment:

    PENSTOCK_TEST_VLLM_URL          a running vLLM that generates text; the suite then runs before it
    PENSTOCK_TEST_VLLM_POOLING_URL  another one with a pooling model (embeddings, score, rerank), optional
    PENSTOCK_TEST_VLLM_KEY          the API key of both
    PENSTOCK_TEST_DIRECT            set: no gateway between, which tells the backend's faults from the gateway's

Tests marked `protocols` run once with each protocol named, spoken between the gateway and its backend. For HTTP/2 an
nghttpx stands between the gateway and the tap, so what passed can still be compared.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from ..support.gateway import Gateway, gateway
from ..support.nghttpx import nghttpx
from ..support.procs import free_port
from ..support.sim import Simulator, simulator
from .tap import tap
from .target import Target

BACKEND_KEY = "sk-backend-0f4c1d"
CLIENT_KEY = "sk-client-77aa01"
KEY_ENV = "PENSTOCK_CONFORMANCE_BACKEND_KEY"
ALIAS = "gpt-4o-mini"
ANTHROPIC_ALIAS = "claude-local"
DEAD = "dead-model"
SLASHED = "org/Slashed-7B"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    mark = metafunc.definition.get_closest_marker("protocols")
    protocols = mark.args if mark else ("http1",)
    if any(os.environ.get(f"PENSTOCK_TEST_{name}") for name in ("VLLM_URL", "DIRECT")):
        protocols = tuple(protocol for protocol in protocols if protocol == "http1")
    for name in ("target", "faulty_target"):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, protocols, indirect=True, scope="session")


def _spoken(stack: ExitStack, url: str, protocol: str, **settings: str) -> dict[str, str]:
    """The backend at `url` as the gateway is told of it, with what makes it speak `protocol`."""
    if protocol == "http2":
        url = stack.enter_context(nghttpx(url))
    return {"url": url, "protocol": protocol, **settings}


def _served(url: str, key: str) -> str:
    """The name of the one model that a vLLM serves."""
    answer = httpx.get(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"}, trust_env=False)
    answer.raise_for_status()
    name: str = answer.json()["data"][0]["id"]
    return name


@pytest.fixture(scope="session")
def real() -> str | None:
    """The URL of the real vLLM that this run is for, if any."""
    return os.environ.get("PENSTOCK_TEST_VLLM_URL", "").rstrip("/") or None


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest, real: str | None) -> Iterator[Target]:
    """The server under test; the parameter is the protocol that it speaks to its backend."""
    with ExitStack() as stack:
        key = os.environ.get("PENSTOCK_TEST_VLLM_KEY", BACKEND_KEY) if real else BACKEND_KEY
        pooling_url = os.environ.get("PENSTOCK_TEST_VLLM_POOLING_URL", "").rstrip("/") if real else None
        if real:
            model, pooling = _served(real, key), _served(pooling_url, key) if pooling_url else None
            before = real
        else:
            model, pooling = "sim-model", "sim-pooling"
            before = stack.enter_context(
                simulator(api_key=key, model=[model, pooling], no_any_model=True)
            ).url
        front = stack.enter_context(tap(before))
        side = stack.enter_context(tap(pooling_url)) if pooling_url else front
        if os.environ.get("PENSTOCK_TEST_DIRECT"):
            yield Target(front.url, model, model, pooling, key, front, side, bool(real), backend_key=key)
            return
        nobody = {"url": f"http://127.0.0.1:{free_port()}"}
        backend = _spoken(stack, front.url, request.param, api_key_env=KEY_ENV)
        models = {
            model: {"aliases": [ALIAS, ANTHROPIC_ALIAS], "backends": [backend]},
            DEAD: {"backends": [nobody], "max_model_len": 4096},
            SLASHED: {"backends": [nobody], "aliases": ["slashed"]},
        }
        if pooling:
            models[pooling] = {"backends": [{**backend, "url": side.url} if pooling_url else backend]}
        config = {"models": models, "workers": {"count": 2}, "log": {"level": "DEBUG"}}
        running = stack.enter_context(gateway(config, env={KEY_ENV: key}))
        yield Target(
            url=running.url,
            model=model,
            alias=ALIAS,
            pooling=pooling,
            key=CLIENT_KEY,
            tap=front,
            pooling_tap=side,
            real=bool(real),
            gateway=running,
            backend_key=key,
            names=tuple(models),
            backend=backend["url"],
        )


@pytest.fixture(scope="session")
def guarded(target: Target) -> Gateway:
    """The gateway in front of the backend; tests of what the gateway adds ask for it."""
    if target.gateway is None:
        pytest.skip("the backend is asked directly: there is no gateway")
    return target.gateway


@pytest.fixture(scope="session")
def generated(target: Target) -> Target:
    """The target, where its backend is the simulator, whose texts are made to be looked at."""
    if target.real:
        pytest.skip("a model of random weights says nothing that could be checked")
    return target


@pytest.fixture(scope="session")
def simulated(real: str | None) -> None:
    """Asked for by what sets up its own backends: once, with the simulator, is enough."""
    if real or os.environ.get("PENSTOCK_TEST_DIRECT"):
        pytest.skip("sets up its own backends; runs with the simulator")


@pytest.fixture(scope="session")
def faulty(simulated: None) -> Iterator[Simulator]:
    """A simulator whose faults may be switched."""
    with simulator() as running:
        yield running


@pytest.fixture(scope="session")
def faulty_target(request: pytest.FixtureRequest, faulty: Simulator) -> Iterator[Target]:
    """A gateway with short deadlines before it; the parameter as for `target`."""
    with ExitStack() as stack:
        front = stack.enter_context(tap(faulty.url))
        model = {
            "backends": [_spoken(stack, front.url, request.param)],
            "timeouts": {"first_byte_s": 20, "between_chunks_s": 1.0, "connect_s": 5, "total_s": 0},
        }
        running = stack.enter_context(gateway({"models": {"sim-model": model}, "health": {"fall": 100}}))
        yield Target(
            url=running.url,
            model="sim-model",
            alias="sim-model",
            pooling="sim-model",
            key=CLIENT_KEY,
            tap=front,
            pooling_tap=front,
            real=False,
            gateway=running,
        )
