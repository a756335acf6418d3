"""What being looked into costs a worker that answers from shared memory: `python -m tests.bench_micro.bench_debug`.

One worker on the first core, wrk on the second, one stored answer: processor time per hit, of the whole process by the
scheduler's own count, while nobody looks and while each of the instruments runs, in turn. The lowest of some rounds:
what else the machine does only adds. `docs/profiling.md` has the figures.
"""

from __future__ import annotations

import os
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path

import httpx

from penstock.loadtests.bench.rig.wrk import Wrk

from ..support.gateway import Gateway, gateway, one_model
from ..support.procs import wait_until
from ..support.sim import simulator

_ROUNDS = 5
_BODY = b'{"model":"m","messages":[{"role":"user","content":"Hello"}],"temperature":0,"max_tokens":8}'
_LOOKS = {
    "nobody looks": None,
    "profile": "/debug/profile?seconds=2",
    "trace": "/debug/trace?seconds=2",
    "heap, seconds=2": "/debug/heap?seconds=2",
}


def _spent_us(pid: int) -> float:
    """Processor time of all threads of a process that live."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((one / "schedstat").read_text().split()[0]) for one in threads) / 1e3


def main() -> None:
    """Print µs a hit for each instrument."""
    cores = sorted(os.sched_getaffinity(0))
    costs: dict[str, list[float]] = {name: [] for name in _LOOKS}
    with ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory()))
        wrk = Wrk(folder, cores[1:2] or cores)
        server = undo.enter_context(simulator(canned=True, model="m"))
        config = {
            **one_model(server.url),
            "cache": {"mode": "deterministic", "l1": {"size": "64MiB", "ttl_s": 3600}},
            "workers": {"cores": cores[:1]},
        }
        node = undo.enter_context(gateway(config))
        wrk.run(f"{node.url}/v1/chat/completions", _BODY, seconds=1)
        for _ in range(_ROUNDS):
            for name, path in _LOOKS.items():
                costs[name].append(_one(node, wrk, path))
    for name, figures in costs.items():
        print(f"{name:<20}{min(figures):10.1f} µs a hit")


def _one(node: Gateway, wrk: Wrk, path: str | None) -> float:
    (pid,) = node.worker_pids()
    looking = None
    if path is not None:
        begun = node.log().count("debug_begun")
        url = node.admin_url + path
        looking = threading.Thread(target=lambda: httpx.get(url, timeout=60, trust_env=False))
        looking.start()
        wait_until(lambda: node.log().count("debug_begun") > begun, 10, "it has begun")
    before = _spent_us(pid)
    load = wrk.run(f"{node.url}/v1/chat/completions", _BODY, seconds=1)
    cost = (_spent_us(pid) - before) / (load.per_s * 1)
    if looking is not None:
        looking.join()
    return cost


if __name__ == "__main__":
    main()
