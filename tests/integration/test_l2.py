"""The second tier on real Redis servers: alone, with TLS and a restricted user, under Sentinel, as a Cluster."""

import asyncio
import logging
import os
import time
from collections.abc import Iterator

import pytest
import zstandard

from penstock.cache.digest import Key
from penstock.cache.l2 import JITTER, L2, TAGS, Lease
from penstock.cache.redis_client import client, close, eviction_policy
from penstock.cache.remote.value import lease_of

from ..support.l2 import PLACES, Place, a_key, a_prefix, an_entry, lines, place, tier
from ..support.scripted import on_uvloop, until


@pytest.fixture(scope="module", params=PLACES)
def where(request: pytest.FixtureRequest) -> Iterator[Place]:
    with place(request.param) as found:
        yield found


def _name(where: Place, prefix: str, key: Key) -> bytes:
    if where.kind == "cluster":
        return f"{prefix}:{{{TAGS[key[0] & 15]}}}:".encode() + key
    return f"{prefix}:e:".encode() + key


async def _stored(l2: L2, count: int) -> None:
    await until(lambda: l2.counts.stored >= count)


@pytest.mark.parametrize("size", [700, 8 << 10, 64 << 10, 2 << 20])
@pytest.mark.parametrize("text", [False, True])
@on_uvloop
async def test_what_one_node_stores_another_finds_byte_for_byte(where: Place, size: int, text: bool) -> None:
    prefix, key = a_prefix(), a_key()
    entry = an_entry(key, size, text=text)
    async with tier(where.settings, prefix=prefix) as one, tier(where.settings, prefix=prefix) as other:
        assert await one.get(key) is Lease.MINE
        assert one.put(key, entry, 60_000)
        await _stored(one, 1)
        assert await other.get(key) == entry
        assert one.counts.stored_bytes < len(entry) if text and size > 1024 else True
        assert (other.counts.hits, other.counts.misses) == (1, 0)


@on_uvloop
async def test_of_all_nodes_that_miss_at_once_exactly_one_gets_the_lease(where: Place) -> None:
    prefix, keys = a_prefix(), [a_key() for _ in range(20)]
    nodes = [tier(where.settings, prefix=prefix) for _ in range(3)]
    async with nodes[0] as a, nodes[1] as b, nodes[2] as c:
        found = await asyncio.gather(*(l2.get(key) for key in keys for l2 in (a, b, c)))
        for i in range(len(keys)):
            assert sorted(lease.value for lease in found[3 * i : 3 * i + 3]) == ["mine", "other", "other"]


@on_uvloop
async def test_a_node_never_takes_its_own_lease_for_an_entry(where: Place) -> None:
    prefix, key, node = a_prefix(), a_key(), os.urandom(16)
    async with (
        tier(where.settings, prefix=prefix, node=node) as one,
        tier(where.settings, prefix=prefix, node=node) as same,
    ):
        assert await one.get(key) is Lease.MINE
        assert await one.get(key) is Lease.MINE
        assert await same.get(key) is Lease.MINE, "another worker of the same node"


@on_uvloop
async def test_who_waits_gets_the_entry_that_the_holder_stores(where: Place) -> None:
    prefix, key = a_prefix(), a_key()
    entry = an_entry(key)
    async with tier(where.settings, prefix=prefix) as one, tier(where.settings, prefix=prefix) as other:
        assert await one.get(key) is Lease.MINE
        waiting = asyncio.create_task(other.wait(key, time.monotonic() + 60))
        await until(lambda: other.counts.misses >= 2)
        one.put(key, entry, 60_000)
        assert await waiting == entry


@on_uvloop
async def test_who_waits_gets_the_lease_that_the_holder_gives_up(where: Place) -> None:
    prefix, key = a_prefix(), a_key()
    async with tier(where.settings, prefix=prefix) as one, tier(where.settings, prefix=prefix) as other:
        assert await one.get(key) is Lease.MINE
        waiting = asyncio.create_task(other.wait(key, time.monotonic() + 60))
        await until(lambda: other.counts.misses >= 2)
        one.give_up(key)
        assert await waiting is Lease.MINE
        assert await one.get(key) is Lease.OTHER


@on_uvloop
async def test_a_dead_holders_lease_runs_out_for_exactly_one_of_those_who_wait(where: Place) -> None:
    prefix, key = a_prefix(), a_key()
    async with tier(where.settings, prefix=prefix, lease_ms=300) as dead:
        assert await dead.get(key) is Lease.MINE
    nodes = [tier(where.settings, prefix=prefix) for _ in range(2)]
    async with nodes[0] as a, nodes[1] as b:
        waiting = {asyncio.create_task(l2.wait(key, time.monotonic() + 60)) for l2 in (a, b)}
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result() for task in done] == [Lease.MINE]
        (still,) = waiting
        still.cancel()


@on_uvloop
async def test_waiting_ends_when_its_time_is_over(where: Place) -> None:
    prefix, key = a_prefix(), a_key()
    async with tier(where.settings, prefix=prefix) as one, tier(where.settings, prefix=prefix) as other:
        assert await one.get(key) is Lease.MINE
        assert await other.wait(key, time.monotonic() + 0.05) is Lease.OTHER
        assert await other.wait(key, time.monotonic() - 1) is Lease.OTHER


@on_uvloop
async def test_a_lease_that_is_held_outlives_its_length(where: Place) -> None:
    prefix, key = a_prefix(), a_key()
    async with (
        tier(where.settings, prefix=prefix, lease_ms=400) as one,
        tier(where.settings, prefix=prefix) as other,
    ):
        assert await one.get(key) is Lease.MINE
        one.hold(key)
        later = time.monotonic() + 0.8
        await until(lambda: time.monotonic() > later)
        assert await other.get(key) is Lease.OTHER
        one.give_up(key)
        assert await other.wait(key, time.monotonic() + 60) is Lease.MINE


@on_uvloop
async def test_an_entry_that_cannot_be_stored_frees_the_lease_for_it(where: Place) -> None:
    prefix, large, dead = a_prefix(), a_key(), a_key()
    async with tier(where.settings, prefix=prefix) as one, tier(where.settings, prefix=prefix) as other:
        for key in (large, dead):
            assert await one.get(key) is Lease.MINE
            one.hold(key)
        assert not one.put(large, an_entry(large, 3 << 20), 60_000)
        assert not one.put(dead, an_entry(dead), 0)
        for key in (large, dead):
            assert await other.wait(key, time.monotonic() + 60) is Lease.MINE


@on_uvloop
async def test_nobody_gives_up_what_another_has(where: Place) -> None:
    prefix, leased, stored = a_prefix(), a_key(), a_key()
    async with tier(where.settings, prefix=prefix) as one, tier(where.settings, prefix=prefix) as other:
        entry = an_entry(stored)
        assert await one.get(leased) is Lease.MINE
        one.put(stored, entry, 60_000)
        await _stored(one, 1)
        other.give_up(leased)
        other.give_up(stored)
        for key in (leased, stored):  # stored behind them in the same queues
            after = Key(key[:1] + os.urandom(31))
            other.put(after, an_entry(after), 60_000)
        await _stored(other, 2)
        assert await other.get(leased) is Lease.OTHER
        assert await other.get(stored) == entry


@on_uvloop
async def test_an_entry_lives_as_long_as_it_is_told_or_a_tenth_shorter(where: Place) -> None:
    prefix, keys = a_prefix(), [a_key() for _ in range(12)]
    async with tier(where.settings, prefix=prefix) as l2:
        for key in keys:
            l2.put(key, an_entry(key), 1_000_000)
        await _stored(l2, len(keys))
        names = [_name(where, prefix, key) for key in keys]
        left = [where.holder(name).command("PTTL", name) for name in names]
        assert all(1_000_000 * (1 - JITTER) - 60_000 < ms <= 1_000_000 for ms in left)
        assert max(left) - min(left) > 1_000, "they do not go together"


_BOMB = zstandard.ZstdCompressor().compress(bytes(64 << 20))
_LYING = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 10))


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"foreign",
        b"ps1",
        b"ps1X" + bytes(100),
        b"ps0P" + bytes(100),
        b"ps1Z",
        b"ps1Z not zstd",
        b"ps1Z" + _BOMB,
        b"ps1Z" + _LYING,
        b"ps1Z" + zstandard.compress(bytes(100))[:-1],
        b"ps1Z" + zstandard.compress(bytes(100)) + b"more",
        b"ps1P" + bytes(3 << 20),
        lease_of(bytes(16)) + b"more",
    ],
    ids=lambda value: repr(value[:12]),
)
@on_uvloop
async def test_foreign_bytes_are_a_miss_and_are_overwritten(where: Place, value: bytes) -> None:
    prefix, key = a_prefix(), a_key()
    name = _name(where, prefix, key)
    where.holder(name).command("SET", name, value)
    async with tier(where.settings, prefix=prefix) as l2:
        assert await l2.get(key) is Lease.NONE
        entry = an_entry(key)
        l2.put(key, entry, 60_000)
        await _stored(l2, 1)
        assert await l2.get(key) == entry


@on_uvloop
async def test_a_key_of_another_type_is_a_miss_and_is_overwritten(where: Place) -> None:
    prefix, key = a_prefix(), a_key()
    name = _name(where, prefix, key)
    where.holder(name).command("HSET", name, "field", "value")
    async with tier(where.settings, prefix=prefix) as l2:
        assert await l2.get(key) is Lease.NONE
        l2.give_up(key)
        l2.put(key, an_entry(key), 60_000)
        await _stored(l2, 1)
        assert isinstance(await l2.get(key), bytes)
        assert l2.state.value == "up"


@on_uvloop
async def test_look_ups_of_one_tick_are_one_mget_for_each_hash_tag(where: Place) -> None:
    prefix, keys = a_prefix(), [a_key() for _ in range(64)]
    async with tier(where.settings, prefix=prefix) as l2:
        await asyncio.gather(*(l2.get(a_key()) for _ in range(64)))  # connected, and the script is known
        before = where.calls("mget")
        found = await asyncio.gather(*(l2.get(key) for key in keys))
        assert found == [Lease.MINE] * 64
        tags = len({key[0] & 15 for key in keys}) if where.kind == "cluster" else 1
        assert where.calls("mget") - before == tags


@on_uvloop
async def test_a_key_that_many_ask_for_in_one_tick_is_asked_once(where: Place) -> None:
    prefix, key = a_prefix(), a_key()
    async with tier(where.settings, prefix=prefix) as l2:
        await l2.get(key)
        before = where.calls("mget"), where.calls("set")
        assert await asyncio.gather(*(l2.get(a) for a in [key] * 50)) == [Lease.MINE] * 50
        assert (where.calls("mget") - before[0], where.calls("set") - before[1]) == (1, 0)
        entry = an_entry(key)
        l2.put(key, entry, 60_000)
        await _stored(l2, 1)
        assert await asyncio.gather(*(l2.get(a) for a in [key] * 50)) == [entry] * 50


@on_uvloop
async def test_who_stops_waiting_costs_no_connection_and_nobody_elses_answer(where: Place) -> None:
    prefix, keys = a_prefix(), [a_key() for _ in range(8)]
    async with tier(where.settings, prefix=prefix) as l2:
        await asyncio.gather(*(l2.get(a_key()) for _ in range(64)))
        for key in keys:
            l2.put(key, an_entry(key), 60_000)
        await _stored(l2, 8)
        before = where.clients()
        for turns in range(6):
            looking = [asyncio.create_task(l2.get(key)) for key in keys * 2]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in looking[::2]:
                task.cancel()
            found = await asyncio.gather(*looking, return_exceptions=True)
            assert all(isinstance(entry, bytes) for entry in found[1::2])
            await until(lambda: all(not lane._flying for lane in l2._lanes))
        assert where.clients() == before
        assert l2.counts.errors == 0


@on_uvloop
async def test_the_eviction_policy_is_known_where_it_may_be_asked(where: Place) -> None:
    asking = client(where.settings)
    assert await eviction_policy(asking) == "noeviction"
    if where.kind == "tls":
        where.running()[0].command("ACL", "SETUSER", where.settings.username, "-config|get")
        assert await eviction_policy(asking) is None
    await close(asking)


@on_uvloop
async def test_a_few_thousand_keys_of_many_callers(where: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    prefix, keys = a_prefix(), [a_key() for _ in range(2000)]
    entries = {key: an_entry(key, 100) for key in keys}
    async with tier(where.settings, prefix=prefix) as l2:
        todo = iter(keys)

        async def caller() -> None:
            for key in todo:
                assert await l2.get(key) is Lease.MINE
                assert l2.put(key, entries[key], 60_000)

        await asyncio.gather(*(caller() for _ in range(64)))
        await _stored(l2, len(keys))
        assert await asyncio.gather(*(l2.get(key) for key in keys)) == list(entries.values())
        assert (l2.counts.hits, l2.counts.misses, l2.counts.errors) == (2000, 2000, 0)
    assert lines(caplog.records) == []
