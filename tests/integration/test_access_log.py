"""The access log: what a line says of a request, what it never says, and that no trouble with it reaches a client."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ..support.dataplane import DataPlane, data_plane, published
from ..support.gateway import Gateway, gateway
from ..support.procs import free_port, wait_until
from ..support.sim import Simulator, simulator
from .test_keys import create

WORDS = "words-of-the-prompt"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with simulator() as running:
        yield running


def config(sim: Simulator, path: Any, **access: Any) -> dict[str, Any]:
    return {
        "cache": {"mode": "deterministic"},
        "log": {"access": {"path": str(path), **access}},
        "models": {
            "m": {"aliases": ["alias"], "backends": [{"url": sim.url}]},
            "gone": {"backends": [{"url": f"http://127.0.0.1:{free_port()}"}]},
        },
    }


def ask(url: str, headers: Any = None, **told: Any) -> httpx.Response:
    body = {"model": "m", "max_tokens": 3, "messages": [{"role": "user", "content": WORDS}], **told}
    return httpx.post(
        f"{url}/v1/chat/completions?token=of-the-query",
        json=body,
        headers=headers,
        timeout=30,
        trust_env=False,
        verify=False,  # no authorities to load: it is quicker
    )


def of(plane: DataPlane) -> str:
    return f"http://127.0.0.1:{plane.port}"


def lines(path: Path, count: int) -> list[dict[str, Any]]:
    """What is written once there are so many lines."""
    wait_until(lambda: path.exists() and path.read_bytes().count(b"\n") >= count, what=f"{count} lines")
    text = path.read_bytes()
    assert text.count(b"\n") == count
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_says_what_became_of_a_request(sim: Simulator, tmp_path: Path) -> None:
    path = tmp_path / "access.jsonl"
    with data_plane(config(sim, path)) as plane:
        url = of(plane)
        traced = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "x-request-id": "mine"}
        sent = [
            ask(url, traced, model="alias", temperature=0),
            ask(url, temperature=0),
            ask(url, stream=True),
        ]
        sent += [ask(url, model="gone"), ask(url, model="nobody"), httpx.get(f"{url}/ready", trust_env=False)]
        miss, hit, stream, gone, nobody, ready = lines(path, 6)
    assert [one["status"] for one in (miss, hit, stream, gone, nobody, ready)] == [
        200,
        200,
        200,
        502,
        404,
        200,
    ]
    plain = {"method": "POST", "path": "/v1/chat/completions", "model": "m", "request_id": "mine"}
    assert plain.items() <= miss.items()
    assert {"cache": "MISS", "attempts": 1, "backend": f"127.0.0.1:{sim.port}"}.items() <= miss.items()
    assert (miss["completion_tokens"], miss["trace_id"]) == (3, TRACE)
    assert miss["prompt_tokens"] > 0
    assert not {"body_ms", "redis_ms", "queue_ms", "wake_ms", "error", "fallback"} & set(miss), (
        "what is 0 is left out"
    )
    assert miss["client"].startswith("127.0.0.1:")
    assert 0 < miss["upstream_ms"] < miss["first_byte_ms"] <= miss["ms"]
    assert miss["time"].endswith("Z")
    assert (hit["cache"], hit["request_id"]) == ("HIT-L1", sent[1].headers["x-request-id"])
    assert not {"backend", "attempts", "upstream_ms", "completion_tokens", "trace_id"} & set(hit)
    assert (stream["cache"], stream["cache_reason"]) == ("BYPASS", "nondeterministic")
    assert [one["response_bytes"] for one in (miss, hit, stream)] == [len(one.content) for one in sent[:3]]
    assert miss["request_bytes"] == len(sent[0].request.content)
    assert (gone["error"], gone["model"]) == ("upstream_broken", "gone")
    assert gone["backend"].startswith("127.0.0.1:")
    assert (nobody["error"], nobody.get("model")) == ("model_not_found", None)
    assert (ready["path"], ready["method"]) == ("/ready", "GET")


def test_a_stream_that_fails_has_its_true_status(sim: Simulator, tmp_path: Path) -> None:
    path = tmp_path / "access.jsonl"
    sim.faults({"kind": "cut_mid_stream", "after": 2, "count": 1})
    with data_plane(config(sim, path)) as plane:
        assert ask(of(plane), stream=True, max_tokens=50).status_code == 200
        (line,) = lines(path, 1)
    assert line["status"] == 502
    assert line["error"].startswith("upstream_")


def test_those_that_failed_are_always_written(sim: Simulator, tmp_path: Path) -> None:
    path = tmp_path / "access.jsonl"
    with data_plane(config(sim, path, sample=0)) as plane:
        for model in ("m", "m", "nobody", "m"):
            ask(of(plane), model=model)
        assert [one["status"] for one in lines(path, 1)] == [404]


def test_a_share_of_the_others_is_written(sim: Simulator, tmp_path: Path) -> None:
    path = tmp_path / "access.jsonl"
    with data_plane(config(sim, path, sample=0.5)) as plane, httpx.Client(trust_env=False) as client:
        for _ in range(200):
            client.get(f"{of(plane)}/health")
        client.get(f"{of(plane)}/nowhere")
        wait_until(lambda: path.exists() and b'"status":404' in path.read_bytes(), what="the last line")
        assert 50 < path.read_bytes().count(b"\n") < 150


def test_a_log_that_was_moved_away_goes_on_under_its_name(sim: Simulator, tmp_path: Path) -> None:
    path, moved = tmp_path / "access.jsonl", tmp_path / "access.jsonl.1"
    with data_plane(config(sim, path)) as plane:
        ask(of(plane))
        lines(path, 1)
        path.rename(moved)
        ask(of(plane))
        lines(path, 1)
        path.rename(tmp_path / "access.jsonl.2")
        path.touch()  # as logrotate's `create`
        ask(of(plane))
        lines(path, 1)
        lines(moved, 1)


def test_a_full_disk_costs_no_request_and_is_counted(sim: Simulator, tmp_path: Path) -> None:
    path = tmp_path / "access.jsonl"
    path.symlink_to("/dev/full")
    with data_plane(config(sim, path)) as plane:
        assert ask(of(plane)).status_code == 200
        wait_until(lambda: lost(plane) == 1, what="the line is counted")
        path.unlink()
        assert ask(of(plane)).status_code == 200
        lines(path, 1)
        assert lost(plane) == 1


def test_a_reader_that_is_gone_costs_no_request(sim: Simulator, tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with data_plane(config(sim, path)) as plane:
        ask(of(plane))
        wait_until(lambda: said(reader), what="a line")
        os.close(reader)
        assert ask(of(plane)).status_code == 200
        wait_until(lambda: lost(plane) == 1, what="the line is counted")


def test_a_reload_that_takes_the_log_away_loses_nothing(sim: Simulator, tmp_path: Path) -> None:
    path = tmp_path / "access.jsonl"
    with data_plane(config(sim, path)) as plane:
        ask(of(plane))
        plain = {key: value for key, value in config(sim, path).items() if key != "log"}
        plain["listen"] = {"host": "127.0.0.1", "port": plane.port}
        plane.call(lambda: plane.worker.swap(published(json.dumps(plain))))
        ask(of(plane))
        lines(path, 1)
        assert plane.worker.reporter is None
        wait_until(lambda: "access-log" not in {one.name for one in threading.enumerate()}, what="its end")
    lines(path, 1)


def said(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except BlockingIOError:
        return b""


def lost(plane: DataPlane) -> int:
    reporter = plane.worker.reporter
    assert reporter is not None
    assert reporter.access is not None
    return reporter.access.outlet.lost


def test_two_workers_write_lines_without_secrets_where_a_reload_says(sim: Simulator, tmp_path: Path) -> None:
    keys, path = tmp_path / "keys.yaml", tmp_path / "access.jsonl"
    full = {**config(sim, "stderr"), "keys": {"file": str(keys)}, "workers": {"count": 2}}
    keyless = tmp_path / "keyless.yaml"
    keyless.write_text(json.dumps({"keys": {"file": str(keys)}, "models": full["models"]}))
    id, secret = create(keyless, tenant="acme")
    other = {"cookie": "session=abc", "x-token": "of-a-header"}
    with gateway(full) as gate:
        assert ask(gate.url, {"authorization": f"Bearer {secret}", **other}).status_code == 200
        assert ask(gate.url, {"authorization": "Bearer sk-wrong"}).status_code == 401
        wait_until(lambda: len(told(gate)) >= 2, what="lines on standard error")
        first, second = sorted(told(gate), key=lambda one: one["status"])  # of two workers
        assert (first["tenant"], first["key"], first["status"]) == ("acme", id, 200)
        assert (second["error"], second.get("tenant")) == ("invalid_api_key", None)
        gate.write({**full, "log": {"access": {"path": str(path)}}})
        gate.reload()
        # connections of their own: any worker may get them
        good = {"authorization": f"Bearer {secret}"}
        wait_until(lambda: ask(gate.url, good).status_code == 200 and path.exists(), what="the file")
        for _ in range(30):
            ask(gate.url, {**good, **other})
        wait_until(lambda: path.read_bytes().count(b"\n") >= 30, what="lines in the file")
        assert all(json.loads(line)["status"] == 200 for line in path.read_bytes().splitlines())
        assert gate.metric("penstock_access_log_lost_total") == 0
        everything = gate.log() + path.read_text()
    for text in (secret, "sk-wrong", WORDS, "of-the-query", "session=abc", "of-a-header"):
        assert text not in everything


def told(gate: Gateway) -> list[dict[str, Any]]:
    """The lines of requests in the gateway's log, those of a start left out."""
    found = [json.loads(line) for line in gate.log().splitlines() if line.startswith("{")]
    return [one for one in found if one["path"] == "/v1/chat/completions"]
