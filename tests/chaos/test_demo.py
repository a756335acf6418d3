"""The demo's whole story: its sleeping server comes, goes, is not missed by a hit, and comes again."""

import pytest

from ..integration.test_demo import ask, commands
from ..support.procs import Proc, console_script, free_port, wait_until

pytestmark = pytest.mark.slow


def test_after_an_idle_time_no_server_runs_a_hit_wakes_none_and_something_new_does() -> None:
    argv = [console_script(), "serve", "--port", str(free_port()), "--workers", "1"]
    with Proc(argv, name="demo") as proc:
        wait_until(lambda: "Ctrl-C" in proc.log(), what="the greeting")
        _, sleeper, other = commands(proc.log())
        assert ask(sleeper)["x-penstock-cache"] == "MISS"
        wait_until(lambda: "sleeper: no server runs" in proc.log(), 60, "the end of the idle server")
        assert ask(sleeper)["x-penstock-cache"] == "HIT-L1"
        wait_until(lambda: "none was started for it" in proc.log(), what="the hit")
        woken = ask(other)
        assert woken["x-penstock-cache"] == "MISS"
        assert int(woken["x-penstock-wake-ms"]) >= 3000
        wait_until(lambda: proc.log().count("its server has answered") == 2, what="the end of the story")
        story = [line.strip() for line in proc.log().splitlines() if line.startswith("  sleeper:")]
        starting = "sleeper: a request waits, and its server is being started"
        assert [line.partition(" after ")[0] for line in story] == [
            starting,
            "sleeper: its server is ready",
            "sleeper: its server has answered a request",
            "sleeper: nobody has asked for a while: its server is being stopped",
            "sleeper: no server runs",
            "sleeper: the cache has answered a request; no server runs, and none was started for it",
            starting,
            "sleeper: its server is ready",
            "sleeper: its server has answered a request",
        ]
