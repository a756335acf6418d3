"""Loads by `penstock loadtest` that take longer: behind HAProxy, ended from outside, without their generator."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ..integration.test_loadtests import load, met
from ..support.gateway import with_environment
from ..support.procs import console_script, wait_until

pytestmark = pytest.mark.slow


def test_two_gateways_behind_haproxy_hit_as_one_does(tmp_path):
    status, said, report = load(tmp_path, "sustained", "--haproxy")
    assert report, said
    assert all(met(report).values()), said
    assert report["order"]["gateways"] == 2
    assert report["figures"]["hit_rate"] >= 0.4
    assert status in (0, 1)


@pytest.mark.parametrize("name", ["wrk", "constant"])
def test_a_plain_generator_is_judged_by_what_the_gateways_counted(tmp_path, name):
    status, said, report = load(tmp_path, name)
    assert report, said
    judged = met(report)
    assert judged["failures, by the gateway"], said
    assert ("p95 (answer, whole)" in judged) == (
        name == "constant"
    )  # as fast as answers come: none on latency
    assert ("hit rate, by the gateway" in judged) == (name == "wrk")  # one question: no hit rate
    told, gate = report["figures"]["requests"], sum(report["counts"]["gateway"].values())
    assert 10 < told <= gate <= told + 64  # what was under way at the end
    assert status in (0, 1)


def test_a_load_that_is_told_to_end_leaves_nothing_behind(tmp_path):
    mark = str(tmp_path / "mark")
    argv = [console_script(), "loadtest", "sustained", "--rate", "0.001", "--out", str(tmp_path)]
    process = subprocess.Popen(
        argv, env={**os.environ, "LOADTEST_MARK": mark}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        # simulators, the gateway's processes and k6
        wait_until(
            lambda: any("k6" in name(pid) for pid in with_environment("LOADTEST_MARK", mark)), 60, "k6 runs"
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not with_environment("LOADTEST_MARK", mark), 20, "all are gone")


def name(pid):
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


def test_a_generator_that_is_not_there_is_one_line(tmp_path):
    empty = tmp_path / "bin"
    empty.mkdir()
    program = (
        "import sys; from penstock.loadtests.suite.main import loadtest; sys.exit(loadtest(sys.argv[1:]))"
    )
    link = empty / "python"
    link.symlink_to(sys.executable)
    done = subprocess.run(
        [
            str(sys.executable),
            "-c",
            f"import sys; sys.executable = {str(link)!r}\n{program}",
            "spike",
            "--out",
            str(tmp_path),
        ],
        env={**os.environ, "PATH": str(empty)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("penstock loadtest: k6 is not installed")
    assert done.stderr.count("\n") == 1
