"""A long run of the cache with little room near and far: what a round leaves behind would show as a slope."""

import asyncio
import itertools
import random
from collections import Counter
from statistics import median

import pytest

from ..support.asking import Asker, Question
from ..support.gateway import Gateway, gateway, one_model
from ..support.procs import wait_until
from ..support.redis import redis_server
from ..support.sim import simulator
from .test_soak import anonymous_bytes, descriptors

ROUNDS = 30
CLIENTS = 12
EACH = 250  # of each client, in a round
WARM_ROUNDS = 3
# From the median of the first third to that of the last a worker answers some 27,000 requests: 80 bytes kept of each
# would show.
MAY_GROW_BYTES = 2 << 20
WORKERS = 2


class Client:
    """Asks what others ask at the same time, what was asked lately and long ago, and sometimes does not stay."""

    def __init__(self, port: int, number: int, fresh: "itertools.count[int]") -> None:
        self.met: Counter[str] = Counter()
        self.left = 0
        self._port = port
        self._random = random.Random(number)
        self._fresh = fresh

    def _question(self) -> Question:
        chance = self._random.random()
        if chance < 0.25:  # everybody's next one: some join it
            number = next(self._fresh) // 4
        elif chance < 0.5:
            number = self._random.randrange(40)
        else:
            number = self._random.randrange(20_000)
        long = ("metadata", {"padding": "x" * (number % 7 * 500)})
        return Question(f"soak {number}", stream=number % 2 == 0, more=(long,))

    async def round(self) -> None:
        async with Asker(self._port) as asker:
            for _ in range(EACH):
                question = self._question()
                if self._random.random() < 0.05:
                    asking = asyncio.create_task(asker.ask(question))
                    await asyncio.wait([asking], timeout=self._random.random() * 0.02)
                    if not asking.done():
                        asking.cancel()
                        self.left += 1
                    await asyncio.wait([asking])
                    asker.leave()
                    continue
                reply = await asker.ask(question)
                assert reply.answers(question), (question, reply)
                self.met[reply.cache] += 1


def _resting(gate: Gateway) -> bool:
    names = ("penstock_inflight_requests", "penstock_running_requests", "penstock_queued_requests")
    return all(gate.metric(name) == 0 for name in (*names, "penstock_buffered_bytes"))


def _flat(rows: list[int], tolerance: int) -> bool:
    """Whether the last third is as the first is, those of the warming up apart."""
    kept = rows[WARM_ROUNDS:]
    third = len(kept) // 3
    return median(kept[-third:]) <= median(kept[:third]) + tolerance


@pytest.mark.soak
async def test_rounds_over_a_small_cache_leave_nothing_behind(capsys: pytest.CaptureFixture[str]) -> None:
    with (
        simulator(model="m", decode_ms=1, max_seqs=256) as sim,
        redis_server(maxmemory="4mb", maxmemory_policy="allkeys-lru") as redis,
    ):
        config = {
            **one_model(sim.url, max_concurrent=200),
            "workers": {"count": WORKERS},
            "cache": {
                "l1": {"size": "2MiB", "max_entry": "64KiB", "ttl_s": 20},
                "l2": {"url": redis.url, "ttl_s": 60, "deadline_ms": 50},
            },
        }
        with gateway(config) as gate:
            pids = gate.worker_pids()
            memory: dict[int, list[int]] = {pid: [] for pid in pids}
            files: dict[int, list[int]] = {pid: [] for pid in pids}
            tasks: list[int] = []
            fresh = itertools.count()
            clients = [Client(gate.port, number, fresh) for number in range(CLIENTS)]
            for number in range(ROUNDS):
                async with asyncio.TaskGroup() as group:
                    for client in clients:
                        group.create_task(client.round())
                await asyncio.to_thread(wait_until, lambda: _resting(gate), 60, "counts at zero")
                for pid in pids:
                    memory[pid].append(anonymous_bytes(pid))
                    files[pid].append(descriptors(pid))
                tasks.append(int(gate.metric("penstock_tasks")))
                with capsys.disabled():
                    of = [f"{memory[p][-1] >> 10} KiB, {files[p][-1]} descriptors" for p in pids]
                    keys = redis.info("stats")["evicted_keys"]
                    print(f"round {number + 1}: {'; '.join(of)}; {tasks[-1]} tasks; Redis evicted {keys}")
            met = sum((client.met for client in clients), Counter())
            left = sum(client.left for client in clients)
            events = {
                name: int(gate.metric("penstock_cache_events_total", layer="l1", event=name))
                for name in ("stored", "evicted", "expired")
            }
            with capsys.disabled():
                print(f"{dict(met)}, {left} left early; L1 {events}")
            assert gate.worker_pids() == pids
            assert set(met) == {"HIT-L1", "HIT-L2", "MISS", "COALESCED"}
            assert left > 0
            assert events["evicted"] > 0
            assert redis.info("stats")["evicted_keys"] > 0
            assert [line for line in gate.log().splitlines() if " ERROR " in line] == []
            for pid in pids:
                assert _flat(memory[pid], MAY_GROW_BYTES), memory[pid]
                assert _flat(files[pid], 2), files[pid]
            assert _flat(tasks, CLIENTS), tasks
