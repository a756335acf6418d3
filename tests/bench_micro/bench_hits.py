"""Where a worker's time goes as it answers from shared memory: `python -m tests.bench_micro.bench_hits`.

One worker on the first core, wrk on the second, one stored answer. How much of the worker's processor time is the
kernel's bounds what another way into the kernel (io_uring, kTLS) could save. With the allocators of libc and, where it
is installed (`apt install libmimalloc2.0`), of mimalloc in the place of Python's own; all in turn, medians.
`docs/python.md` says what follows.
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

import httpx

from penstock.loadtests.bench.rig.wrk import Wrk

from ..support.gateway import Gateway, gateway, one_model
from ..support.sim import simulator

_ROUNDS = 6
_MIMALLOC = Path("/usr/lib/x86_64-linux-gnu/libmimalloc.so.2")
_BODY = b'{"model":"m","messages":[{"role":"user","content":"Hello"}],"temperature":0,"max_tokens":8}'
_CALLS = ("recvfrom", "writev", "write", "futex", "epoll_wait", "epoll_pwait")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def _spent(pid: int) -> tuple[float, float]:
    """Processor time of a process, its own and the kernel's for it, in seconds."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(words[11]) * _TICK_S, int(words[12]) * _TICK_S


def main() -> None:
    """Print requests a second and the kernel's share, for each allocator."""
    allocators = {"Python's allocator": {}, "libc's": {"PYTHONMALLOC": "malloc"}}
    if _MIMALLOC.exists():
        allocators["mimalloc"] = {"PYTHONMALLOC": "malloc", "LD_PRELOAD": str(_MIMALLOC)}
    cores = sorted(os.sched_getaffinity(0))
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in allocators}
    with ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory()))
        wrk = Wrk(folder, cores[1:2] or cores)
        server = undo.enter_context(simulator(canned=True, model="m"))
        config = {
            **one_model(server.url),
            "cache": {"mode": "deterministic", "l1": {"size": "64MiB", "ttl_s": 3600}},
            "workers": {"cores": cores[:1]},
        }
        nodes: dict[str, Gateway] = {
            name: undo.enter_context(gateway(config, env=env)) for name, env in allocators.items()
        }
        for node in nodes.values():
            _ask(node)
        for number in range(_ROUNDS):
            for name, node in list(nodes.items())[:: -1 if number % 2 else 1]:
                (pid,) = node.worker_pids()
                own, kernel = _spent(pid)
                load = wrk.run(f"{node.url}/v1/chat/completions", _BODY, seconds=1)
                own_after, kernel_after = _spent(pid)
                spent = own_after - own + kernel_after - kernel
                rates[name].append((load.per_s, (kernel_after - kernel) / spent))
        assert all(_ask(node) == "HIT-L1" for node in nodes.values())
        asked = _asked_of_the_kernel(wrk, next(iter(nodes.values())))
    for name, figures in rates.items():
        per_s, share = (statistics.median(column) for column in zip(*figures, strict=True))
        print(f"{name:<20}{per_s:10,.0f} hits/s   {share:6.1%} of the worker's time in the kernel")
    for name, calls in asked.items():
        print(f"{name:<20}{calls:10.2f} a hit")


def _asked_of_the_kernel(wrk: Wrk, node: Gateway) -> dict[str, float]:
    """System calls of the worker for one answer, by name; empty without perf."""
    if shutil.which("perf") is None:
        return {}
    (pid,) = node.worker_pids()
    argv = ["perf", "stat", "-x,", "-p", str(pid), "-e", "raw_syscalls:sys_enter"]
    for name in _CALLS:
        argv += ["-e", f"syscalls:sys_enter_{name}"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as perf:
        load = wrk.run(f"{node.url}/v1/chat/completions", _BODY, seconds=1)
        perf.send_signal(signal.SIGINT)
        _, said = perf.communicate(timeout=30)
    counted = [line.split(",") for line in said.splitlines()]
    return {
        words[2].rpartition("sys_enter")[2].lstrip("_") or "all calls": int(words[0]) / load.requests
        for words in counted
        if words[0].isdigit()
    }


def _ask(node: Gateway) -> str:
    answer = httpx.post(
        f"{node.url}/v1/chat/completions",
        content=_BODY,
        headers={"content-type": "application/json"},
        trust_env=False,
    )
    return str(answer.raise_for_status().headers["x-penstock-cache"])


if __name__ == "__main__":
    main()
