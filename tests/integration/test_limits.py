"""Limits over the whole gateway: what clients are told, and what each kind of answer costs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.integration.test_keys import create
from tests.support.gateway import Gateway, gateway, one_model
from tests.support.procs import wait_until
from tests.support.sim import Simulator, simulator

MESSAGES = [{"role": "user", "content": "hello there " * 20}]


@pytest.fixture(scope="module")
def server() -> Iterator[Simulator]:
    with simulator(model="m", decode_ms=5) as one:
        yield one


@pytest.fixture(scope="module")
def gate(server: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder: Path = tmp_path_factory.mktemp("limits")
    config = one_model(server.url) | {
        "keys": {"file": str(folder / "keys.yaml")},
        "workers": {"count": 2},
        "cache": {"mode": "deterministic", "l1": {"size": "32MiB"}},
    }
    with gateway(config) as made:
        yield made


def client(gate: Gateway, *words: str) -> httpx.Client:
    """With a new key of these limits; usable as soon as the workers know it."""
    _, secret = create(gate.file, *words)
    headers = {"authorization": f"Bearer {secret}"}
    made = httpx.Client(base_url=gate.url, headers=headers, timeout=30, trust_env=False)
    # each worker has the key when it lists models for it
    wait_until(
        lambda: all(
            httpx.get(f"{gate.url}/v1/models", headers=headers, trust_env=False).is_success for _ in range(8)
        ),
        20,
        "the key is known",
    )
    return made


def left(answer: httpx.Response, what: str) -> int:
    return int(answer.headers[f"x-ratelimit-remaining-{what}"])


def test_over_the_limit_a_client_is_told_when_to_come_again(gate: Gateway) -> None:
    with client(gate, "--rpm", "2", "--burst", "2") as asking:
        body = {"model": "m", "messages": MESSAGES, "max_tokens": 2}
        answers = [asking.post("/v1/chat/completions", json=body) for _ in range(3)]
    assert [a.status_code for a in answers] == [200, 200, 429]
    assert [left(a, "requests") for a in answers] == [1, 0, 0]
    assert {a.headers["x-ratelimit-limit-requests"] for a in answers} == {"2"}
    assert "x-ratelimit-limit-tokens" not in answers[0].headers
    refused = answers[2]
    error = refused.json()["error"]
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    assert error["message"].startswith("Rate limit reached for requests per minute (RPM): Limit 2.")
    assert 25_000 < int(refused.headers["retry-after-ms"]) <= 30_000
    assert int(refused.headers["retry-after"]) * 1000 >= int(refused.headers["retry-after-ms"])
    assert gate.metric("penstock_limited_total", limit="requests") >= 1


def test_a_request_about_a_stored_response_is_one_as_well(gate: Gateway, server: Simulator) -> None:
    with client(gate, "--rpm", "2", "--burst", "2", "--concurrent", "1") as asking:
        before = server.stats()["requests"]
        answers = [asking.get(f"/v1/responses/resp_{n}") for n in range(4)]
    assert [a.status_code for a in answers] == [404, 404, 429, 429]
    assert [left(a, "requests") for a in answers] == [1, 0, 0, 0]
    assert server.stats()["requests"] == before + 2


def test_hits_cost_a_request_and_no_tokens(gate: Gateway) -> None:
    with client(gate, "--rpm", "60", "--burst", "10", "--tpm", "1") as asking:
        body = {"model": "m", "messages": MESSAGES, "max_tokens": 2, "seed": 7}
        answers = [asking.post("/v1/chat/completions", json=body) for _ in range(3)]
        # one token a minute: what was spent is owed for long
        other = asking.post("/v1/chat/completions", json={**body, "seed": 8})
    assert [a.status_code for a in answers] == [200, 200, 200]
    assert [a.headers["x-penstock-cache"] for a in answers] == ["MISS", "HIT-L1", "HIT-L1"]
    assert [left(a, "requests") for a in answers] == [9, 8, 7]
    assert other.status_code == 429
    assert "TPM" in other.json()["error"]["message"]
    assert int(other.headers["retry-after"]) > 60


def test_a_path_that_names_no_model_costs_nothing(gate: Gateway) -> None:
    with client(gate, "--rpm", "1") as asking:
        body = {"model": "unknown", "messages": MESSAGES}
        assert [asking.post("/v1/chat/completions", json=body).status_code for _ in range(3)] == [404] * 3
        assert asking.get("/v1/models").status_code == 200
        answer = asking.post("/v1/chat/completions", json={**body, "model": "m", "max_tokens": 1})
        assert answer.status_code == 200


KINDS: list[tuple[str, str, dict[str, Any]]] = [
    ("chat", "/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 5}),
    ("completions", "/v1/completions", {"prompt": "hello " * 20, "max_tokens": 5}),
    ("messages", "/v1/messages", {"messages": MESSAGES, "max_tokens": 5}),
    ("responses", "/v1/responses", {"input": "hello " * 20, "max_output_tokens": 5, "store": False}),
    ("embeddings", "/v1/embeddings", {"input": "hello " * 20}),
    (
        "chat stream",
        "/v1/chat/completions",
        {"messages": MESSAGES, "max_tokens": 5, "stream": True, "stream_options": {"include_usage": True}},
    ),
    (
        "completions stream",
        "/v1/completions",
        {"prompt": "hi " * 20, "max_tokens": 5, "stream": True, "stream_options": {"include_usage": True}},
    ),
    ("messages stream", "/v1/messages", {"messages": MESSAGES, "max_tokens": 5, "stream": True}),
    (
        "responses stream",
        "/v1/responses",
        {"input": "hello " * 20, "max_output_tokens": 5, "stream": True, "store": False},
    ),
]


def reset_s(answer: httpx.Response) -> float:
    """The field of tokens, in seconds."""
    text = answer.headers["x-ratelimit-reset-tokens"]
    minutes, _, rest = text.rpartition("m") if not text.endswith("ms") else ("", "", text)
    seconds = float(rest.removesuffix("ms")) / 1000 if rest.endswith("ms") else float(rest.removesuffix("s"))
    return 60 * int(minutes or 0) + seconds


@pytest.mark.parametrize(("path", "body"), [k[1:] for k in KINDS], ids=[k[0] for k in KINDS])
def test_tokens_settle_to_what_an_answer_says_it_used(gate: Gateway, path: str, body: dict[str, Any]) -> None:
    """At one token a minute the debt is the usage, in minutes; a refusal shows it."""
    with client(gate, "--tpm", "1") as asking:
        answer = asking.post(path, json={"model": "m", **body})
        assert answer.status_code == 200
        used = usage_of(answer)
        assert used > 5
        owed: list[float] = []

        def settled() -> bool:
            refused = asking.post(path, json={"model": "m", **body}, headers={"cache-control": "no-cache"})
            assert refused.status_code == 429
            owed.append(reset_s(refused) / 60)
            return used - 0.5 < owed[-1] <= used

        wait_until(settled, 10, f"{used} minutes are owed, last seen {owed}")


def usage_of(answer: httpx.Response) -> int:
    """By another way than the gateway's: all JSON is decoded."""
    if answer.headers["content-type"].startswith("application/json"):
        told = [answer.json()]
    else:
        lines = [line[5:] for line in answer.text.splitlines() if line.startswith("data:")]
        told = [json.loads(line) for line in lines if line.strip() != "[DONE]"]
    inputs = outputs = 0
    for one in told:
        usage = (
            one.get("usage") or one.get("response", {}).get("usage") or one.get("message", {}).get("usage")
        )
        if usage:
            inputs = max(inputs, usage.get("prompt_tokens", 0), usage.get("input_tokens", 0))
            outputs = max(outputs, usage.get("completion_tokens", 0), usage.get("output_tokens", 0))
    return inputs + outputs


def test_the_sdk_waits_as_told_and_succeeds(gate: Gateway) -> None:
    with client(gate, "--rpm", "120") as asking:
        secret = asking.headers["authorization"].removeprefix("Bearer ")
    kept = openai.OpenAI(api_key=secret, base_url=f"{gate.url}/v1", max_retries=0)
    again = kept.with_options(max_retries=3)
    told: dict[str, Any] = {"model": "m", "messages": MESSAGES, "max_tokens": 1}
    kept.chat.completions.create(**told, seed=1)
    with pytest.raises(openai.RateLimitError) as refused:
        kept.chat.completions.create(**told, seed=2)
    assert refused.value.code == "rate_limit_exceeded"
    assert again.chat.completions.create(**told, seed=3).choices


def test_so_many_at_a_time_and_no_more(gate: Gateway) -> None:
    with client(gate, "--concurrent", "1") as asking:
        body = {"model": "m", "messages": MESSAGES, "max_tokens": 400, "stream": True}
        with asking.stream("POST", "/v1/chat/completions", json=body) as running:
            assert running.status_code == 200
            refused = asking.post("/v1/chat/completions", json={**body, "seed": 1})
            assert refused.status_code == 429
            assert "at a time" in refused.json()["error"]["message"]
        wait_until(
            lambda: asking.post("/v1/embeddings", json={"model": "m", "input": "x"}).status_code == 200,
            20,
            "the place has come back",
        )
