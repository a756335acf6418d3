"""Sends big bodies at a fixed rate, each on the first free of a few connections. Run as a script; prints JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import time

import uvloop

from . import client, payload

_CONNECTIONS = 8


def big_body(mib: int) -> bytes:
    """Return a chat request of exactly that many MiB."""
    bare = len(payload.chat_body(payload.PACED_MODEL, user=""))
    return payload.chat_body(payload.PACED_MODEL, user="x" * ((mib << 20) - bare))


async def _send(url: str, mib: int, per_s: float, seconds: float) -> dict[str, float]:
    request = client.request(url, big_body(mib))
    waits: list[float] = []
    bad = 0
    began = time.perf_counter()
    due = iter(range(int(per_s * seconds)))

    async def slot() -> None:
        nonlocal bad
        connection = await client.connect(url)
        for number in due:  # shared: whoever is free takes the next
            await asyncio.sleep(max(0.0, began + number / per_s - time.perf_counter()))
            reply = await connection.ask(request)
            if reply.status == 200:
                waits.append(reply.done_s)
            else:
                bad += 1
        connection.close()

    await asyncio.gather(*(slot() for _ in range(_CONNECTIONS)))
    p50 = round(client.percentile(waits, 50) * 1e6)
    return {"good": len(waits), "bad": bad, "p50_us": p50}


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description="sends big bodies at a fixed rate")
    arguments.add_argument("--url", required=True)
    arguments.add_argument("--mib", type=int, required=True)
    arguments.add_argument("--per-s", type=float, required=True)
    arguments.add_argument("--seconds", type=float, required=True)
    given = arguments.parse_args()
    print("sending", flush=True)
    print(json.dumps(uvloop.run(_send(given.url, given.mib, given.per_s, given.seconds))), flush=True)
