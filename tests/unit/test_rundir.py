"""Run directories: whose they are, and what becomes of a dead one's."""

import os
import stat
from pathlib import Path

import pytest

from penstock.cache.segment import process_start
from penstock.workers import rundir


def _owner(pid: int | None = None, start: int | None = None, port: int = 8080) -> rundir.Owner:
    pid = os.getpid() if pid is None else pid
    file = "/etc/penstock.yaml"
    return rundir.Owner(pid, process_start(pid) or 0 if start is None else start, file, port, file)


def test_a_run_directory_is_private_and_says_whose_it_is(tmp_path: Path) -> None:
    folder = rundir.create(tmp_path, _owner(), "0.0.0.0", None)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert rundir.read_owner(folder) == _owner()
    assert [found for found, _ in rundir.running(tmp_path)] == [folder]


def test_the_directory_of_a_gateway_that_runs_is_not_taken(tmp_path: Path) -> None:
    rundir.create(tmp_path, _owner(), "0.0.0.0", None)
    with pytest.raises(rundir.Owned):
        rundir.create(tmp_path, _owner(), "0.0.0.0", None)


def test_other_ports_and_addresses_have_their_own_directories(tmp_path: Path) -> None:
    made = {
        rundir.create(tmp_path, _owner(), "0.0.0.0", None),
        rundir.create(tmp_path, _owner(port=8081), "0.0.0.0", None),
        rundir.create(tmp_path, _owner(), "127.0.0.1", None),
        rundir.create(tmp_path, _owner(), "0.0.0.0", "/run/p.sock"),
    }
    assert len(made) == 4


def test_a_start_removes_what_dead_gateways_left_behind(tmp_path: Path) -> None:
    # this pid lives, but with another start time: the pid was reused
    dead = rundir.create(tmp_path, _owner(start=1), "0.0.0.0", None)
    (dead / "segment").write_bytes(b"old")
    other = rundir.create(tmp_path, _owner(start=1, port=9), "0.0.0.0", None)
    assert not dead.exists()
    (other / "segment").write_bytes(b"old")
    again = rundir.create(tmp_path, _owner(port=9), "0.0.0.0", None)
    assert again == other
    assert not (again / "segment").exists()


def test_a_directory_without_an_owner_is_left_alone_unless_it_bears_our_name(tmp_path: Path) -> None:
    mine = rundir.create(tmp_path, _owner(), "0.0.0.0", None)
    other = rundir.create(tmp_path, _owner(port=9), "0.0.0.0", None)
    (mine / "owner").unlink()
    (other / "owner").unlink()
    assert rundir.create(tmp_path, _owner(), "0.0.0.0", None) == mine
    assert other.exists()
