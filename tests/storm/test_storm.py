"""Readers, writers and a flusher over a tiny cache, killed -9 all the time."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from ..support.procs import run

KILLS = 1_000
ROLES = ("reader", "writer", "flusher")


def storm(capsys: pytest.CaptureFixture[str], seconds: int, kills: int = 0) -> dict[str, Any]:
    """Let it rage; what it says in the end, which is printed as well. Fails with its complaints."""
    command = [sys.executable, "-m", "tests.storm.storm", "--seconds", str(seconds), "--kills", str(kills)]
    status, output = run(command, timeout_s=seconds * 2 + 60)
    with capsys.disabled():
        print(f"\n{output.strip()}")
    assert status == 0, output
    answer: dict[str, Any] = json.loads(output)
    return answer


def was_a_storm(answer: dict[str, Any]) -> None:
    """Nothing of what it is to do was left out."""
    killed = answer["killed"]
    for role in ROLES:
        for kind in ("instant", "injected"):
            assert any(what.startswith(f"{kind}, {role}") for what in killed), killed
    for doing in ("get", "put", "remove", "flush"):
        assert any(what.endswith(f"in {doing}") for what in killed), killed
    for what in ("gets", "hits", "puts", "stored", "removed", "flushes", "rounds"):
        assert answer[what] > 0
    assert answer["processes"] >= 4


def test_a_thousand_kills_bring_no_wrong_byte_no_stuck_lock_and_no_lost_room(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Ten thousand are `make chaos`.
    was_a_storm(storm(capsys, 6, KILLS))
