"""HTTP/1.1 and HTTP/2 to the same backend: `python -m tests.bench_micro.bench_protocols` prints a line for each.

The gateway's own clients, without the gateway, ask nghttpx in the clear, which asks a simulator of stored answers over
HTTP/1.1 both times. 64 calls at a time, one core. The client's time is what tells: the rest of the rig is the same.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from contextlib import AbstractAsyncContextManager

import uvloop

from penstock.gateway.upstream.h2_pool import H2Pool
from penstock.gateway.upstream.pool import Pool

from ..support.h2_server import h2_pool
from ..support.nghttpx import nghttpx
from ..support.scripted import TIMEOUTS, pool_for
from ..support.sim import simulator

_AT_ONCE = 64
_ROUNDS = 5
_ROUND_S = 0.6
_BODY = b'{"model":"sim-model","prompt":"x","max_tokens":1}'
_HEAD = (
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    % len(_BODY)
)


async def _round(pool: Pool | H2Pool) -> tuple[float, float]:
    """Calls a second, and processor time of this process per call in microseconds."""
    done = 0
    began, used = time.perf_counter(), time.process_time()

    async def keep_asking() -> None:
        nonlocal done
        while time.perf_counter() - began < _ROUND_S:
            call = await pool.call(_HEAD, _BODY, TIMEOUTS)
            assert call.status == 200
            assert call.complete
            done += 1

    await asyncio.gather(*[keep_asking() for _ in range(_AT_ONCE)])
    return done / (time.perf_counter() - began), (time.process_time() - used) / done * 1e6


async def _measure(url: str) -> None:
    pools: dict[str, AbstractAsyncContextManager[Pool | H2Pool]] = {
        "http1": pool_for(url, max_idle=_AT_ONCE),
        "http2": h2_pool(url, min_connections=10),
    }
    rounds: dict[str, list[tuple[float, float]]] = {}
    async with pools["http1"] as one, pools["http2"] as two:
        for _ in range(_ROUNDS):
            for name, pool in (("http1", one), ("http2", two)):
                rounds.setdefault(name, []).append(await _round(pool))
    for name, figures in rounds.items():
        rate, cost_us = (statistics.median(column) for column in zip(*figures, strict=True))
        print(f"{name}  {rate:8,.0f} calls/s  {cost_us:6.1f} us of the client's processor a call")


def main() -> int:
    with simulator(canned=True) as sim, nghttpx(sim.url) as url:
        uvloop.run(_measure(url))
    return 0


if __name__ == "__main__":
    sys.exit(main())
