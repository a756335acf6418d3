"""Settings of Redis: what cannot be used is refused in one line that shows no secret."""

import asyncio
from pathlib import Path

import pytest
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.crc import key_slot

from penstock.cache.l2 import TAGS
from penstock.cache.redis_client import RedisSettings, client, close

from ..support.redis import AclUser


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (RedisSettings("http://host"), "must begin with redis://"),
        (RedisSettings("redis://user:secret@host"), "must not hold credentials"),
        (RedisSettings("redis://:secret@host:1/0"), "must not hold credentials"),
        (RedisSettings("redis://"), "names no host"),
        (RedisSettings("redis://host/secret"), "no number for its database"),
        (RedisSettings("unix:///x?db=secret"), "no number for its database"),
        (RedisSettings("redis://host:secret"), "no port"),
        (RedisSettings("redis://host:70000"), "no port"),
        (RedisSettings("redis://host", "sentinel"), "needs nodes"),
        (RedisSettings("redis://host", "sentinel", ("secret@host:1",)), "must be written host:port"),
        (RedisSettings("redis://host", "cluster", ("host:secret",)), "must be written host:port"),
        (RedisSettings("redis://host/1", "cluster"), "database 0 alone"),
        (RedisSettings("unix:///x", "cluster"), "not a unix socket"),
    ],
)
def test_what_cannot_be_used_is_refused_without_showing_it(settings: RedisSettings, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refusal:
        client(settings)
    assert "secret" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


async def test_a_url_means_what_it_says() -> None:
    single = client(RedisSettings("redis://host:7000/3", username="u", password="p"))
    assert isinstance(single, Redis)
    options = single.connection_pool.connection_kwargs
    assert [options[name] for name in ("host", "port", "db", "username", "password")] == [
        "host",
        7000,
        3,
        "u",
        "p",
    ]
    unix = client(RedisSettings("unix:///run/redis.sock?db=2", password="p"))
    options = unix.connection_pool.connection_kwargs
    assert [options[name] for name in ("path", "db", "password")] == ["/run/redis.sock", 2, "p"]
    named = client(RedisSettings("rediss://[::1]", ca="/ca.pem", cert="/c.pem", key="/k.pem"))
    options = named.connection_pool.connection_kwargs
    assert [options[name] for name in ("host", "port", "db")] == ["::1", 6379, 0]
    assert [options[f"ssl_{name}"] for name in ("ca_certs", "certfile", "keyfile")] == [
        "/ca.pem",
        "/c.pem",
        "/k.pem",
    ]
    for one in (single, unix, named):
        await close(one)


async def test_sentinels_are_asked_without_the_servers_password() -> None:
    master = client(RedisSettings("redis://mine", "sentinel", ("a:1", "b"), "u", "p"))
    pool = master.connection_pool
    assert isinstance(pool, SentinelConnectionPool)
    assert (pool.service_name, pool.connection_kwargs["password"]) == ("mine", "p")
    watchers = [sentinel.connection_pool.connection_kwargs for sentinel in pool.sentinel_manager.sentinels]
    assert [(watcher["host"], watcher["port"]) for watcher in watchers] == [("a", 1), ("b", 26379)]
    assert all(watcher.get("password") is None for watcher in watchers)
    await close(master)


async def test_every_node_of_a_cluster_is_a_place_to_start_from() -> None:
    cluster = client(RedisSettings("redis://127.0.0.1:1", "cluster", ("127.0.0.1:2", "127.0.0.1:3")))
    assert isinstance(cluster, RedisCluster)
    assert sorted(node.port for node in cluster.startup_nodes) == [1, 2, 3]
    await close(cluster)


def test_settings_show_no_password() -> None:
    assert "secret" not in repr(RedisSettings("redis://host", password="secret"))


@pytest.mark.parametrize("masters", [1, 2, 3, 4, 5, 6, 8, 16])
def test_each_master_of_a_cluster_gets_its_part_of_the_tags(masters: int) -> None:
    owned = [key_slot(tag.encode()) * masters // 16384 for tag in TAGS]
    counts = [owned.count(master) for master in range(masters)]
    assert max(counts) - min(counts) <= 1


def test_no_loop_is_needed_to_make_a_client() -> None:
    made = client(RedisSettings("redis://host"))
    asyncio.run(close(made))


def test_the_manual_gives_the_rights_that_the_tests_run_with() -> None:
    manual = Path(__file__).parents[2] / "docs" / "redis.md"
    assert AclUser().rules in manual.read_text().splitlines()
