"""A long run of everything at once, round after round: what a round leaves behind would show as a slope."""

import asyncio
import os
import re
from pathlib import Path

import pytest

from ..support.gateway import gateway, one_model
from ..support.procs import wait_until
from ..support.sim import simulator
from .load import load

ROUNDS = 30
WARM_ROUNDS = 5
A_ROUND = 3000
CLIENTS = 16
# What the allocator may add over all rounds: two kilobytes a round and client would be more.
MAY_GROW_BYTES = 4 << 20


def anonymous_bytes(pid: int) -> int:
    """The anonymous memory of a process."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(kib) for kib in re.findall(r"(?m)^Anonymous: +(\d+) kB", text)) * 1024


def descriptors(pid: int) -> int:
    """How many files a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.soak
async def test_rounds_of_streams_answers_and_reloads_leave_nothing_behind() -> None:
    with simulator(model="m", canned=True) as sim, gateway(one_model(sim.url, max_concurrent=200)) as gate:
        (worker,) = gate.worker_pids()
        memory: list[int] = []
        files: list[int] = []
        for number in range(ROUNDS):
            async with (
                load(gate.port, "m", CLIENTS) as plain,
                load(gate.port, "m", CLIENTS, stream=True) as streams,
                load(gate.port, "m", 2, fresh=True) as fresh,
            ):
                loads = (plain, streams, fresh)
                await asyncio.to_thread(
                    wait_until, lambda of=loads: sum(one.done for one in of) >= A_ROUND, 600, "a round"
                )
                gate.reload()
            assert not [lost for one in loads for lost in one.lost]
            await asyncio.to_thread(
                wait_until,
                lambda: (
                    gate.metric("penstock_inflight_requests") == gate.metric("penstock_buffered_bytes") == 0
                ),
                30,
                "counts at zero",
            )
            memory.append(anonymous_bytes(worker))
            files.append(descriptors(worker))
            print(f"round {number + 1}: {memory[-1] >> 10} KiB anonymous, {files[-1]} descriptors")
        assert gate.worker_pids() == [worker]
        assert max(files[WARM_ROUNDS:]) <= max(files[:WARM_ROUNDS]) + CLIENTS
        assert memory[-1] <= memory[WARM_ROUNDS] + MAY_GROW_BYTES, memory
