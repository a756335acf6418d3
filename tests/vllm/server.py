"""Real vLLM servers for tests: one that generates text, one that embeds, both of the model that `model.py` makes.

Strategy: the servers run in the environment of `setup.py` with everything that could reach out switched off, at the
settings a small machine can bear: no compilation, a tiny cache, one thread each. 32-bit floats, because the kernels for
bfloat16 use instructions (AMX) that a virtual machine may promise and then not allow.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from ..support.procs import Proc, free_port, run
from .model import MAX_MODEL_LEN

API_KEY = "sk-vllm-0f4c1d"
START_TIMEOUT_S = 600.0

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    # the first request with log probabilities would wait for a compiler, a minute on a busy machine
    "TORCHDYNAMO_DISABLE": "1",
    # kept in the server's memory for ever, which a test can afford
    "VLLM_ENABLE_RESPONSES_API_STORE": "1",
}


@dataclass(frozen=True)
class Servers:
    """Base URLs of the two servers, the key both ask for; and what starts one more like the first, on `{port}`."""

    generating: str
    pooling: str
    command: list[str]
    environment: dict[str, str]
    key: str = API_KEY


def _argv(python: Path, model: Path, name: str, port: int | str, *more: str) -> list[str]:
    return [
        *(str(python.parent / "vllm"), "serve", str(model), "--served-model-name", name),
        *("--host", "127.0.0.1", "--port", str(port), "--api-key", API_KEY),
        *("--load-format", "dummy", "--dtype", "float32", "--enforce-eager", "--seed", "0"),
        *("--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", "8"),
        *more,
    ]


@contextmanager
def servers(python: Path, folder: Path) -> Iterator[Servers]:
    """Makes the model in `folder` and runs both servers until the end. Raises WaitFailed with a server's last words."""
    model = folder / "tiny-llama"
    status, output = run([str(python), str(Path(__file__).with_name("model.py")), str(model)], timeout_s=300)
    if status:
        raise RuntimeError(f"the model could not be made: {output[-2000:]}")
    ports = free_port(), free_port()
    environment = {**_ENVIRONMENT, "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    # the arguments of a tool call follow its schema whatever the request says: random weights would never end one
    tools = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--tool-strict-level", "parameter")
    commands = (
        _argv(python, model, "tiny-llama", ports[0], *tools),
        _argv(python, model, "tiny-embedder", ports[1], "--runner", "pooling", "--convert", "embed"),
    )
    with ExitStack() as stack:
        # one after the other: each wants all of a small machine while it starts
        for port, command in zip(ports, commands, strict=True):
            stack.enter_context(_server(command, port, environment))
        urls = (f"http://127.0.0.1:{port}" for port in ports)
        yield Servers(*urls, _argv(python, model, "tiny-llama", "{port}"), environment)


def _server(argv: list[str], port: int, environment: dict[str, str]) -> Proc:
    def healthy() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5, trust_env=False).is_success
        except httpx.TransportError:
            return False

    return Proc(argv, name="vllm", ready=healthy, env=environment, timeout_s=START_TIMEOUT_S, grace_s=30)
