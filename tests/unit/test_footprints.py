"""What was learned of servers: kept over restarts, apart for each way of running a model, and never trusted blindly."""

from pathlib import Path

import msgspec
import pytest

from penstock.gateway.config.pool import DockerPool, ProcessPool
from penstock.workers.pools.footprints import MOST_BYTES, MOST_ENTRIES, Footprint, Footprints, key_of

GIB = 1 << 30
POOL = ProcessPool(command=("vllm", "serve", "m"))


def test_what_was_learned_survives_a_restart(tmp_path: Path):
    first = Footprints(tmp_path / "f")
    assert first.saw("k", 3 * GIB)
    assert first.saw("k", GIB, asleep=True)
    first.took("k", "start", 40.0)
    first.took("k", "drain", 2.5)
    again = Footprints(tmp_path / "f").of("k")
    assert again == Footprint(need=3 * GIB, asleep=GIB, start=[40.0], drain=[2.5])


def test_memory_is_the_most_that_was_seen(tmp_path: Path):
    kept = Footprints(tmp_path / "f")
    assert kept.saw("k", 3 * GIB)
    assert not kept.saw("k", 2 * GIB)
    assert kept.saw("k", 4 * GIB)
    assert kept.of("k").need == 4 * GIB


def test_of_durations_the_last_ten_are_kept(tmp_path: Path):
    kept = Footprints(tmp_path / "f")
    for seconds in range(13):
        kept.took("k", "wake", float(seconds))
    assert Footprints(tmp_path / "f").of("k").wake == [float(i) for i in range(3, 13)]


@pytest.mark.parametrize(
    "other",
    [
        msgspec.structs.replace(POOL, command=("vllm", "serve", "m", "--max-model-len", "4096")),
        msgspec.structs.replace(POOL, env={"A": "b"}),
        msgspec.structs.replace(POOL, gpus=2),
        msgspec.structs.replace(POOL, sleep_after_s=5.0),
        DockerPool(image="vllm"),
    ],
    ids=["command", "env", "gpus", "sleep", "docker"],
)
def test_another_way_of_running_it_is_learned_anew(other: ProcessPool):
    assert key_of("m", other) != key_of("m", POOL)


def test_terms_that_do_not_touch_the_server_change_nothing():
    other = msgspec.structs.replace(POOL, idle_timeout_s=7.0, min=1, max=3, memory=GIB, group="g", keep=True)
    assert key_of("m", other) == key_of("m", POOL)
    assert key_of("n", POOL) != key_of("m", POOL)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"version":2,"pools":{}}',
        b'{"pools":{"k":{"need":-1}}}',
        b'{"pools":{"k":{"need":1e400}}}',
        b'{"pools":{"k":{"start":["x"]}}}',
        b'{"pools":{"k":{"start":[1,1,1,1,1,1,1,1,1,1,1]}}}',
        b"[" * 100_000,
        b'{"pools":{}}' + b" " * MOST_BYTES,
        b"\xff\xfe",
    ],
    ids=["empty", "cut", "list", "version", "negative", "endless", "text", "many", "deep", "large", "bytes"],
)
def test_a_file_that_makes_no_sense_is_left_out_and_written_anew(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "f").write_bytes(content)
    kept = Footprints(tmp_path / "f")
    assert "footprints_not_read" in caplog.text
    assert kept.of("k") == Footprint()
    kept.saw("k", GIB)
    assert Footprints(tmp_path / "f").of("k").need == GIB


def test_entries_are_bounded_and_those_used_last_stay(tmp_path: Path):
    kept = Footprints(tmp_path / "f")
    kept.saw("first", GIB)
    for i in range(MOST_ENTRIES - 1):
        kept._entry(f"k{i}")
    kept.saw("first", 2 * GIB)
    kept.saw("one more", GIB)
    again = Footprints(tmp_path / "f")
    assert again.of("first").need == 2 * GIB
    assert again.of("one more").need == GIB
    assert again.of("k0") == Footprint()


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    kept = Footprints(tmp_path / "away" / "f")
    assert kept.saw("k", GIB)
    assert kept.of("k").need == GIB
    assert "footprints_not_written" in caplog.text


def test_what_a_crash_left_half_written_is_in_nobodys_way(tmp_path: Path):
    (tmp_path / "f.new").write_bytes(b"half")
    kept = Footprints(tmp_path / "f")
    kept.saw("k", GIB)
    assert Footprints(tmp_path / "f").of("k").need == GIB
    assert not (tmp_path / "f.new").exists()
