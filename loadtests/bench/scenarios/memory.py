"""What a connection costs in memory: slow streams, idle clients, and a client that never reads."""

from __future__ import annotations

import asyncio
import json
import socket
import time
import urllib.request
from typing import Any

import uvloop

from ..context import Rig, Sample
from ..rig import client, events, payload
from ..rig.exposition import Exposition
from ..subjects import Gateway

_OPEN_PER_S = 1000
_SLOW_PACE_MS = 1000
_FLOOD_BYTES = 400 << 20
_LAG = "penstock_loop_lag_seconds"


def slow_streams(rig: Rig) -> None:
    """Thousands of streams at once through one worker, an event a second each: memory, lag, and every byte."""
    gateway = rig.gateway(model=payload.PACED_MODEL, concurrent=rig.streams + 100)
    try:
        asyncio.run(_warm(gateway.url(payload.PACED_MODEL)))
        before_kib, lag = gateway.anonymous_kib(), gateway.metrics()
        replies, gone, plateau_kib = uvloop.run(_slow(rig, gateway))
        worst_ms = worst_lag_ms(_LAG, lag, gateway.metrics())
        after_kib = gateway.anonymous_kib()
    finally:
        gateway.stop()
    each = (plateau_kib - before_kib) / rig.streams
    seconds = _slow_events(rig)
    whole = sum((r.body_bytes, r.crc) == events.expected(seconds) for r in replies)
    if whole != rig.streams:
        rig.book.faults.append(f"slow streams: {whole} of {rig.streams} came whole, {gone} connections broke")
    figures = {
        "requests": rig.streams,
        "kib_each": round(each, 2),
        "lag_ms": worst_ms,
        "anonymous_kib": plateau_kib,
        "anonymous_after_kib": after_kib,
    }
    rig.book.samples.append(Sample("slow", "gateway", 0, figures))
    rig.book.at_most(f"{rig.streams} slow streams: KB of memory each", each * 1.024, 40)
    rig.book.at_most(f"{rig.streams} slow streams: loop lag ms (bucket's bound)", worst_ms, 50)


def idle_clients(rig: Rig) -> None:
    """Keep-alive clients that asked once and now wait: memory for each."""
    gateway = rig.gateway(model=payload.MODEL)
    try:
        asyncio.run(_warm(gateway.url(payload.MODEL)))
        before_kib = gateway.anonymous_kib()
        during_kib, good = uvloop.run(_idle(rig, gateway))
    finally:
        gateway.stop()
    if good != rig.idle_clients:
        rig.book.faults.append(f"idle clients: {good} of {rig.idle_clients} were answered")
    each = (during_kib - before_kib) / rig.idle_clients
    figures = {"requests": rig.idle_clients, "kib_each": round(each, 2), "anonymous_kib": during_kib}
    rig.book.samples.append(Sample("idle", "gateway", 0, figures))
    rig.book.notes.append(f"{rig.idle_clients} idle keep-alive clients cost {each:.1f} KiB of memory each")


def never_reads(rig: Rig) -> None:
    """A client that asks for a stream of 400 MiB and never reads it: what the worker holds for it."""
    gateway = rig.gateway()
    stats = f"http://127.0.0.1:{rig.backends[payload.PACED_MODEL]}/bench/stats"
    url = gateway.url(payload.PACED_MODEL)
    body = payload.chat_body(payload.PACED_MODEL, stream=True, bench={"flood_bytes": _FLOOD_BYTES})
    try:
        asyncio.run(_warm(url))
        before_kib, sent_before = gateway.anonymous_kib(), _json(stats)["sent_bytes"]
        worst_kib = before_kib
        with socket.create_connection(client.address(url)) as deaf:
            deaf.sendall(client.request(url, body))
            until = time.monotonic() + max(3.0, rig.seconds)
            while time.monotonic() < until:
                worst_kib = max(worst_kib, gateway.anonymous_kib())
                time.sleep(0.05)
            sent_mib = (_json(stats)["sent_bytes"] - sent_before) / (1 << 20)
    finally:
        gateway.stop()
    held_kib = worst_kib - before_kib
    rig.book.samples.append(
        Sample("deaf", "gateway", 0, {"kib_each": held_kib, "sent_mib": round(sent_mib, 1)})
    )
    if sent_mib > _FLOOD_BYTES / (1 << 20) / 2:
        rig.book.faults.append(f"a client that never reads: the backend could send {sent_mib:.0f} MiB")
    rig.book.at_most("client that never reads 400 MiB: MiB held", held_kib / 1024, 4)


async def _warm(url: str) -> None:
    """Make the worker load what it loads at its first requests, so that it is not counted later."""
    connection = await client.connect(url)
    body = payload.chat_body(payload.PACED_MODEL, stream=True, bench={"events": 2, "pace_ms": 1})
    for _ in range(50):
        await connection.ask(client.request(url, body))
    connection.close()


def _slow_events(rig: Rig) -> int:
    return rig.streams // _OPEN_PER_S + 6


async def _slow(rig: Rig, gateway: Gateway) -> tuple[list[client.Reply], int, int]:
    url = gateway.url(payload.PACED_MODEL)
    bench = {"events": _slow_events(rig), "pace_ms": _SLOW_PACE_MS}
    request = client.request(url, payload.chat_body(payload.PACED_MODEL, stream=True, bench=bench))
    replies: list[client.Reply] = []
    gone = 0

    async def one(number: int) -> None:
        nonlocal gone
        await asyncio.sleep(number / _OPEN_PER_S)
        try:
            connection = await client.connect(url)
            replies.append(await connection.ask(request))
            connection.close()
        except (client.Gone, OSError):
            gone += 1

    all_of_them = asyncio.gather(*(one(n) for n in range(rig.streams)))
    await asyncio.sleep(rig.streams / _OPEN_PER_S + 2)
    plateau_kib = await asyncio.get_running_loop().run_in_executor(None, gateway.anonymous_kib)
    await all_of_them
    return replies, gone, plateau_kib


async def _idle(rig: Rig, gateway: Gateway) -> tuple[int, int]:
    url = gateway.url(payload.MODEL)
    request = client.request(url, payload.chat_body())
    connections: list[client.Connection] = []
    good = 0
    for number in range(rig.idle_clients):
        connection = await client.connect(url)
        good += (await connection.ask(request)).status == 200
        connections.append(connection)
        if number % 500 == 0:
            await asyncio.sleep(0.02)
    await asyncio.sleep(1)
    during_kib = gateway.anonymous_kib()
    for connection in connections:
        connection.close()
    return during_kib, good


def worst_lag_ms(family: str, before: Exposition, after: Exposition) -> float:
    """Return the bound of a histogram's highest bucket that gained anything between two scrapes, in milliseconds."""
    old, new = before.buckets(family), after.buckets(family)
    worst, below = 0.0, 0.0
    for bound in sorted(new):
        gained = new[bound] - old.get(bound, 0.0)
        if gained > below:
            worst = bound
        below = gained
    return worst * 1000


def _json(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=10) as page:
        found: dict[str, Any] = json.loads(page.read())
        return found
