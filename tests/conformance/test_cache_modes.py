"""What the cache promises clients, through the real SDKs, two workers and a simulator: the same in every mode."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from anthropic import Anthropic
from openai import AsyncOpenAI, OpenAI

from ..support.gateway import Gateway, gateway
from ..support.lines import Line, ask, calls, line_to
from ..support.procs import wait_until
from ..support.sim import Simulator, simulator
from .bodies import GENERATING, TOOL_CHOICE, TOOLS

MODES = ("deterministic", "all", "opt_in")
SAMPLED: dict[str, Any] = {"temperature": 0.7}

#: What a request must have to be cached in a mode: fields of the body.
NEEDED: dict[str, dict[str, Any]] = {
    "deterministic": {"temperature": 0},
    "all": SAMPLED,
    "opt_in": {**SAMPLED, "cache": {"use-cache": True}},
}


@pytest.fixture(scope="module")
def sim(simulated: None) -> Iterator[Simulator]:
    with simulator(reasoning=True) as running:
        yield running


@pytest.fixture(scope="module")
def node(sim: Simulator) -> Iterator[Gateway]:
    """Two workers; a model for each mode, named after it, and one that follows `cache.mode`."""
    backends = [{"url": sim.url}]
    models = {mode: {"backends": backends, "cache": {"mode": mode}} for mode in (*MODES, "off")}
    config = {
        "workers": {"count": 2},
        "cache": {"mode": "deterministic", "l1": {"size": "32MiB"}},
        "health": {"interval_s": 0.2, "timeout_s": 2, "fall": 2, "rise": 1},
        "models": {**models, "plain": {"backends": backends}},
    }
    with gateway(config, ready="/ready") as running:
        yield running


@pytest.fixture(scope="module")
def lines(node: Gateway) -> Iterator[list[Line]]:
    """A connection to each worker."""
    pids = node.worker_pids()
    opened = [line_to(node.port, pid, pids) for pid in pids]
    yield opened
    for line in opened:
        line.socket.close()


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def sdk(node: Gateway) -> OpenAI:
    return OpenAI(base_url=f"{node.url}/v1", api_key="sk-x", max_retries=0, timeout=60)


def body(mode: str, path: str, words: str, **more: Any) -> dict[str, Any]:
    """A request to an endpoint that generates, cacheable in this mode."""
    asked: dict[str, Any] = {**GENERATING[path](mode), **NEEDED[mode], "x_words": words, **more}
    if path == "/v1/responses":
        asked["max_output_tokens"] = 4096  # an incomplete one is not kept
    return asked


# ---- every worker, every endpoint, every mode


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", GENERATING)
def test_what_one_worker_stored_every_worker_gives_again_byte_for_byte(
    lines: list[Line], sim: Simulator, mode: str, path: str, stream: bool
) -> None:
    asked = body(mode, path, "every worker", stream=stream)
    before = calls(sim)
    first = lines[0].ask(asked, path, {"x-request-id": "first"})
    assert (first.status, first.cache) == (200, "MISS")
    assert first.header("x-penstock-backend")
    for i, line in enumerate((lines[1], lines[0], lines[1])):
        hit = line.ask(asked, path, {"x-request-id": f"again-{i}"})
        assert (hit.status, hit.cache, hit.body == first.body) == (200, "HIT-L1", True)
        assert hit.header("content-type") == first.header("content-type")
        assert hit.header("x-request-id") == f"again-{i}"
        assert int(hit.header("age") or -1) >= 0
        assert hit.header("x-penstock-backend") is None
        assert hit.header("x-penstock-attempts") is None
        assert hit.header("x-penstock-cache-reason") is None
        if stream:  # the simulator sends a chunk for each event
            assert [c.count(b"\n\n") for c in hit.chunks] == [1] * first.body.count(b"\n\n")
            assert all(c.endswith(b"\n\n") for c in hit.chunks)
    assert calls(sim) == before + 1


def test_many_connections_at_once_get_the_same_hit(node: Gateway, sim: Simulator, mode: str) -> None:
    asked = body(mode, "/v1/chat/completions", "many")
    wish = {name: asked.pop(name) for name in ("cache", "x_words") if name in asked}
    before = calls(sim)

    async def main() -> list[tuple[str, str]]:
        async with AsyncOpenAI(base_url=f"{node.url}/v1", api_key="x", max_retries=0) as client:

            async def one() -> tuple[str, str]:
                raw = await client.chat.completions.with_raw_response.create(**asked, extra_body=wish)
                return raw.headers["x-penstock-cache"], raw.text

            await one()
            return await asyncio.gather(*(one() for _ in range(24)))

    answers = asyncio.run(main())
    assert {outcome for outcome, _ in answers} == {"HIT-L1"}
    assert len({text for _, text in answers}) == 1
    assert calls(sim) == before + 1


# ---- what SDKs make of it


def test_a_streamed_chat_with_reasoning_and_usage_is_the_same_again(node: Gateway, mode: str) -> None:
    asked = body(mode, "/v1/chat/completions", "reasoning", max_tokens=40, stream=True)
    wish = {name: asked.pop(name) for name in ("cache", "x_words") if name in asked}
    seen = []
    for outcome in ("MISS", "HIT-L1"):
        stream = sdk(node).chat.completions.create(
            **asked, stream_options={"include_usage": True}, extra_body=wish
        )
        assert stream.response.headers["x-penstock-cache"] == outcome
        parts = [part.model_dump() for part in stream]
        deltas = [c["delta"] for part in parts for c in part["choices"]]
        assert "".join(d.get("reasoning_content") or "" for d in deltas)
        assert "".join(d.get("content") or "" for d in deltas)
        assert parts[-1]["usage"]["completion_tokens"] > 0
        seen.append(parts)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call_is_the_same_again(node: Gateway, mode: str, stream: bool) -> None:
    asked = body(mode, "/v1/chat/completions", "tools", max_tokens=256, stream=stream)
    wish = {name: asked.pop(name) for name in ("cache", "x_words") if name in asked}
    seen = []
    for outcome in ("MISS", "HIT-L1"):
        with sdk(node).chat.completions.with_streaming_response.create(
            **asked, tools=TOOLS, tool_choice=TOOL_CHOICE, extra_body=wish
        ) as raw:
            assert raw.headers["x-penstock-cache"] == outcome
            parsed = raw.parse()
            parts = [part.model_dump() for part in parsed] if stream else [parsed.model_dump()]
        names = [
            call["function"]["name"]
            for part in parts
            for choice in part["choices"]
            for call in (choice.get("delta") or choice.get("message"))["tool_calls"] or []
            if call["function"]["name"]
        ]
        assert names == ["get_weather"]
        seen.append(parts)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("stream", [False, True])
def test_a_message_is_the_same_again_to_the_anthropic_sdk(node: Gateway, mode: str, stream: bool) -> None:
    asked = body(mode, "/v1/messages", "anthropic", stream=stream)
    wish = {name: asked.pop(name) for name in ("cache", "x_words", "temperature") if name in asked}
    client = Anthropic(base_url=node.url, auth_token="x", max_retries=0)
    seen: list[Any] = []
    for outcome in ("MISS", "HIT-L1"):
        with client.messages.with_streaming_response.create(**asked, extra_body=wish) as raw:
            assert raw.headers["x-penstock-cache"] == outcome
            parsed: Any = raw.parse()
            seen.append([event.model_dump() for event in parsed] if stream else parsed.model_dump())
    assert seen[0] == seen[1]
    assert seen[0]


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_is_the_same_again(node: Gateway, mode: str, stream: bool) -> None:
    asked = body(mode, "/v1/responses", "response", stream=stream)
    wish = {name: asked.pop(name) for name in ("cache", "x_words") if name in asked}
    seen: list[Any] = []
    for outcome in ("MISS", "HIT-L1"):
        with sdk(node).responses.with_streaming_response.create(**asked, extra_body=wish) as raw:
            assert raw.headers["x-penstock-cache"] == outcome
            parsed: Any = raw.parse()
            seen.append([event.model_dump() for event in parsed] if stream else parsed.model_dump())
    assert seen[0] == seen[1]
    assert seen[0]


def test_embeddings_are_the_same_again(node: Gateway, mode: str) -> None:
    wish = {"cache": {"use-cache": True}} if mode == "opt_in" else {}
    seen = []
    for outcome in ("MISS", "HIT-L1"):
        raw = sdk(node).embeddings.with_raw_response.create(
            model=mode, input=["a tower", "a dam"], extra_body=wish
        )
        assert raw.headers["x-penstock-cache"] == outcome
        seen.append(raw.parse().model_dump())
    assert seen[0] == seen[1]


# ---- what the modes leave alone


LEFT_ALONE = {"deterministic": "nondeterministic", "opt_in": "not_opted_in", "off": "off"}


@pytest.mark.parametrize("model", LEFT_ALONE)
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_its_mode_leaves_alone_reaches_the_backend_each_time(
    node: Gateway, sim: Simulator, model: str, stream: bool
) -> None:
    asked = {**GENERATING["/v1/chat/completions"](model), **SAMPLED, "stream": stream}
    before = calls(sim)
    counted = node.metric("penstock_cache_bypasses_total", model=model)
    for _ in range(3):
        answer = ask(node.port, asked)
        assert (answer.status, answer.cache, answer.reason) == (200, "BYPASS", LEFT_ALONE[model])
    assert calls(sim) == before + 3
    assert node.metric("penstock_cache_bypasses_total", model=model) == counted + 3


def test_a_model_that_says_nothing_follows_the_node(node: Gateway) -> None:
    asked = GENERATING["/v1/chat/completions"]("plain")
    assert [ask(node.port, asked).cache for _ in range(2)] == ["MISS", "HIT-L1"]
    assert ask(node.port, {**asked, **SAMPLED}).reason == "nondeterministic"
    assert ask(node.port, {**asked, **SAMPLED, "seed": 7}).cache == "MISS"


# ---- every backend stopped; last, for the simulator is stopped and started


def test_hits_answer_while_every_backend_is_stopped(node: Gateway, sim: Simulator) -> None:
    client, paths = sdk(node), dict(GENERATING)
    known = {
        (mode, path, stream): ask(node.port, body(mode, path, "stopped", stream=stream), path).body
        for mode in MODES
        for path in paths
        for stream in (False, True)
    }
    chat = body("all", "/v1/chat/completions", "stopped")
    words = {"x_words": chat.pop("x_words")}
    true = client.chat.completions.create(**chat, extra_body=words)
    sim.proc.stop()
    try:
        wait_until(lambda: not node.is_up("/ready"), what="nothing can be served")
        for round_ in range(3):
            for (mode, path, stream), said in known.items():
                hit = ask(node.port, body(mode, path, "stopped", stream=stream), path)
                assert (hit.status, hit.cache, hit.body == said) == (200, "HIT-L1", True), (path, round_)
        again = client.chat.completions.create(**chat, extra_body=words)
        assert again == true
        parts = list(client.chat.completions.create(**{**chat, "stream": True}, extra_body=words))
        text = "".join(c.delta.content or "" for part in parts for c in part.choices)
        assert text == true.choices[0].message.content
        with pytest.raises(openai.InternalServerError) as refused:
            client.chat.completions.create(**{**chat, "seed": 5}, extra_body=words)
        assert refused.value.status_code == 503
    finally:
        sim.proc.start()
        node.wait_up("/ready")
