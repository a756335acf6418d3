"""Generations of the configuration: numbers, files, differences."""

import os
import stat
from pathlib import Path

import pytest

from penstock.cache.layout import Geometry
from penstock.cache.segment import Segment
from penstock.gateway.config import Backend, Config, Listen, Log, Model, Workers, load
from penstock.workers import store


def _config(**models: list[str]) -> Config:
    return Config(
        models={n: Model(backends=tuple(Backend(url=u) for u in urls)) for n, urls in models.items()}
    )


def test_backends_keep_their_columns_as_long_as_they_exist() -> None:
    first = store.assign(_config(m=["http://a", "http://b"]), {})
    second = store.assign(_config(m=["http://b", "http://c"]), first)
    assert first == {"m\nhttp://a": 0, "m\nhttp://b": 1}
    assert second["m\nhttp://b"] == 1


def test_a_column_is_reused_only_when_the_generation_before_did_not_have_it() -> None:
    first = store.assign(_config(m=["http://a"]), {})
    second = store.assign(_config(m=["http://b"]), first)
    third = store.assign(_config(m=["http://c"]), second)
    assert (second["m\nhttp://b"], third["m\nhttp://c"]) == (1, 0)


def test_the_same_server_has_a_column_for_each_model() -> None:
    columns = store.assign(_config(m=["http://a"], n=["http://a"]), {})
    assert len(set(columns.values())) == 2


def test_no_free_column_is_refused_with_the_way_out() -> None:
    first = store.assign(_config(m=[f"http://a:{i + 1}" for i in range(200)]), {})
    with pytest.raises(store.Full, match="with the next reload"):
        store.assign(_config(m=[f"http://b:{i + 1}" for i in range(200)]), first)


def test_a_written_generation_is_read_back_and_private(tmp_path: Path) -> None:
    published = store.first(_config(m=["http://a"]))
    store.write(tmp_path, published)
    assert store.read(tmp_path, 1) == published
    assert [stat.S_IMODE(os.stat(path).st_mode) for path in tmp_path.iterdir()] == [0o600]


def test_old_generations_are_removed_and_the_last_few_stay(tmp_path: Path) -> None:
    published = store.first(_config(m=["http://a"]))
    for _ in range(6):
        store.write(tmp_path, published)
        published = store.following(published.config, published)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"config-{n}.msgpack" for n in (4, 5, 6)]


def test_a_damaged_or_renamed_file_is_refused(tmp_path: Path) -> None:
    store.write(tmp_path, store.first(_config(m=["http://a"])))
    (tmp_path / "config-1.msgpack").rename(tmp_path / "config-2.msgpack")
    with pytest.raises(ValueError, match="holds 1"):
        store.read(tmp_path, 2)
    (tmp_path / "config-2.msgpack").write_bytes(b"\xc1")
    with pytest.raises(ValueError, match="cannot be decoded"):
        store.read(tmp_path, 2)


def test_the_current_generation_is_the_one_that_the_segment_announces(tmp_path: Path) -> None:
    segment = Segment.create(None, Geometry(slots=2), owner_pid=1, owner_start=1)
    first = store.first(_config(m=["http://a"]))
    second = store.following(_config(m=["http://b"]), first)
    for published in (first, second):
        digest = store.write(tmp_path, published)
    segment.publish_generation(2, digest)
    assert store.read_current(tmp_path, segment) == second
    segment.close()


def test_differences_are_named_by_their_paths() -> None:
    old = Config(models={"m": Model(backends=(Backend(url="http://a"),))})
    new = Config(
        models={
            "m": Model(backends=(Backend(url="http://a"),), max_queue=5),
            "n": Model(backends=(Backend(url="http://b"),)),
        },
        listen=Listen(port=81, keep_alive_s=9),
        log=Log(level="DEBUG"),
        workers=Workers(drain_delay_s=1),
    )
    paths = store.changed(old, new)
    assert sorted(paths) == [
        "listen.keep_alive_s",
        "listen.port",
        "log.level",
        "models.m.max_queue",
        "models.n",
        "workers.drain_delay_s",
    ]
    assert store.needing(paths, store.RESTART) == ["listen.port"]
    assert store.needing(paths, store.ROLL) == ["listen.keep_alive_s"]
    assert store.changed(old, old) == []


def test_the_newest_generation_that_can_be_read_is_found_without_a_segment(tmp_path: Path) -> None:
    assert store.newest(tmp_path) is None
    first = store.first(_config(m=["http://a"]))
    store.write(tmp_path, first)
    second = store.following(_config(m=["http://b"]), first)
    store.write(tmp_path, second)
    assert store.newest(tmp_path) == second
    (tmp_path / "config-10.msgpack").write_bytes(b"cut off")
    assert store.newest(tmp_path) == second


def test_what_only_a_new_start_applies_stays_as_it_was_for_whoever_is_replaced() -> None:
    def written(**more: str) -> Config:
        keys = {"port": "80", "l2": "a", "ttl_s": "9", "limits": "a", "url": "http://a", **more}
        text = (
            "listen: {{port: {port}}}\nkeys: {{file: k}}\nlimits: {{redis: {{url: redis://{limits}}}}}\n"
            "cache: {{l1: {{size: 64MiB}}, l2: {{url: redis://{l2}, ttl_s: {ttl_s}}}}}\n"
            "models: {{m: {{backends: [{{url: '{url}'}}]}}}}"
        )
        return load(text.format(**keys), {})

    first = store.first(written())
    again = store.following(written(), first)
    assert again.source is None
    new = written(port="81", l2="b", ttl_s="7", limits="b", url="http://b")
    second = store.following(new, again)
    assert second.told == new
    assert second.config == written(ttl_s="7", url="http://b")
    assert store.following(new, second).config == second.config
    paths = store.changed(written(), new)
    assert store.needing(paths, store.RESTART) == ["listen.port", "limits.redis.url", "cache.l2.url"]
    gone = store.following(_config(m=["http://a"]), first)
    assert gone.config.cache.l2 == first.config.cache.l2
    assert store.following(written(), store.first(_config(m=["http://a"]))).config.cache.l2 is None
