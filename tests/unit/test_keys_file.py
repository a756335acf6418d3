"""The file of keys: read as people write it, refused in one line without a value, never half written or lost."""

import asyncio
import datetime
import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.gateway.keys import Key, hashed
from penstock.workers import file_watch
from penstock.workers.keys import file as module
from penstock.workers.keys.file import KeysFile
from penstock.workers.keys.text import BadKeys, NoKeys, dump, pack, parse, unpack
from tests.support.procs import wait_until

HASH = hashed("one")
GOOD = f"keys:\n  k1:\n    hash: {HASH}\n    tenant: acme\n"


def nothing(_: dict[str, Key]) -> None:
    """No objection."""


def test_what_is_written_is_read_back_sorted_and_in_the_fewest_words() -> None:
    full = Key(
        hash=hashed("two"),
        tenant="b",
        models=("m", "n"),
        rpm=1,
        tpm=2,
        concurrent=3,
        burst=4,
        priority=-5,
        weight=0.5,
        expires=datetime.datetime(2030, 1, 2, 3, 4, 5, tzinfo=datetime.UTC),
        created=datetime.datetime(2029, 1, 1, tzinfo=datetime.UTC),
    )
    keys = {"k2": full, "k1": Key(hash=HASH, tenant="acme")}
    text = dump(keys)
    assert parse("f", text) == keys
    assert text.index("k1:") < text.index("k2:")
    assert text.split("k2:")[0].count("\n") == 5, "what is as by default is not written"
    assert {id: unpack("r", pack(key)) for id, key in keys.items()} == keys


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2030-01-02", (2030, 1, 2)),
        ("2030-01-02 03:04:05", (2030, 1, 2, 3, 4, 5)),
        ("2030-01-02T03:04:05+02:00", (2030, 1, 2, 1, 4, 5)),
        ('"2030-01-02T03:04:05Z"', (2030, 1, 2, 3, 4, 5)),
    ],
)
def test_times_may_be_written_as_people_do(written: str, meant: tuple[int, ...]) -> None:
    key = parse("f", f"{GOOD}    expires: {written}\n")["k1"]
    assert key.expires == datetime.datetime(*meant, tzinfo=datetime.UTC)  # type: ignore[misc,arg-type]


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.5-14:00"])
def test_a_time_that_cannot_be_sent_on_is_refused_in_redis_too(time: str) -> None:
    data = f'{{"hash":"{HASH}","tenant":"a","expires":"{time}"}}'.encode()
    with pytest.raises(BadKeys):
        unpack("r", data)


SECRET = "sk-penstock-should-not-be-said"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        ("- a", "not a mapping"),
        ("keys: {", "not YAML"),
        ("kees: {}", "unknown key `kees`"),
        ("keys:", "`keys:` with keys below it is missing"),
        ("keys: []", "`keys:` with keys below it is missing"),
        ("keys: {k1: }", "keys.k1: nothing follows"),
        ('keys: {"a b": {}}', "keys.a b: not an id"),
        (f"{GOOD}  k1: {{}}", "given twice"),
        (f"{GOOD}  k2:\n    hash: {HASH}\n    tenant: b\n", "keys.k2: the same hash as k1"),
        ("keys: {k1: {tenant: a}}", "missing required field `hash`"),
        (f"keys: {{k1: {{hash: {SECRET}, tenant: a}}}}", "keys.k1: hash: Expected `str` matching"),
        (f"keys: {{k1: {{hash: {HASH}}}}}", "missing required field `tenant`"),
        (f"keys: {{k1: {{hash: '{HASH}', tenant: 'a b'}}}}", "tenant: Expected `str` matching"),
        (f"{GOOD}    concurent: 3\n", "keys.k1: unknown field `concurent`; did you mean `concurrent`?"),
        (f"{GOOD}    rpm: -1\n", "rpm: Expected `int` >= 0"),
        (f"{GOOD}    rpm: many\n", "rpm: Expected `int`"),
        (f"{GOOD}    weight: 0\n", "weight: Expected `float` > 0"),
        (f"{GOOD}    weight: .nan\n", "weight"),
        (f"{GOOD}    models: []\n", "models: Expected `array` of length >= 1"),
        (f"{GOOD}    models: m\n", "models: Expected `array"),
        (f"{GOOD}    expires: soon\n", "expires: "),
        *(
            (f"{GOOD}    {name}: {quote}{time}{quote}\n", "not a time between the years")
            for name in ("expires", "created")
            for quote in ("", '"')
            for time in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "9999-12-31T23:59:59Z")
        ),
        (f"{GOOD}    expires: 0000-01-01\n", "year|expires"),
        ("a: &a [x,x,x,x,x,x,x,x]\n" * 1 + "keys: &k {k: *k}", "unknown|itself|alias"),
        ("x" * (1 << 20) + "y", "larger than 1 MiB"),
    ],
)
def test_a_broken_file_is_refused_in_one_line_that_says_where_and_no_value(text: str, said: str) -> None:
    with pytest.raises(BadKeys) as caught:
        parse("keys.yaml", text)
    line = str(caught.value)
    assert any(one in line for one in said.split("|")), line
    assert "\n" not in line
    assert SECRET not in line
    assert len(line) < 400


def test_a_new_file_is_private_and_one_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    keys = KeysFile(str(path))
    with pytest.raises(NoKeys):
        keys.once()
    keys.add("k1", Key(hash=HASH, tenant="acme"), nothing)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o646)
    keys.add("k2", Key(hash=hashed("two"), tenant="b"), nothing)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640, "its group may read it still, others may not"
    assert list(keys.once()) == ["k1", "k2"]
    assert (keys.remove("k1"), keys.remove("k1"), list(keys.once())) == (True, False, ["k2"])
    assert [one.name for one in tmp_path.iterdir()] == ["keys.yaml"]


def test_a_link_stays_one_and_what_it_leads_to_is_changed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "keys.yaml"
    link.symlink_to("elsewhere/real.yaml")
    KeysFile(str(link)).add("k1", Key(hash=HASH, tenant="acme"), nothing)
    assert link.is_symlink()
    assert list(KeysFile(str(tmp_path / "elsewhere/real.yaml")).once()) == ["k1"]


def test_a_broken_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text("keys: {")
    with pytest.raises(BadKeys):
        KeysFile(str(path)).add("k1", Key(hash=HASH, tenant="acme"), nothing)
    assert path.read_text() == "keys: {"


def test_who_dies_while_writing_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(GOOD)

    def dies(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", dies)
    with pytest.raises(BadKeys, match="No space left"):
        KeysFile(str(path)).add("k2", Key(hash=hashed("two"), tenant="b"), nothing)
    assert path.read_text() == GOOD
    assert [one.name for one in tmp_path.iterdir()] == ["keys.yaml"]


def test_commands_at_the_same_time_lose_nothing_of_one_another(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    code = (
        "import sys\n"
        "from penstock.gateway.keys import Key, hashed\n"
        "from penstock.workers.keys.file import KeysFile\n"
        "for n in range(8):\n"
        "    id = f'k{sys.argv[2]}-{n}'\n"
        "    KeysFile(sys.argv[1]).add(id, Key(hash=hashed(id), tenant='a'), lambda _: None)\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(path), str(n)]) for n in range(4)]
    assert [one.wait(60) for one in running] == [0] * 4
    assert len(KeysFile(str(path)).once()) == 32


def test_a_lock_that_is_never_given_back_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOCK_S", 0.0)
    holder = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(BadKeys, match="another command"):
            KeysFile(str(tmp_path / "k")).add("k1", Key(hash=HASH, tenant="a"), nothing)
    finally:
        os.close(holder)


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.said: list[object] = []

    def found(self, keys: dict[str, Key]) -> None:
        self.said.append(sorted(keys))

    def unchanged(self) -> None:
        self.said.append("unchanged")

    def lost(self, why: str) -> None:
        self.said.append(why)


async def test_a_follower_reads_once_for_each_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUND_S", 0.005)
    path = tmp_path / "keys.yaml"
    heard = Heard()
    following = asyncio.ensure_future(KeysFile(str(path)).follow(heard))

    async def until(count: int) -> None:
        await asyncio.to_thread(wait_until, lambda: len(heard.said) >= count, 20, f"{count}: {heard.said}")

    await until(1)
    KeysFile(str(path)).add("k1", Key(hash=HASH, tenant="acme"), nothing)
    await until(2)
    path.write_text("keys: {")  # in place
    await until(3)
    path.write_text("keys: {}")
    await until(4)
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following
    assert len(heard.said) == 4
    assert "no keys yet" in str(heard.said[0])
    assert heard.said[1] == ["k1"]
    assert "not YAML" in str(heard.said[2])
    assert heard.said[3] == []


async def test_a_file_that_is_being_written_is_read_when_it_is_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An editor writes in place, in pieces: what lies between two of them may look like fewer keys."""
    monkeypatch.setattr(module, "ROUND_S", 0.0)
    begin, half, whole, replaced = (0, 1, 9, 1, 1), (0, 1, 4, 2, 2), (0, 1, 8, 3, 3), (0, 2, 8, 4, 4)
    looks = [begin, half, whole, whole, replaced, replaced]
    read: list[tuple[int, ...]] = []

    last = begin

    def stamp_of(_: Path) -> tuple[int, int, int, int, int]:
        nonlocal last
        if looks:
            last = looks.pop(0)
        return last

    class Scripted(KeysFile):
        def once(self) -> dict[str, Key]:
            read.append(last)
            return {}

    monkeypatch.setattr(file_watch, "stamp_of", stamp_of)

    following = asyncio.ensure_future(Scripted(str(tmp_path / "k")).follow(Heard()))
    await asyncio.to_thread(wait_until, lambda: not looks, 20, "all looks")
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following
    assert read == [begin, whole, replaced]
