"""The quick start's commands, run as they stand there, in their order, by one shell."""

import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..support.gateway import with_environment
from ..support.procs import Proc, console_script, free_port

PAGE = Path(__file__).parents[2] / "docs" / "quickstart.md"
STEP = re.compile(r"(?ms)^<!-- run -->\n```sh\n(.*?)^```$")
PORTS = ("8080", "9090", "8000", "6379")


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """What each step printed."""
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server here")
    folder = tmp_path_factory.mktemp("quickstart")
    script = "echo\n".join(f"echo '@@@'\n{step}" for step in STEP.findall(PAGE.read_text()))
    for port in PORTS:
        script = script.replace(port, str(free_port()))
    # as it is written, but for one worker and for not waiting for a balancer that is not there
    script = script.replace("admin: {port", "workers: {count: 1, drain_delay_s: 0}\nadmin: {port")
    env = {
        "PATH": f"{Path(console_script()).parent}:{os.environ['PATH']}",
        "XDG_STATE_HOME": str(folder / "state"),
    }
    shell = Proc(["bash", "-ec", script], name="quickstart", env=env, cwd=folder)
    try:
        with shell:
            assert shell.wait() == 0, shell.tail()
            yield shell.log().split("@@@\n")[1:]
    finally:
        for pid in with_environment("XDG_STATE_HOME", env["XDG_STATE_HOME"]):
            os.kill(pid, signal.SIGKILL)


def test_a_first_answer(said: list[str]) -> None:
    assert re.findall("x-penstock-cache: (.*)", said[1]) == ["MISS", "HIT-L1"]
    first, second = re.findall(r'(?m)^(\{"id".*?\})(?:HTTP|$)', said[1])
    assert first == second


def test_a_changed_file_is_in_force(said: list[str]) -> None:
    assert '"id":"gpt-4o-mini"' in said[2]
    assert "config_refused" not in "".join(said)


def test_redis_is_in_use_after_a_new_start(said: list[str]) -> None:
    assert "config_needs_start keys=cache.l2" in "".join(said)
    assert re.search("L2 +single, in use", said[4])


def test_who_has_no_key_is_refused(said: list[str]) -> None:
    assert re.findall(r"HTTP/1.1 (\d+)", said[4]) == ["401", "200"]
    assert "x-ratelimit-remaining-requests: " in said[4]


def test_a_request_wakes_a_server_that_sleeps(said: list[str]) -> None:
    assert re.findall(r"HTTP/1.1 (\d+)", said[5]) == ["200"]
    assert re.search(r"x-penstock-wake-ms: \d+", said[5])
