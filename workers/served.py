"""What the servers of a model were told to serve, as far as the configuration says it: for people and old clients.

Pure. Of a command the options of `vllm serve` are read (https://docs.vllm.ai/en/latest/cli/serve.html), in both of
their spellings; of a pool that is made from a `VLLMModel` the configuration knows the object's name alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..gateway.config import DockerPool, KubernetesPool, Model, ProcessPool


@dataclass(frozen=True, slots=True)
class Served:
    """model: the weights' name. max_model_len: tokens, 0 where nobody says. The parsers: "" where there is none."""

    model: str
    max_model_len: int = 0
    tool_call_parser: str = ""
    reasoning_parser: str = ""


def served(name: str, model: Model) -> Served:
    """What a model of the configuration stands for."""
    pool = model.pool
    argv: Sequence[str] = ()
    if isinstance(pool, ProcessPool | DockerPool):
        argv = [word.replace("{model}", name) for word in pool.command]
    weights = option(argv, "--model") or _positional(argv)
    if isinstance(pool, KubernetesPool) and pool.vllm_model:
        weights = pool.vllm_model
    length = option(argv, "--max-model-len") or ""
    return Served(
        weights or name,
        model.max_model_len
        or (int(length) if length.isascii() and length.isdigit() and len(length) < 12 else 0),
        option(argv, "--tool-call-parser") or "",
        option(argv, "--reasoning-parser") or "",
    )


def option(argv: Sequence[str], name: str) -> str | None:
    """The value of an option, `--name value` or `--name=value`, the last one counts; None where it is not given."""
    found = None
    for at, word in enumerate(argv):
        if word == name and at + 1 < len(argv):
            found = argv[at + 1]
        elif word.startswith(f"{name}="):
            found = word[len(name) + 1 :]
    return found


def _positional(argv: Sequence[str]) -> str | None:
    """What follows `serve`."""
    after = argv[argv.index("serve") + 1 :] if "serve" in argv else ()
    return after[0] if after and not after[0].startswith("-") else None
