"""Two gateways on one Redis: their cache's admin paths, `penstock cache`, and flushes from one to the other."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from ..support.gateway import Gateway, gateway
from ..support.procs import console_script, run, wait_until
from ..support.redis import RedisServer, redis_server
from ..support.sim import Simulator, simulator

KEY = {"authorization": "Bearer s3cret"}
ENV = {"TEST_ADMIN_KEY": "s3cret"}
PATH = "/v1/chat/completions"


@dataclass
class Pair:
    """The gateways `one` and `two`, one simulated server behind both, one Redis beside them."""

    sim: Simulator
    redis: RedisServer
    one: Gateway
    two: Gateway

    def asks(self, gate: Gateway, text: str, model: str = "m") -> str:
        """Ask one gateway a cacheable question; how the answer met the cache."""
        answer = httpx.post(gate.url + PATH, json=_question(text, model), trust_env=False, timeout=20)
        answer.raise_for_status()
        return answer.headers["x-penstock-cache"]

    def warm(self, text: str) -> None:
        """Have the answer in the shared memory of both."""
        for gate in (self.one, self.two):
            wait_until(lambda gate=gate: self.asks(gate, text) == "HIT-L1", what="a hit")


def _question(text: str, model: str = "m") -> dict[str, Any]:
    return {
        "model": model,
        "temperature": 0,
        "max_tokens": 4,
        "messages": [{"role": "user", "content": text}],
    }


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with simulator(model="m", canned=True) as sim, redis_server() as redis:
        config = {
            "models": {"m": {"backends": [{"url": sim.url}], "aliases": ["also-m"]}},
            "admin": {"key_env": "TEST_ADMIN_KEY", "on_api_port": True},
            # as long as it takes on a machine that is busy: what is tested is what is kept, not how soon
            "cache": {"l1": {"size": "32MiB"}, "l2": {"url": redis.url, "deadline_ms": 2000}},
        }
        with gateway(config, env=ENV) as one, gateway(config, env=ENV) as two:
            made = Pair(sim, redis, one, two)
            for gate in (one, two):
                wait_until(lambda gate=gate: _stats(gate)["l2"]["synced"], what="in step with Redis")
            yield made


def _stats(gate: Gateway) -> dict[str, Any]:
    answer = httpx.get(f"{gate.admin_url}/gateway/cache/stats", headers=KEY, trust_env=False)
    answer.raise_for_status()
    said: dict[str, Any] = answer.json()
    return said


def _flush(gate: Gateway, body: object, url: str | None = None) -> httpx.Response:
    return httpx.post(f"{url or gate.admin_url}/gateway/cache/flush", headers=KEY, json=body, trust_env=False)


def _cache(*words: str) -> tuple[int, str]:
    return run([console_script(), "cache", *words])


def _key_of(gate: Gateway, question: dict[str, Any], folder: Path) -> str:
    file = folder / "question.json"
    file.write_text(json.dumps(question))
    status, said = run([console_script(), "cache", "explain", str(file), "-c", str(gate.file)], env=ENV)
    assert status == 0, said
    found = re.search(r"^key +([0-9a-f]{64})$", said, re.M)
    assert found, said
    return found[1]


# ---- flushes


@pytest.mark.parametrize("body", [{"all": True}, {"model": "also-m"}, {"tenant": "default"}])
def test_a_flush_on_one_node_is_a_miss_on_the_other(pair: Pair, body: dict[str, Any]) -> None:
    text = f"flushed by {body}"
    pair.warm(text)
    answer = _flush(pair.one, body)
    assert answer.status_code == 200
    assert answer.json()["other_nodes"] == "told"
    assert pair.asks(pair.one, text) == "MISS"
    # what the first node has asked again is fresh, so the other may find it in Redis
    wait_until(lambda: pair.asks(pair.two, text) in ("MISS", "HIT-L2"), what="a miss on the other node")
    assert pair.asks(pair.two, text) == "HIT-L1"


def test_a_flush_by_key_spares_the_others(pair: Pair, tmp_path: Path) -> None:
    pair.warm("by key")
    pair.warm("spared")
    key = _key_of(pair.one, _question("by key"), tmp_path)
    assert _flush(pair.one, {"key": key}, pair.one.url).json()["flushed"] == {"key": key}
    assert pair.asks(pair.one, "by key") == "MISS"
    assert pair.asks(pair.one, "spared") == "HIT-L1"
    wait_until(lambda: _entry(pair.two, key).status_code == 404, what="gone on the other node")
    assert pair.asks(pair.two, "spared") == "HIT-L1"


def test_a_flush_whose_message_is_lost_is_noticed_by_the_poll(pair: Pair, tmp_path: Path) -> None:
    pair.warm("unheard")
    key = _key_of(pair.one, _question("unheard"), tmp_path)
    pair.redis.command("ACL", "SETUSER", "default", "-subscribe")
    try:
        assert pair.redis.command("CLIENT", "KILL", "TYPE", "pubsub") == 2
        assert _flush(pair.one, {"key": key}).json()["other_nodes"] == "told"
        wait_until(lambda: _entry(pair.two, key).status_code == 404, what="gone on the other node")
    finally:
        pair.redis.command("ACL", "SETUSER", "default", "+subscribe")
    heard = lambda: pair.redis.command("PUBSUB", "NUMSUB", "penstock:epochs")[1] == 2  # noqa: E731
    wait_until(heard, what="both hear again")


def test_a_flush_while_redis_is_away_is_told_when_it_is_back_though_it_is_an_empty_one(
    pair: Pair, tmp_path: Path
) -> None:
    pair.warm("meanwhile")
    key = _key_of(pair.one, _question("meanwhile"), tmp_path)
    pair.redis.stop()
    try:
        assert _flush(pair.one, {"key": key}).json()["other_nodes"] == "pending"
        assert _entry(pair.one, key).status_code == 404
        assert _entry(pair.two, key).status_code == 200
        wait_until(lambda: not _stats(pair.two)["l2"]["synced"], what="Redis is not trusted")
        assert _stats(pair.one)["l2"]["flushes_untold"] == 1
    finally:
        pair.redis.start()
    wait_until(lambda: _entry(pair.two, key).status_code == 404, what="gone on the other node")
    wait_until(
        lambda: _stats(pair.one)["l2"] == _stats(pair.two)["l2"] | {"synced": True}, what="in step again"
    )
    said = re.findall(r"epochs_(?:lost|synced)", pair.two.log())
    assert said == ["epochs_synced", "epochs_lost", "epochs_synced"]


# ---- the paths


def _entry(gate: Gateway, key: str, query: str = "") -> httpx.Response:
    return httpx.get(f"{gate.admin_url}/gateway/cache/entries/{key}{query}", headers=KEY, trust_env=False)


def test_the_paths_are_the_same_on_both_ports_and_want_the_key(pair: Pair, tmp_path: Path) -> None:
    pair.warm("ports")
    key = _key_of(pair.one, _question("ports"), tmp_path)
    for base in (pair.one.admin_url, pair.one.url):
        with httpx.Client(base_url=base, trust_env=False) as client:
            for method, path in (
                ("GET", "/gateway/cache/stats"),
                ("POST", "/gateway/cache/flush"),
                ("GET", f"/gateway/cache/entries/{key}"),
            ):
                assert client.request(method, path, json={"all": True}).status_code == 401
            client.headers.update(KEY)
            assert client.get("/gateway/cache/stats").json()["mode"] == "deterministic"
            assert client.head("/gateway/cache/stats").status_code == 200
            assert client.get("/gateway/cache/flush").status_code == 405
            assert client.post("/gateway/cache/stats", json={}).status_code == 405
            assert client.post("/gateway/cache/flush", json={"all": 1}).status_code == 400
            assert client.post("/gateway/cache/flush", content=b'{"all":true}').status_code == 415
            assert client.post("/gateway/cache/flush", json={"model": "x" * 20_000}).status_code == 413
            assert client.get(f"/gateway/cache/entries/{'0' * 64}").status_code == 404
            assert client.get("/gateway/cache/entries/%0d%0aGET%20x").status_code == 400
            said = client.get(f"/gateway/cache/entries/{key}?body=true").json()
            assert said["kind"] == "whole"
            assert json.loads(said["body"])["object"] == "chat.completion"
            envelope = client.post("/gateway/cache/flush", json={}).json()["error"]
            assert set(envelope) == {"message", "type", "param", "code"}
    assert pair.asks(pair.one, "ports") == "HIT-L1"


def test_the_sizes_and_the_state_are_metrics(pair: Pair) -> None:
    pair.warm("metrics")
    text = httpx.get(f"{pair.one.admin_url}/metrics", headers=KEY, trust_env=False).text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    l1 = _stats(pair.one)["l1"]
    assert float(values["penstock_cache_l1_size_bytes"]) == l1["size_bytes"]
    assert float(values["penstock_cache_l1_used_bytes"]) == l1["used_bytes"] > 0
    assert float(values["penstock_cache_l2_synced"]) == 1


# ---- the commands


def test_stats_prints_a_table_or_json(pair: Pair) -> None:
    pair.warm("stats")
    status, said = _cache("stats", "--port", str(pair.one.port))
    assert status == 0
    hits = re.search(r"^HIT-L1 +(\d+)$", said, re.M)
    assert hits, said
    assert int(hits[1]) >= 1
    assert re.search(r"^L2 +single, in use$", said, re.M), said
    status, said = _cache("stats", "--json", "-c", str(pair.one.file))
    assert status == 0
    assert json.loads(said)["requests"]["HIT-L1"] >= int(hits[1])


def test_flush_and_get_by_command(pair: Pair, tmp_path: Path) -> None:
    port = str(pair.one.port)
    for words, said in (
        (["--all"], "flushed everything; other nodes have been told\n"),
        (["--model", "also-m"], "flushed model m; other nodes have been told\n"),
        (["--tenant", "default"], "flushed tenant default; other nodes have been told\n"),
    ):
        pair.warm("by command")
        assert _cache("flush", *words, "--port", port) == (0, said)
        assert pair.asks(pair.one, "by command") == "MISS"
    key = _key_of(pair.one, _question("by command"), tmp_path)
    status, text = _cache("get", key, "--body", "--port", port, "--model", "m", "--tenant", "default")
    assert status == 0
    assert re.search(r"^fresh +yes$", text, re.M), text
    assert '"chat.completion"' in text
    assert json.loads(_cache("get", key.upper(), "--json", "--port", port)[1])["key"] == key
    assert _cache("flush", "--key", key, "--port", port)[0] == 0
    assert _cache("get", key, "--port", port) == (2, "penstock: the entry was flushed\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stats", "--port", "1"], r"penstock: no gateway of this user runs on port 1; running: .*"),
        (["flush", "--model", "unheard", "--port", "ONE"], r"penstock: the model 'unheard' does not exist.*"),
        (["get", "0" * 64, "--port", "ONE"], r"penstock: L1 has no such entry"),
        (["get", "12"], r"penstock cache get: argument KEY: '12' is not a key of 64 hexadecimal digits"),
        (["flush", "--all", "--model", "m"], r"penstock cache flush: argument --model: not allowed with .*"),
        (["flush"], r"penstock cache flush: one of the arguments --all .* is required"),
        ([], r"penstock cache: the following arguments are required: VERB"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_2(pair: Pair, words: list[str], said: str) -> None:
    status, output = _cache(*(str(pair.one.port) if word == "ONE" else word for word in words))
    assert status == 2, output
    assert re.fullmatch(said + r"\n", output), output
