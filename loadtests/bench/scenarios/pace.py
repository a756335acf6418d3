"""Streams at a model's pace: how many chunks a second go through, and what the first one waits."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from ..context import Rig, Sample
from ..rig import client, events, payload
from ..rig.client import percentile
from ..subjects import Subject

_STREAMS = 1024
_PACE_MS = 20
_EVENTS = 100
_FIRST_STREAMS = 64
_FIRST_EVENTS = 20


def chunks(rig: Rig) -> None:
    """1,024 streams of an event each 20 ms: 51,200 events a second are offered."""
    _rounds(rig, "pace", _chunks)
    rig.book.at_least("pace: chunks/s", rig.book.median("pace", "gateway", "per_s"), 40_000)


def first(rig: Rig) -> None:
    """64 streams at a time, an event each 20 ms: the time to the first event, through the gateway and direct."""
    _rounds(rig, "first", _first)
    book = rig.book
    added_us = book.median("first", "gateway", "p95_us") - book.median("first", "direct", "p95_us")
    book.at_most("first token: ms added at p95, 64 streams", added_us / 1000, 1.0)


def _rounds(
    rig: Rig, scenario: str, run: Callable[[Rig, Subject], Coroutine[Any, Any, dict[str, float]]]
) -> None:
    gateway = rig.gateway()
    subjects: list[Subject] = [gateway, rig.paced_direct]
    try:
        for number in range(rig.rounds):
            for subject in subjects if number % 2 == 0 else subjects[::-1]:
                gc.collect()
                gc.disable()
                try:
                    figures = uvloop.run(run(rig, subject))
                finally:
                    gc.enable()
                if figures.pop("torn"):
                    rig.book.faults.append(
                        f"{scenario}: {subject.name}: streams did not come as they were sent"
                    )
                rig.book.samples.append(Sample(scenario, subject.name, number, figures))
    finally:
        gateway.stop()


def _stream_body(count: int) -> bytes:
    return payload.chat_body(payload.PACED_MODEL, stream=True, bench={"events": count, "pace_ms": _PACE_MS})


async def _chunks(rig: Rig, subject: Subject) -> dict[str, float]:
    url, tally = subject.url(payload.PACED_MODEL), client.Tally()
    request = client.request(url, _stream_body(_EVENTS))
    replies: list[client.Reply] = []
    ending = False

    async def slot(number: int) -> None:
        await asyncio.sleep(1.5 * number / _STREAMS)  # spread over time, so that events are too
        connection = await client.connect(url, tally)
        while not ending:
            replies.append(await connection.ask(request))
        connection.close()

    slots = [asyncio.ensure_future(slot(n)) for n in range(_STREAMS)]
    await asyncio.sleep(2.0)
    began, bytes_before, cpu_before = time.perf_counter(), tally.body_bytes, subject.cpu_s()
    await asyncio.sleep(rig.seconds)
    took, arrived = time.perf_counter() - began, tally.body_bytes - bytes_before
    used = subject.cpu_s() - cpu_before
    ending = True
    await asyncio.gather(*slots)
    count = arrived / events.EVENT_BYTES
    return {
        "per_s": round(count / took, 1),
        "cpu_us": round(used * 1e6 / max(1.0, count), 2),
        "rss_kib": subject.rss_kib(),
        "torn": _torn(replies, _EVENTS),
    }


async def _first(rig: Rig, subject: Subject) -> dict[str, float]:
    url = subject.url(payload.PACED_MODEL)
    request = client.request(url, _stream_body(_FIRST_EVENTS))
    replies: list[client.Reply] = []
    until = time.perf_counter() + 1.0 + rig.seconds

    async def slot(number: int) -> None:
        await asyncio.sleep(0.4 * number / _FIRST_STREAMS)
        connection = await client.connect(url)
        await connection.ask(request)  # opens connections all the way
        while time.perf_counter() < until:
            replies.append(await connection.ask(request))
        connection.close()

    await asyncio.gather(*(slot(n) for n in range(_FIRST_STREAMS)))
    waits = [reply.first_byte_s * 1e6 for reply in replies]
    return {
        "requests": len(replies),
        "p50_us": round(percentile(waits, 50)),
        "p95_us": round(percentile(waits, 95)),
        "p99_us": round(percentile(waits, 99)),
        "torn": _torn(replies, _FIRST_EVENTS),
    }


def _torn(replies: list[client.Reply], count: int) -> int:
    """Return how many streams are not, byte for byte, what the backend sent."""
    return sum((reply.body_bytes, reply.crc) != events.expected(count) for reply in replies)
