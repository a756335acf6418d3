"""Keys in a real Redis: changes are noticed with and without messages; whatever happens to it lets nobody in."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from penstock.cache.redis_client import RedisSettings
from penstock.gateway.keys import Key, hashed
from penstock.workers.keys import far as module
from penstock.workers.keys.far import KeysRedis
from penstock.workers.keys.text import BadKeys, NoKeys
from tests.support.procs import wait_until
from tests.support.redis import AclUser, RedisServer, redis_server

ONE, TWO = (Key(hash=hashed(name), tenant="a") for name in ("one", "two"))


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.ids: list[str] | None = None
        self.why = ""
        self.said = 0

    def found(self, keys: dict[str, Key]) -> None:
        self.ids, self.why = sorted(keys), ""
        self.said += 1

    def unchanged(self) -> None:
        self.why = ""

    def lost(self, why: str) -> None:
        self.why = why


def keys_in(server: RedisServer, **more: str) -> KeysRedis:
    return KeysRedis(RedisSettings(server.url, **more), "penstock", os.urandom)  # type: ignore[arg-type]


def no_objection(_: dict[str, Key]) -> None:
    """None."""


async def add(keys: KeysRedis, id: str, key: Key) -> None:
    await asyncio.to_thread(keys.add, id, key, no_objection)


async def until(what: Callable[[], object]) -> None:
    await asyncio.to_thread(wait_until, what, 20, "what was told")


@asynccontextmanager
async def following(keys: KeysRedis) -> AsyncIterator[Heard]:
    heard = Heard()
    task = asyncio.ensure_future(keys.follow(heard))
    try:
        yield heard
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_change_is_noticed_by_message_long_before_the_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 3600.0)
    with redis_server() as server:
        keys = keys_in(server)
        await add(keys, "k1", ONE)
        async with following(keys) as heard:
            await until(lambda: heard.ids == ["k1"])
            await until(lambda: server.command("PUBSUB", "NUMSUB", "penstock:keys")[1] == 1)
            await add(keys_in(server), "k2", TWO)
            await until(lambda: heard.ids == ["k1", "k2"])
            assert await asyncio.to_thread(keys.remove, "k1")
            await until(lambda: heard.ids == ["k2"])


async def test_without_messages_and_hdel_the_poll_and_a_mark_are_enough(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The user may do no more than the documents say that he must."""
    user = AclUser(rules="~penstock:* -@all +hget +hgetall +hset +ping +select")
    with redis_server(user=user) as server:
        keys = keys_in(server, username=user.name, password=user.password)
        async with following(keys) as heard:
            await until(lambda: "there are no keys yet" in heard.why)
            await add(keys, "k1", ONE)
            await until(lambda: heard.ids == ["k1"])
            assert await asyncio.to_thread(keys.remove, "k1")
            await until(lambda: heard.ids == [])
            assert not await asyncio.to_thread(keys.remove, "k1")
        assert server.command("HGET", "penstock:keys", "k1") == b""
        assert "key_ignored" not in caplog.text


async def test_what_has_not_changed_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.005)
    with redis_server() as server:
        keys = keys_in(server)
        await add(keys, "k1", ONE)
        async with following(keys) as heard:
            await until(lambda: heard.said)
            server.command("CONFIG", "RESETSTAT")
            await until(lambda: server.calls("hget") > 10)
            assert server.calls("hgetall") == 0
        assert heard.said == 1


async def test_a_field_that_cannot_be_understood_keeps_no_other_key_from_being_revoked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with redis_server() as server:
        keys = keys_in(server)
        await add(keys, "k1", ONE)
        await add(keys, "k2", TWO)
        server.command("HSET", "penstock:keys", "bad", '{"hash":"sk-secret","tenant":"a"}', "worse", b"\xff")
        async with following(keys) as heard:
            await until(lambda: heard.ids == ["k1", "k2"])
            await asyncio.to_thread(keys.remove, "k1")
            await until(lambda: heard.ids == ["k2"])
    assert caplog.text.count("key_ignored") == 2
    assert "sk-secret" not in caplog.text


async def test_a_redis_that_goes_and_comes_back_empty_tells_of_trouble_and_of_no_keys() -> None:
    with redis_server() as server:
        keys = keys_in(server)
        await add(keys, "k1", ONE)
        async with following(keys) as heard:
            await until(lambda: heard.ids == ["k1"])
            server.stop()
            await until(lambda: heard.why)
            server.start()
            await until(lambda: "there are no keys yet" in heard.why)
            assert (heard.ids, heard.said) == (["k1"], 1)
            server.command("HSET", "penstock:keys", "version", "x")
            await until(lambda: heard.ids == [])


def test_commands_say_in_one_line_what_is_wrong() -> None:
    with redis_server() as server:
        keys = keys_in(server)
        with pytest.raises(NoKeys):
            keys.once()
        assert not keys.remove("k1")
        keys.add("k1", ONE, no_objection)
        assert keys.once() == {"k1": ONE}
        server.command("DEL", "penstock:keys")
        server.command("SET", "penstock:keys", "x")
        with pytest.raises(BadKeys, match="WRONGTYPE"):
            keys.once()

        def objection(_: dict[str, Key]) -> None:
            raise BadKeys("k2", "no")

        server.command("DEL", "penstock:keys")
        with pytest.raises(BadKeys, match="k2: no"):
            keys.add("k2", TWO, objection)
        assert server.command("EXISTS", "penstock:keys") == 0
    with pytest.raises(BadKeys, match="Connect"):
        keys.once()


@pytest.mark.parametrize(("policy", "said"), [("allkeys-lru", 1), ("noeviction", 0)])
async def test_a_redis_that_may_drop_keys_is_warned_of(
    caplog: pytest.LogCaptureFixture, policy: str, said: int
) -> None:
    with redis_server(maxmemory_policy=policy) as server:
        keys = keys_in(server)
        await add(keys, "k1", ONE)
        async with following(keys) as heard:
            await until(lambda: heard.ids)
            await until(lambda: server.calls("config|get") == 1)
    assert caplog.text.count("keys_evictable") == said
