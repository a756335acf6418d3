"""A gateway whose models are processes that sleep: what is configured, asked, and looked at in tests."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import httpx

from .gateway import Gateway, with_environment
from .procs import command_line, console_script, is_running, wait_until

PENSTOCK = console_script()


def simulator(*options: str) -> list[str]:
    """The command of a pool whose servers are simulators."""
    return [PENSTOCK, "sim", "--host", "127.0.0.1", "--port", "{port}", "--model", "{model}", *options]


def lingering(*options: str, linger_s: float = 2.0) -> list[str]:
    """The same, whose first process ends so long after it was told to."""
    inner = " ".join(simulator(*options))
    return ["/bin/sh", "-c", f"trap '' TERM; {inner} & wait; exec sleep {linger_s}"]


def pooled(
    command: list[str] | None = None, *, name: str = "m", settings: dict[str, Any] | None = None, **terms: Any
) -> dict[str, Any]:
    """The configuration of one model with a pool of processes."""
    pool = {
        "provider": "process",
        "command": command or simulator(),
        "gpus": 0,
        "ready_timeout_s": 20,
        "stop_timeout_s": 5,
        "idle_timeout_s": 100,
        **terms,
    }
    return {"models": {name: {"pool": pool, **(settings or {})}}}


def chat(model: str = "m", *, tokens: int = 3, stream: bool = False) -> dict[str, Any]:
    """The body of a request."""
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": tokens}
    return {**body, "stream": True} if stream else body


def ask(gateway: Gateway, model: str = "m", *, tokens: int = 3, timeout_s: float = 40.0) -> httpx.Response:
    """One request, to its end."""
    url = f"{gateway.url}/v1/chat/completions"
    return httpx.post(url, json=chat(model, tokens=tokens), timeout=timeout_s, trust_env=False)


def pool(gateway: Gateway, model: str = "m") -> dict[str, Any]:
    """What a pool is doing, as the admin port says; empty while it says nothing."""
    try:
        answer = httpx.get(f"{gateway.admin_url}/gateway/pools", timeout=5, trust_env=False)
    except httpx.TransportError:
        return {}
    return next((one for one in answer.json().get("pools", []) if one["model"] == model), {})


def tell(gateway: Gateway, verb: str, model: str = "m") -> None:
    """Wake or stop a pool, as an operator does."""
    url = f"{gateway.admin_url}/gateway/pools/{verb}"
    httpx.post(url, json={"model": model}, timeout=5, trust_env=False).raise_for_status()


def wait_phase(gateway: Gateway, phase: str, model: str = "m", timeout_s: float = 30.0) -> None:
    """Until the pool is in this phase."""
    wait_until(lambda: pool(gateway, model).get("phase") == phase, timeout_s, f"{model} is {phase}")


def phases(gateway: Gateway, model: str = "m") -> list[str]:
    """The phases that the pool came into, as the log tells."""
    return re.findall(rf"pool_phase pool={re.escape(model)} from=\S+ to=(\S+)", gateway.log())


def records(gateway: Gateway) -> list[dict[str, Any]]:
    """What the state folder says of processes."""
    found = []
    for path in sorted(Path(gateway.file.parent / "state").glob("penstock/*/processes/*.json")):
        try:
            found.append(json.loads(path.read_bytes()))
        except (OSError, ValueError):
            continue
    return found


def servers(gateway: Gateway) -> list[int]:
    """The processes of pools that run, by what is in their environment."""
    own = with_environment("XDG_STATE_HOME", str(gateway.file.parent / "state"))
    return [
        pid for pid in own if any(word in command_line(pid) for word in ("penstock sim", "sleep", "launcher"))
    ]


def kill_controller(gateway: Gateway, number: signal.Signals = signal.SIGKILL) -> int:
    """Kill the controller; the pid of its successor, when there is one."""
    before = gateway.controller_pid()
    assert before is not None
    os.kill(before, number)
    after = wait_until(lambda: [p for p in [gateway.controller_pid()] if p not in (None, before)])[0]
    assert after is not None
    return after


def gone(*pids: int) -> None:
    """Until these processes run no more."""
    wait_until(lambda: not any(map(is_running, pids)), what=f"{pids} have ended")
