"""Every family that is documented has a series once what it is about has happened, and none is there undocumented."""

from __future__ import annotations

import contextlib
from pathlib import Path

from penstock.gateway.metrics import FAMILIES
from penstock.workers.families import SEEN
from penstock.workers.scrape import CONTROL_FAMILIES

from ..support.eventful import NOT_HERE, eventful
from ..support.procs import WaitFailed, free_port, wait_until

DOCUMENTED = {*FAMILIES, *CONTROL_FAMILIES, *SEEN}


def test_what_is_documented_is_there_and_what_is_there_is_documented(tmp_path: Path) -> None:
    with eventful(tmp_path, free_port()) as scene:
        with contextlib.suppress(WaitFailed):  # some are told once a second
            wait_until(lambda: DOCUMENTED - scene.series() <= NOT_HERE, 15)
        found = {name for name in scene.series() if name.startswith("penstock_")}
    assert DOCUMENTED - found == NOT_HERE
    assert found <= DOCUMENTED
