"""Gateways whose models are behind containers or a webhook: what their tests configure alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .docker_engine import DockerDouble
from .gateway import Gateway, gateway
from .receiver import SECRET, Receiver

IMAGE = "vllm/vllm-openai:v1"
_TERMS: dict[str, Any] = {"ready_timeout_s": 20, "stop_timeout_s": 5, "idle_timeout_s": 100}


def in_containers(engine: DockerDouble, **terms: Any) -> dict[str, Any]:
    """The configuration of one model with a pool of containers."""
    settings = {
        "provider": "docker",
        "image": IMAGE,
        "command": ["--model", "{model}", "--port", "{port}"],
        "socket": str(engine.socket),
        "gpus": 0,
        **_TERMS,
        **terms,
    }
    return {"models": {"m": {"pool": settings}}}


@contextmanager
def by_webhook(urls: Sequence[str], heard: Receiver, **terms: Any) -> Iterator[Gateway]:
    """A gateway with one model, whose servers at `urls` are started and stopped by who hears the webhook."""
    settings = {
        "provider": "webhook",
        "url": heard.url,
        "secret_env": "HOOK_SECRET",
        "timeout_s": 2,
        **_TERMS,
        **terms,
    }
    config = {"models": {"m": {"pool": settings, "backends": [{"url": url} for url in urls]}}}
    with gateway(config, env={"HOOK_SECRET": SECRET}) as g:
        yield g
