"""What a big body does to everybody else's requests on the same worker."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass

import uvloop

from ..context import Rig, Sample
from ..rig import client, payload
from ..rig.client import percentile
from ..rig.process import Child
from ..subjects import Gateway

_LIGHT_CONNECTIONS = 16
_LIGHT_PER_S = 400


@dataclass(frozen=True, slots=True)
class _Big:
    name: str
    mib: int
    per_s: int
    percentile: int


_BIGS = (_Big("1 MiB at 20/s", 1, 20, 99), _Big("10 MiB at 2/s", 10, 2, 95))


def big_bodies(rig: Rig) -> None:
    """400 small requests a second, alone, beside big bodies through the gateway, and beside the same past it.

    The third tells what of the second is the rig's own: sender, backend and small requests share a core.
    """
    gateway = rig.gateway()
    seconds = max(2.0, rig.seconds)
    try:
        for number in range(min(rig.rounds, 3)):
            _sample(rig, gateway, "alone", number, seconds, None, "")
            for big in _BIGS:
                _sample(rig, gateway, f"{big.name}", number, seconds, big, gateway.url(payload.PACED_MODEL))
                past = rig.paced_direct.url(payload.PACED_MODEL)
                _sample(rig, gateway, f"{big.name} past it", number, seconds, big, past)
    finally:
        gateway.stop()
    book = rig.book
    for big in _BIGS:
        figure = f"p{big.percentile}_us"
        added_us = book.median("bodies", big.name, figure) - book.median("bodies", "alone", figure)
        book.at_most(f"{big.name}: ms added to others at p{big.percentile}", added_us / 1000, 10)


def _sample(
    rig: Rig, gateway: Gateway, name: str, number: int, seconds: float, big: _Big | None, url: str
) -> None:
    sender = None
    if big is not None:
        argv = [sys.executable, "-m", f"{__package__.rpartition('.')[0]}.rig.sender", "--url", url]
        argv += ["--mib", str(big.mib), "--per-s", str(big.per_s), "--seconds", str(seconds + 1.5)]
        sender = Child("sender", argv, rig.folder / "sender.log", cores=rig.load_cores)
        sender.until(lambda: b"sending" in sender.log.read_bytes(), "sending")
    waits = uvloop.run(_light(gateway.url(payload.MODEL), seconds))
    figures: dict[str, float] = {
        "requests": len(waits),
        "p50_us": round(percentile(waits, 50) * 1e6),
        "p95_us": round(percentile(waits, 95) * 1e6),
        "p99_us": round(percentile(waits, 99) * 1e6),
        "max_us": round(percentile(waits, 100) * 1e6),
    }
    if sender is not None:
        sender.until(lambda: b"}" in sender.log.read_bytes(), "the last reply")
        sent = json.loads(sender.log.read_text().splitlines()[-1])
        figures["big_p50_us"] = sent["p50_us"]
        if sent["bad"] or not sent["good"]:
            rig.book.faults.append(f"bodies: {name}: {sent['good']} answered, {sent['bad']} not")
        sender.stop()
    rig.book.samples.append(Sample("bodies", name, number, figures))


async def _light(url: str, seconds: float) -> list[float]:
    request = client.request(url, payload.chat_body())
    waits: list[float] = []
    began = time.perf_counter() + 0.3
    period = _LIGHT_CONNECTIONS / _LIGHT_PER_S

    async def slot(number: int) -> None:
        connection = await client.connect(url)
        due = began + period * number / _LIGHT_CONNECTIONS
        while due < began + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            waits.append((await connection.ask(request)).done_s)
            due += period
        connection.close()

    await asyncio.gather(*(slot(n) for n in range(_LIGHT_CONNECTIONS)))
    return waits
