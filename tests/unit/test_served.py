"""What old clients are told of a model, and what of the configuration is not shown."""

import msgspec
import pytest

from penstock.gateway.config import load
from penstock.workers.in_force import in_force
from penstock.workers.served import Served, served


def model(pool: str):
    return load(f"models: {{m: {{pool: {pool}}}}}", {"S": "x"}).models["m"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("[vllm, serve, org/weights, --max-model-len, '4096', '{port}']", Served("org/weights", 4096)),
        ("[vllm, serve, --model=org/weights, --port, '{port}']", Served("org/weights")),
        (
            "[vllm, serve, org/w, --tool-call-parser=hermes, --reasoning-parser, qwen3, '{port}']",
            Served("org/w", 0, "hermes", "qwen3"),
        ),
        ("[vllm, serve, org/w, --max-model-len, 32k, '{port}']", Served("org/w")),
        ("[python, server.py, '{port}']", Served("m")),
        ("[vllm, --port, '{port}', serve]", Served("m")),
        ("[vllm, serve, '/srv/{model}', --port, '{port}']", Served("/srv/m")),
    ],
)
def test_a_command_says_what_is_served(command, said):
    assert served("m", model(f"{{provider: process, command: {command}}}")) == said


def test_a_model_without_a_pool_is_its_own_name():
    config = load("models: {m: {backends: [{url: 'http://a:1'}], max_model_len: 7}}", {})
    assert served("m", config.models["m"]) == Served("m", 7)


def test_nothing_that_may_be_a_secret_is_shown():
    config = load(
        """
models:
  p:
    pool: {provider: process, env: {HF_TOKEN: hf-1234}, command: [vllm, --api-key, sk-1, --hf-token=sk-2, -x, '{port}']}
  w:
    backends: [{url: "http://10.0.0.1:8000"}]
    pool: {provider: webhook, secret_env: S, url: "https://user-hook.example:8443/services/T0/sk-3"}
""",
        {"S": "sk-4"},
    )
    shown = in_force(config)
    assert b"sk-" not in msgspec.json.encode(shown)
    assert b"hf-1234" not in msgspec.json.encode(shown)
    assert shown["models"]["p"]["pool"]["command"] == [
        "vllm",
        "--api-key",
        "***",
        "--hf-token=***",
        "-x",
        "{port}",
    ]
    assert shown["models"]["p"]["pool"]["env"] == {"HF_TOKEN": "***"}
    assert shown["models"]["w"]["pool"]["url"] == "https://user-hook.example:8443/***"
    assert shown["models"]["p"]["pool"]["provider"] == "process"
