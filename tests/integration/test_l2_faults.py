"""Redis stopped, paused, full, slow, emptied under load: no look-up raises, every look-up ends, one line a change."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator

import pytest

from penstock.cache.digest import Key
from penstock.cache.l2 import L2, Lease
from penstock.cache.redis_client import RedisSettings
from penstock.cache.remote.state import State

from ..support.l2 import Load, a_key, a_prefix, an_entry, lines, strangers, tier
from ..support.procs import free_port
from ..support.redis import AclUser, redis_server
from ..support.scripted import on_uvloop, until


@pytest.fixture(autouse=True)
def _listen(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.INFO)
    yield
    gc.collect()
    assert strangers(caplog.get_records("call")) == []


async def _state(l2: L2, state: State) -> None:
    await until(lambda: l2.state is state)


@on_uvloop
async def test_redis_killed_under_load_and_an_empty_one_in_its_place(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with redis_server() as server:
        async with (
            tier(RedisSettings(server.url), prefix=a_prefix(), deadline_ms=50) as l2,
            Load(l2).running() as load,
        ):
            await load.in_use()
            assert lines(caplog.records) == []
            server.kill()
            await _state(l2, State.DOWN)
            await load.more()
            server.start()
            await _state(l2, State.UP)
            await load.in_use()
        assert lines(caplog.records) == ["l2_down", "l2_up"]
        assert l2.counts.skipped > 0


@on_uvloop
async def test_redis_replaced_by_an_empty_one_at_once(caplog: pytest.LogCaptureFixture) -> None:
    with redis_server() as server:
        async with (
            tier(RedisSettings(server.url), prefix=a_prefix(), deadline_ms=50) as l2,
            Load(l2).running() as load,
        ):
            await load.in_use()
            server.restart()
            assert int(server.info("keyspace").get("db0", {}).get("keys", 0)) <= 50
            await load.more()
            await load.in_use()
        assert lines(caplog.records) in ([], ["l2_down", "l2_up"])


@on_uvloop
async def test_redis_paused_under_load(caplog: pytest.LogCaptureFixture) -> None:
    with redis_server() as server:
        async with (
            tier(RedisSettings(server.url), prefix=a_prefix(), deadline_ms=50) as l2,
            Load(l2).running() as load,
        ):
            await load.in_use()
            server.pause()
            await _state(l2, State.DOWN)
            await load.more()
            server.resume()
            await _state(l2, State.UP)
            await load.in_use()
        assert lines(caplog.records) == ["l2_down", "l2_up"]
        assert l2.counts.timeouts >= 5


@on_uvloop
async def test_replies_after_the_deadline_are_thrown_away_and_the_connection_stays() -> None:
    with redis_server() as server, server.client(single_connection_client=True) as admin:
        async with tier(RedisSettings(server.url), prefix=a_prefix(), deadline_ms=20) as l2:
            key = a_key()
            await until(lambda: _known(l2, key))
            before = {client["id"] for client in admin.client_list()}
            server.pause()
            assert await asyncio.gather(*(l2.get(a_key()) for _ in range(10))) == [Lease.NONE] * 10
            server.resume()
            await until(lambda: l2.counts.late == 1)
            assert await _found(l2, key)
            assert {client["id"] for client in admin.client_list()} == before
            assert (l2.counts.timeouts, l2.counts.errors, l2.state) == (1, 0, State.UP)


def _known(l2: L2, key: Key) -> bool:
    """Store it, once connected."""
    if not l2.counts.stored:
        l2.put(key, an_entry(key), 60_000)
    return l2.counts.stored > 0


async def _found(l2: L2, key: Key) -> bool:
    for _ in range(100):  # the machine may be busy, and this deadline is a real one
        if isinstance(await l2.get(key), bytes):
            return True
    return False


@on_uvloop
async def test_a_full_redis_is_read_and_not_written_until_it_has_room(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with redis_server(maxmemory_policy="noeviction") as server:
        async with tier(RedisSettings(server.url), prefix=a_prefix()) as l2:
            old = a_key()
            l2.put(old, an_entry(old), 60_000)
            await until(lambda: l2.counts.stored == 1)
            server.configure(maxmemory="1mb")
            assert await l2.get(a_key()) is Lease.NONE, "no room for a lease"
            key = a_key()
            assert l2.put(key, an_entry(key), 60_000)
            await until(lambda: l2.counts.refused == 1)
            assert l2.state is State.FULL
            assert not l2.put(key, an_entry(key), 60_000), "it is not tried again at once"
            assert isinstance(await l2.get(old), bytes)
            server.configure(maxmemory="0")
            assert await l2.get(a_key()) is Lease.MINE

            def stored_again() -> bool:
                key = a_key()
                l2.put(key, an_entry(key), 60_000)
                return l2.state is State.UP

            await until(stored_again)
        assert lines(caplog.records) == ["l2_full", "l2_up"]


@contextlib.asynccontextmanager
async def _slow_line(port: int, delay_s: list[float]) -> AsyncIterator[int]:
    """A TCP relay to a port whose answers come ``delay_s[0]`` later; yields its own port."""
    loop = asyncio.get_running_loop()
    ends: list[asyncio.StreamWriter] = []

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, slow: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                loop.call_later(delay_s[0] if slow else 0, writer.write, data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        ends.extend((writer, back))
        await asyncio.gather(carry(reader, back, False), carry(there, writer, True))

    mine = free_port()
    server = await asyncio.start_server(serve, "127.0.0.1", mine)
    try:
        yield mine
    finally:
        server.close()
        for end in ends:
            end.transport.abort()


@on_uvloop
async def test_a_redis_that_is_always_too_slow_is_left_alone_and_said_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    delay_s = [0.0]
    with redis_server() as server:
        async with (
            _slow_line(server.port, delay_s) as port,
            tier(RedisSettings(f"redis://127.0.0.1:{port}"), prefix=a_prefix(), deadline_ms=60) as l2,
            Load(l2).running() as load,
        ):
            await load.in_use()
            delay_s[0] = 0.09
            await _state(l2, State.DOWN)
            errors, commands = l2.counts.errors, l2.counts.commands
            failures = l2._lanes[0].breaker.delay_s
            await until(lambda: l2._lanes[0].breaker.delay_s > failures)  # a probe was too slow as well
            await load.more()
            assert (l2.state, l2.counts.commands) == (State.DOWN, commands)
            assert l2.counts.errors == errors, "slow is no error: the connection lives"
            delay_s[0] = 0.0
            await _state(l2, State.UP)
            await load.in_use()
        assert lines(caplog.records) == ["l2_down", "l2_up"]


@on_uvloop
async def test_a_redis_that_is_not_there_at_the_start_is_said_at_once_and_used_when_it_comes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with redis_server() as server:
        server.stop()
        async with tier(RedisSettings(server.url), prefix=a_prefix(), deadline_ms=50) as l2:
            l2.start()
            await _state(l2, State.DOWN)
            assert await l2.get(a_key()) is Lease.NONE
            assert not l2.put(a_key(), b"x", 1000)
            server.start()
            await _state(l2, State.UP)
            async with Load(l2).running() as load:
                await load.in_use()
        assert lines(caplog.records) == ["l2_down", "l2_up"]


@on_uvloop
async def test_a_wrong_password_is_an_outage_and_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "not-the-right-one"
    with redis_server(user=AclUser()) as server:
        settings = RedisSettings(server.url, username="penstock", password=secret)
        async with tier(settings, prefix=a_prefix(), deadline_ms=50) as l2:
            l2.start()
            await _state(l2, State.DOWN)
            assert await l2.get(a_key()) is Lease.NONE
        assert lines(caplog.records) == ["l2_down"]
        assert secret not in caplog.text
        assert secret not in repr(settings)


@on_uvloop
async def test_a_rule_that_forbids_a_command_is_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    user = AclUser(rules="~other:* -@all +evalsha +eval +mget +set")
    with redis_server(user=user) as server:
        settings = RedisSettings(server.url, username=user.name, password=user.password)
        async with tier(settings, prefix=a_prefix(), deadline_ms=50) as l2:
            l2.start()
            await _state(l2, State.DOWN)
        assert lines(caplog.records) == ["l2_down"]


@on_uvloop
async def test_what_finds_no_room_in_the_queue_is_dropped_and_counted() -> None:
    with redis_server() as server:
        async with tier(RedisSettings(server.url), prefix=a_prefix()) as l2:
            large = [a_key() for _ in range(40)]
            kept = [l2.put(key, an_entry(key, 1 << 20), 60_000) for key in large]
            assert kept.count(True) == 31  # 32 MiB, and an entry is a little more than its value
            await until(lambda: l2.counts.stored == 31)
            assert l2.counts.dropped == 9
            assert l2.put(large[-1], an_entry(large[-1]), 60_000), "there is room again"
            await until(lambda: l2.counts.stored == 32)
            assert not l2.put(large[0], os.urandom(3 << 20), 60_000), "longer than an entry may be"
            assert not l2.put(large[0], an_entry(large[0]), 0), "no life at all"


@on_uvloop
async def test_what_is_queued_at_the_end_is_still_stored() -> None:
    prefix, keys = a_prefix(), [a_key() for _ in range(300)]
    with redis_server() as server:
        settings = RedisSettings(server.url)
        async with tier(settings, prefix=prefix) as l2:
            for key in keys:
                assert l2.put(key, an_entry(key), 60_000)
        assert l2.counts.stored == 300
        assert await l2.get(keys[0]) is Lease.NONE
        async with tier(settings, prefix=prefix) as l2:
            assert all(isinstance(found, bytes) for found in [await l2.get(key) for key in keys])


@on_uvloop
async def test_closing_while_redis_hangs_answers_who_waits_and_ends() -> None:
    with redis_server() as server:
        async with tier(RedisSettings(server.url), prefix=a_prefix()) as l2:
            await l2.get(a_key())
            os.kill(server.pid, signal.SIGSTOP)
            waiting = [asyncio.create_task(l2.get(a_key())) for _ in range(10)]
            key = a_key()
            l2.put(key, an_entry(key), 60_000)
            await until(lambda: l2._lanes[0]._flying)
        server.resume()
        assert await asyncio.gather(*waiting) == [Lease.NONE] * 10
