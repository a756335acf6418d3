"""Generations of keys: rows that stay, files that are private, changes that outlive whoever made them."""

import asyncio
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.cache.layout import Geometry
from penstock.cache.segment import Segment
from penstock.gateway.config import Keys
from penstock.gateway.keys import MAX_KEYS, Key, PublishedKeys, hashed
from penstock.workers.keys import published
from penstock.workers.keys import sync as module
from penstock.workers.keys.latest import AGAIN_S, LatestKeys
from penstock.workers.keys.source import Listener
from penstock.workers.keys.sync import KeysSync
from tests.support.procs import wait_until

SOURCE = Keys(file="/k")


@pytest.fixture
def segment() -> Iterator[Segment]:
    one = Segment.create(None, Geometry(slots=1, keys=MAX_KEYS), owner_pid=1, owner_start=1)
    yield one
    one.close()


class Silent:
    """A source that a test speaks for."""

    name = "test"

    def once(self) -> dict[str, Key]:
        raise AssertionError

    def add(self, id: str, key: Key, check: object) -> None:
        raise AssertionError

    def remove(self, id: str) -> bool:
        raise AssertionError

    async def follow(self, listener: Listener) -> None:
        raise AssertionError


def keys(*limited: str, free: tuple[str, ...] = ()) -> dict[str, Key]:
    found = {id: Key(hash=hashed(id), tenant="t", rpm=1) for id in limited}
    return found | {id: Key(hash=hashed(id), tenant="t") for id in free}


def test_limited_keys_alone_have_rows_and_keep_them() -> None:
    first = published.following(keys("a", "b", free=("c",)), published.unknown(SOURCE))
    assert first.rows == {"a": 0, "b": 1}
    second = published.following(keys("b", "d"), first)
    assert second.rows["b"] == 1
    assert second.rows["d"] not in first.rows.values(), "nobody gets a row that was somebody's a moment ago"
    third = published.following(keys("b", "d", "e"), second)
    assert third.rows == {**second.rows, "e": 0}
    assert (first.generation, third.generation) == (2, 4)


def test_keys_without_room_are_left_out_and_the_others_keep_their_rows() -> None:
    ids = [f"k{n:04}" for n in range(MAX_KEYS)]
    full = published.following(keys(*ids), published.unknown(SOURCE))
    assert len(full.rows) == MAX_KEYS
    more = published.following(keys("a", *ids[1:], free=("z",)), full)
    assert more.keys is not None
    assert "a" not in more.keys, "its row would be one that was another's a moment ago"
    assert "z" in more.keys
    assert all(more.rows[id] == full.rows[id] for id in ids[1:])
    again = published.following(keys("a", *ids[1:], free=("z",)), more)
    assert again.rows["a"] == full.rows[ids[0]]


def test_files_are_private_hold_no_secret_and_old_ones_go(tmp_path: Path, segment: Segment) -> None:
    one = published.unknown(SOURCE)
    for _ in range(5):
        one = published.following(keys("secret"), one)
        published.write(tmp_path, one)
        segment.publish_keys(one.generation)
    assert published.read_current(tmp_path, segment) == one
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"keys-{n}.msgpack" for n in (4, 5, 6)]
    assert {stat.S_IMODE(os.stat(path).st_mode) for path in tmp_path.iterdir()} == {0o600}


def sync(tmp_path: Path, segment: Segment, last: PublishedKeys | None = None) -> KeysSync:
    if last is None:
        last = published.unknown(SOURCE)
        published.write(tmp_path, last)
        segment.publish_keys(last.generation)
    return KeysSync(tmp_path, segment, last, Silent())


def test_a_worker_sees_each_generation_once(tmp_path: Path, segment: Segment) -> None:
    control = sync(tmp_path, segment)
    worker = LatestKeys(tmp_path, segment)
    assert worker.first.keys is None
    assert worker.news(0.0) is None
    control.found(keys("a"))
    news = worker.news(0.0)
    assert news is not None
    assert (news.keys, news.generation) == (keys("a"), 2)
    assert worker.news(0.0) is None
    control.found(keys("a"))
    assert (worker.news(0.0), segment.keys_generation) == (None, 2), "what is the same is not published"


def test_a_worker_that_cannot_read_keeps_what_it_has_says_so_once_and_tries_again(
    tmp_path: Path, segment: Segment, caplog: pytest.LogCaptureFixture
) -> None:
    control = sync(tmp_path, segment)
    worker = LatestKeys(tmp_path, segment)
    control.found(keys("a"))
    file = tmp_path / "keys-2.msgpack"
    good = file.read_bytes()
    file.write_bytes(good[:-1])
    assert worker.news(0.0) is None
    assert worker.news(AGAIN_S / 2) is None
    assert worker.news(AGAIN_S) is None
    assert caplog.text.count("keys_kept") == 1
    file.write_bytes(good)
    assert worker.news(2.5 * AGAIN_S) is not None


def test_a_controller_killed_after_writing_and_before_publishing_is_followed_by_one_that_publishes(
    tmp_path: Path, segment: Segment
) -> None:
    sync(tmp_path, segment).found(keys("a", "b"))
    last = published.read_current(tmp_path, segment)
    published.write(tmp_path, published.following(keys("a", "x"), last))  # and then it was killed
    (tmp_path / "keys-3.new").write_bytes(b"half a file")
    worker = LatestKeys(tmp_path, segment)
    assert worker.first.keys == keys("a", "b"), "what was not announced does not count"
    heir = KeysSync(tmp_path, segment, published.read_current(tmp_path, segment), Silent())
    heir.found(keys("b"))
    news = worker.news(0.0)
    assert news is not None
    assert (news.keys, news.rows) == (keys("b"), {"b": last.rows["b"]})


def test_a_source_in_trouble_changes_nothing_and_is_said_once(
    tmp_path: Path, segment: Segment, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    control = sync(tmp_path, segment)
    control.lost("no such file")
    assert "keys_unknown" in caplog.text
    control.found(keys("a"))
    for why in ("broken", "broken", "worse"):
        control.lost(why)
    assert segment.keys_generation == 2
    assert [caplog.text.count(word) for word in ("keys_kept", "broken", "worse")] == [2, 1, 1]
    assert control.report() == {
        "source": "test",
        "generation": 2,
        "known": True,
        "readable": False,
        "keys": 1,
        "limited": 1,
        "left_out": 0,
    }
    control.unchanged()
    assert control.report()["readable"] is True


async def test_what_could_not_be_written_or_was_removed_is_written_later(
    tmp_path: Path, segment: Segment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MIND_S", 0.001)
    folder = tmp_path / "run"
    folder.mkdir()
    control = sync(folder, segment)
    aside = folder.rename(tmp_path / "aside")
    control.found(keys("a"))
    assert segment.keys_generation == 1
    assert "keys_not_written" in caplog.text
    minding = asyncio.ensure_future(control._minding())
    aside.rename(folder)
    await asyncio.to_thread(wait_until, lambda: segment.keys_generation == 2, 20, "published")
    (folder / "keys-2.msgpack").unlink()
    await asyncio.to_thread(wait_until, (folder / "keys-2.msgpack").exists, 20, "put back")
    minding.cancel()
    assert published.read_current(folder, segment).keys == keys("a")


def test_a_gateway_without_keys_has_nothing_to_follow(tmp_path: Path) -> None:
    plain = Segment.create(None, Geometry(slots=1), owner_pid=1, owner_start=1)
    assert KeysSync.of(tmp_path, plain, SOURCE, {}) is None
    plain.close()
