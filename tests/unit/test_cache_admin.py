"""The cache's admin paths over a real arena: what they accept, what they flush, what they tell of an entry."""

import json
import os
import time
from collections.abc import Mapping
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from penstock.cache.arena import Arena, ArenaGeometry
from penstock.cache.digest import Key
from penstock.cache.entry import pack
from penstock.cache.l1 import L1
from penstock.cache.layout import Geometry
from penstock.cache.peek import peek
from penstock.cache.rows import CounterRow
from penstock.cache.segment import Segment
from penstock.gateway import record
from penstock.gateway.metrics import BYPASSES, FLIGHTS, REQUESTS, STORES, Metrics
from penstock.workers.answer import Refused
from penstock.workers.cache_admin import CacheAdmin
from penstock.workers.cache_stats import CacheStats
from penstock.workers.invalidation import Invalidation
from penstock.workers.question import Question
from penstock.workers.scrape import render

from ..support.dataplane import published as published_as
from ..support.gateway import one_model

KEY = Key(bytes(range(32)))
OTHER = Key(bytes(range(100, 132)))
NOW_MS = 1_000_000
FIELDS = [("content-type", "application/json")]


class Node:
    """An arena, a worker that puts, and the controller's side of it."""

    def __init__(self) -> None:
        self.arena = Arena.create(None, ArenaGeometry.of(2 << 20, 1 << 16, 2), 0)
        self.segment = Segment.create(
            None, Geometry(slots=2, backends=4, models=4, counter_bytes=65536), owner_pid=1, owner_start=1
        )
        self.l1 = L1(self.arena, (0, 1), lambda slot, generation: True)
        config = {"models": {**one_model("http://127.0.0.1:9", aliases=["a"])["models"],
                             **one_model("http://127.0.0.1:9", name="n")["models"]}}  # fmt: skip
        published = published_as(json.dumps(config))
        invalidation = Invalidation(self.arena.epochs, None, "", clock=time.monotonic, random=os.urandom)
        self.admin = CacheAdmin(self.arena, invalidation, lambda: published, lambda: NOW_MS)
        self.stats = CacheStats(self.segment, self.arena, invalidation, lambda: published)

    def put(
        self,
        key: Key = KEY,
        body: bytes = b"{}",
        *,
        model: str = "m",
        tenant: str = "default",
        cuts: Any = (),
        ms: int = 5000,
    ) -> None:
        epochs = self.arena.epochs
        stamp = epochs.stamp(epochs.scope(model, tenant), key)
        head = record.Writer().head(200, FIELDS)
        assert head is not None
        value = record.cut(head, body, cuts) if cuts else (head, body)
        packed = pack(key, stamp, NOW_MS - 1500, NOW_MS + ms, *value)
        assert self.l1.put(key, packed, NOW_MS)

    def serves(self, key: Key = KEY, model: str = "m", tenant: str = "default") -> bool:
        """Whether a request would get the entry."""
        epochs = self.arena.epochs
        return self.l1.get(key, epochs.stamp(epochs.scope(model, tenant), key), NOW_MS) is not None

    async def flush(self, body: object, content_type: str = "application/json") -> dict[str, Any]:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = await self.admin.flush(Question(content_type=content_type, body=raw))
        said: dict[str, Any] = json.loads(answer.body)
        return said

    async def entry(self, key: Key = KEY, query: str = "") -> dict[str, Any]:
        said: dict[str, Any] = json.loads((await self.admin.entry(Question(key.hex(), query))).body)
        return said

    async def missing(self, key: Key = KEY, query: str = "") -> str:
        """Why an entry is not told of."""
        with pytest.raises(Refused) as caught:
            await self.entry(key, query)
        assert caught.value.answer.status == 404
        return str(caught.value)


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.mark.parametrize(
    ("body", "hit", "spared"),
    [
        ({"all": True}, ("m", "default"), None),
        ({"model": "m"}, ("m", "default"), ("n", "default")),
        ({"model": "a"}, ("m", "default"), ("n", "default")),
        ({"tenant": "default"}, ("m", "default"), ("m", "other")),
    ],
)
async def test_a_flush_takes_what_it_names_and_spares_the_rest(
    node: Node, body: dict[str, Any], hit: tuple[str, str], spared: tuple[str, str] | None
) -> None:
    node.put(KEY, model=hit[0], tenant=hit[1])
    if spared:
        node.put(OTHER, model=spared[0], tenant=spared[1])
    said = await node.flush(body)
    assert said["this_node"] == "flushed"
    assert said["other_nodes"] == "none"
    assert said["flushed"] == ({"model": "m"} if "model" in body else body)
    assert not node.serves(KEY, *hit)
    if spared:
        assert node.serves(OTHER, *spared)


async def test_a_key_is_flushed_alone(node: Node) -> None:
    node.put(KEY)
    node.put(OTHER)
    assert (await node.flush({"key": KEY.hex().upper()}))["flushed"] == {"key": KEY.hex()}
    assert not node.serves(KEY)
    assert node.serves(OTHER)


@pytest.mark.parametrize(
    "body",
    [
        *({}, {"all": False}, {"all": 1}, {"all": None}, {"all": True, "model": "m"}, {"model": ""}, {"tenant": ""}),
        *({"model": 1}, {"tenant": "x" * 257}, {"key": "0" * 63}, {"key": "g" * 64}, {"key": None}, {"al": True}),
        *([], "all", None, b"", b"{", b'{"all":true}x', b"\xff", b"[" * 10_000),
    ],
)  # fmt: skip
async def test_anything_else_is_refused_and_flushes_nothing(node: Node, body: object) -> None:
    node.put()
    with pytest.raises(Refused) as caught:
        await node.flush(body)
    assert caught.value.answer.status == 400
    error = json.loads(caught.value.answer.body)["error"]
    assert error["type"] == "invalid_request_error"
    assert node.serves()


async def test_a_model_that_is_not_configured_is_404_and_a_form_415(node: Node) -> None:
    node.put()
    for body, content_type, status in (
        ({"model": "unheard"}, "application/json", 404),
        ({"all": True}, "text/plain", 415),
        ({"all": True}, "", 415),
    ):
        with pytest.raises(Refused) as caught:
            await node.flush(body, content_type)
        assert caught.value.answer.status == status
    assert node.serves()
    assert (await node.flush({"all": True}, "Application/JSON; charset=utf-8"))["epoch"] == "all"


async def test_an_entry_is_told_of_and_its_body_on_request(node: Node) -> None:
    node.put(body=b'{"x": 1}')
    said = await node.entry()
    entry_bytes = said.pop("entry_bytes")
    assert entry_bytes % 64 == 0
    assert entry_bytes > len(b'{"x": 1}')
    assert said == {
        "key": KEY.hex(),
        "kind": "whole",
        "status": 200,
        "content_type": "application/json",
        "body_bytes": 8,
        "pieces": 0,
        "age_s": 1.5,
        "ttl_left_s": 5.0,
        "fresh": True,
    }
    assert (await node.entry(query="body=true"))["body"] == '{"x": 1}'
    node.put(OTHER, body=b"\xffabc", cuts=(1, 3))
    said = await node.entry(OTHER, "body=true")
    assert (said["kind"], said["pieces"], said["body_base64"]) == ("stream", 2, "/2FiYw==")


async def test_what_is_absent_expired_or_flushed_is_404_with_the_reason(node: Node) -> None:
    assert await node.missing() == "L1 has no such entry"
    node.put(ms=0)
    assert await node.missing() == "the entry has expired"
    node.put()
    await node.flush({"key": KEY.hex()})
    assert await node.missing() == "the entry was flushed"
    node.put()
    await node.flush({"all": True})
    assert await node.missing() == "the entry was flushed"
    with pytest.raises(Refused) as caught:
        await node.admin.entry(Question("00"))
    assert caught.value.answer.status == 400


async def test_whether_an_entry_is_fresh_is_sure_where_its_owner_is_named(node: Node) -> None:
    """After a flush of one model, an entry of before it could be another model's, which is fresh."""
    node.put(model="m")
    await node.flush({"model": "m"})
    assert (await node.entry())["fresh"] is None
    assert await node.missing(query="model=m") == "the entry was flushed"
    assert await node.missing(query="model=a&tenant=default") == "the entry was flushed"
    assert (await node.entry(query="model=n"))["fresh"] is True
    await node.flush({"tenant": "other"})
    assert (await node.entry(query="model=n"))["fresh"] is None
    assert (await node.entry(query="model=n&tenant=default"))["fresh"] is True
    assert await node.missing(query="model=n&tenant=other") == "the entry was flushed"
    assert "does not exist" in await node.missing(query="model=unheard")


def test_looking_believes_no_byte_that_is_not_whole_and_leaves_no_mark(node: Node) -> None:
    node.put(body=b"x" * 500)
    found = peek(node.arena, KEY)
    assert found is not None
    assert found.entry.value.endswith(b"x" * 500)
    at = node.arena.map.find(b"x" * 500)
    node.arena.map[at : at + 1] = b"y"
    assert peek(node.arena, KEY) is None
    assert peek(node.arena, OTHER) is None
    assert peek(Arena.create(None, ArenaGeometry.of(0, 1, 2), 0), KEY) is None


def _counted(segment: Segment, row: int, counts: Mapping[Any, int]) -> None:
    metrics = Metrics(CounterRow(segment, row))
    for (family, *labels), n in counts.items():
        metrics.count(family, *labels, n=n)


async def test_the_report_adds_up_what_the_workers_counted(node: Node) -> None:
    path = "/v1/embeddings"
    _counted(
        node.segment,
        0,
        {
            (REQUESTS, "m", path, "200", "HIT-L1"): 3,
            (REQUESTS, "n", path, "200", "HIT-L1"): 4,
            (REQUESTS, "m", path, "200", ""): 9,
            (BYPASSES, "m", "off"): 2,
            (FLIGHTS, "led"): 1,
            (STORES, "l1", "stored"): 5,
        },
    )
    _counted(node.segment, 1, {(STORES, "l1", "stored"): 6, (STORES, "l2", "hits"): 7})
    node.put()
    report = node.stats.report()
    assert report["mode"] == "deterministic"
    assert report["requests"] == {"HIT-L1": 7, "HIT-L2": 0, "MISS": 0, "COALESCED": 0, "BYPASS": 0}
    assert report["bypasses"] == {"off": 2}
    assert report["flights"] == {"led": 1}
    assert report["workers"] == {"0": {"l1": {"stored": 11}, "l2": {"hits": 7}}}
    assert report["events"] == report["workers"]["0"]
    assert report["l2"] is None
    assert report["epochs_set"] == 0
    assert report["l1"]["size_bytes"] == node.arena.geometry.data_bytes
    assert 0 < report["l1"]["used_bytes"] <= report["l1"]["segment_bytes"]
    assert report["l1"]["segments_open"] == 1
    await node.flush({"all": True})
    assert node.stats.report()["epochs_set"] == 1


def test_the_sizes_are_metrics(node: Node) -> None:
    node.put()
    text = render(node.segment, node.stats.metrics()).decode()
    values = {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}
    assert values["penstock_cache_l1_size_bytes"] == node.arena.geometry.data_bytes
    assert values["penstock_cache_l1_used_bytes"] == node.l1.used_bytes() > 0
    assert "penstock_cache_l2_synced" not in text
