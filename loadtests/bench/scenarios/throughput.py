"""How many requests, and whole streams, one worker carries: beside bare Granian, the backend and another router."""

from __future__ import annotations

from ..context import Rig
from ..rig import payload
from ..rig.nginx import Nginx
from ..subjects import Direct, Echo, Subject


def miss(rig: Rig) -> None:
    """Plain chat requests, 64 connections, every one carried to the backend."""
    body = payload.chat_body()
    gateway, echo, others = rig.gateway(), Echo(rig.folder, rig.core), rig.other_router()
    subjects: list[Subject] = [echo, gateway, *others, rig.direct]
    try:
        rig.check_replies("miss", gateway, body, payload.MODEL)
        rig.alternate("miss", subjects, body, payload.MODEL)
    finally:
        for subject in subjects:
            subject.stop()
    book = rig.book
    book.at_least("miss: requests/s", book.median("miss", "gateway", "per_s"), 10_000)
    book.at_most("miss: p95 ms at 64 connections", book.median("miss", "gateway", "p95_us") / 1000, 5.0)
    book.at_least("miss / echo", book.ratio("miss", "gateway", "echo"), 0.48)
    if others:
        book.at_least("miss / vllm-router", book.ratio("miss", "gateway", "vllm-router"), 1.5)


def stream(rig: Rig) -> None:
    """Whole streams of 33 events, flushed one by one by the backend without pacing, 64 connections."""
    body = payload.chat_body(payload.STREAM_MODEL, stream=True)
    gateway, others = rig.gateway(), rig.other_router()
    subjects: list[Subject] = [gateway, *others, rig.direct]
    try:
        rig.check_replies("stream", gateway, body, payload.STREAM_MODEL)
        rig.alternate("stream", subjects, body, payload.STREAM_MODEL)
    finally:
        for subject in subjects:
            subject.stop()
    book = rig.book
    book.at_least(
        f"stream: streams/s of {payload.STREAM_EVENTS} events",
        book.median("stream", "gateway", "per_s"),
        6_000,
    )


def one_connection(rig: Rig) -> None:
    """One connection, one request at a time: what the way through the gateway adds to each.

    Against the backend as the rig has it, on the client's own core, and against one on the other core: a request
    that changes cores wakes them from idle, which costs more than either server's work (and a backend on another
    machine is never on the client's core).
    """
    body = payload.chat_body()
    gateway, echo = rig.gateway(), Echo(rig.folder, rig.core)
    far = Nginx(rig.folder / "far", [rig.core])
    apart = Direct({payload.MODEL: far.plain_port}, far.child, "direct, other core")
    subjects: list[Subject] = [gateway, rig.direct, apart, echo]
    try:
        rig.alternate("one", subjects, body, payload.MODEL, connections=1)
    finally:
        far.stop()
        for subject in subjects:
            subject.stop()
    book = rig.book
    for other in (rig.direct, apart):
        added_us = book.median("one", "gateway", "p50_us") - book.median("one", other.name, "p50_us")
        book.at_most(f"one connection: ms added at p50 over {other.name}", added_us / 1000, 0.25)


def log_cost(rig: Rig) -> None:
    """The same load on gateways that differ in their log level alone: processor time per request."""
    body = payload.chat_body()
    gateways = [rig.gateway(f"gateway-{level.lower()}", level) for level in ("WARNING", "INFO", "DEBUG")]
    try:
        rig.alternate("log", gateways, body, payload.MODEL)
    finally:
        for gateway in gateways:
            gateway.stop()
    book = rig.book
    none = book.median("log", "gateway-warning", "cpu_us")
    for level in ("info", "debug"):
        cost = book.median("log", f"gateway-{level}", "cpu_us") - none
        book.notes.append(f"logging at {level.upper()} costs {cost:.1f} us of processor time per request")
