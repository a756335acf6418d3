"""A pool whose servers are real: from zero to an answer and back to zero, and put to sleep in between.

Run by `make test-vllm ARGS="-k pool -s"`, which prints how long each step took.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from ..support.gateway import Gateway, gateway
from ..support.procs import wait_until

pytestmark = pytest.mark.vllm

KEY = "POOL_SERVER_KEY"
MODEL = "tiny-llama"


def _config(tmp_path: Path, **terms: Any) -> dict[str, Any]:
    command = os.environ.get("PENSTOCK_TEST_VLLM_COMMAND")
    if command is None:
        pytest.skip("run by `make test-vllm`, which knows how to start a real vLLM")
    pool = {
        "provider": "process",
        "command": json.loads(command),
        "env": json.loads(os.environ["PENSTOCK_TEST_VLLM_ENVIRONMENT"]),
        "api_key_env": KEY,
        "ready_timeout_s": 300,
        "gpus": 0,
        **terms,
    }
    return {
        "models": {MODEL: {"pool": pool}},
        "cache": {"mode": "deterministic"},
        "pools": {"state": str(tmp_path / "state")},
    }


def _pool(gate: Gateway) -> dict[str, Any]:
    answer = httpx.get(f"{gate.admin_url}/gateway/pools", timeout=10, trust_env=False)
    pool: dict[str, Any] = answer.json()["pools"][0]
    return pool


def _ask(gate: Gateway, text: str) -> Any:
    client = OpenAI(base_url=f"{gate.url}/v1", api_key="any")
    return client.chat.completions.with_raw_response.create(
        model=MODEL, messages=[{"role": "user", "content": text}], temperature=0, max_tokens=8
    )


def test_a_real_server_starts_for_a_request_answers_and_goes(tmp_path):
    key = os.environ.get("PENSTOCK_TEST_VLLM_KEY", "")
    with gateway(_config(tmp_path, idle_timeout_s=3), env={KEY: key}) as gate:
        assert _pool(gate)["phase"] == "off"
        began = time.monotonic()
        first = _ask(gate, "hello")
        cold_s = time.monotonic() - began
        assert first.parse().choices[0].finish_reason == "length"
        assert first.headers["x-penstock-cache"] == "MISS"
        assert int(first.headers["x-penstock-wake-ms"]) > 0
        assert _ask(gate, "hello").headers["x-penstock-cache"] == "HIT-L1"
        began = time.monotonic()
        warm = _ask(gate, "good morning")
        warm_s = time.monotonic() - began
        assert "x-penstock-wake-ms" not in warm.headers
        began = time.monotonic()
        wait_until(lambda: _pool(gate)["phase"] == "off", 120, "the pool is off again")
        off_s = time.monotonic() - began
        assert _ask(gate, "hello").headers["x-penstock-cache"] == "HIT-L1"
        assert _pool(gate)["phase"] == "off"
    print(
        f"\nfrom zero to an answer {cold_s:.1f} s, warm {warm_s:.3f} s, off {off_s:.1f} s after the last answer"
    )
