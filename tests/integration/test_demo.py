"""`penstock serve` without a configuration, as somebody would try it who has just cloned it."""

import json
import signal
from pathlib import Path

from ..support.procs import Proc, console_script, free_port, is_running, wait_until
from .test_processes import run


def commands(log: str) -> list[str]:
    """The command lines of the greeting, in their order."""
    return [line.strip() for line in log.splitlines() if line.strip().startswith("curl")]


def ask(command: str) -> dict[str, str]:
    """The fields of the answer, which must be a good one."""
    status, output = run(["sh", "-c", command])
    assert status == 0
    head, _, body = output.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 "), head
    assert json.loads(body)["choices"][0]["message"]["content"]
    return {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head.split("\r\n"))
    }


def family(pid: int) -> list[int]:
    """Everything that was started by `pid`, by whatever it started too."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            child = int(path.parent.name)
            found += [child, *family(child)]
    return found


def test_the_demo_answers_wakes_its_sleeper_and_leaves_nothing_running() -> None:
    argv = [console_script(), "serve", "--port", str(free_port()), "--workers", "1"]
    with Proc(argv, name="demo") as proc:
        wait_until(lambda: "Ctrl-C" in proc.log(), what="the greeting")
        always, sleeper, _ = commands(proc.log())
        assert ask(always)["x-penstock-cache"] == "MISS"
        assert ask(always)["x-penstock-cache"] == "HIT-L1"
        assert "sleeper:" not in proc.log()
        first = ask(sleeper)
        assert first["x-penstock-cache"] == "MISS"
        assert int(first["x-penstock-wake-ms"]) >= 3000
        again = ask(sleeper)
        assert again["x-penstock-cache"] == "HIT-L1"
        assert "x-penstock-wake-ms" not in again
        wait_until(lambda: "the cache has answered a request" in proc.log(), what="the end of the story")
        story = [line.strip() for line in proc.log().splitlines() if line.startswith("  sleeper:")]
        assert story[0] == "sleeper: a request waits, and its server is being started"
        assert story[1].startswith("sleeper: its server is ready after ")
        assert story[2:] == [
            "sleeper: its server has answered a request",
            "sleeper: the cache has answered a request; its server was not asked",
        ]
        started = family(proc.pid)
        simulators = [pid for pid in started if b"\0sim\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(simulators) == 2
        proc.send(signal.SIGINT)
        assert proc.wait() == 0
        wait_until(lambda: not any(map(is_running, started)), what="the end of all that was started")
        assert "Traceback" not in proc.log()
