"""What going upstream together gives and costs: small requests before the simulator's time model."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
import urllib.request
from dataclasses import dataclass
from urllib.parse import urlsplit

import uvloop

from ..context import Rig, Sample
from ..rig import client
from ..rig.client import percentile
from ..rig.process import Child, answers, free_port
from ..subjects import Gateway

_MODEL = "together"
_CONNECTIONS = 64
#: A small model on one GPU: 4 ms a step, 200,000 prompt tokens a second, 0.05 ms for each sequence that decodes.
_TIMES = ("--decode-ms", "4", "--decode-ms-per-seq", "0.05", "--prefill-tps", "200000")
_TEXT = "The head above the runner was 145 metres this morning, and the gauge reads 14.2 bar. "


@dataclass(frozen=True, slots=True)
class Work:
    """What clients ask for."""

    name: str
    path: str
    field: str
    more: dict[str, object]

    def body(self, model: str, number: int) -> bytes:
        """Return one request; no two are alike."""
        return json.dumps({"model": model, self.field: f"{number} {_TEXT}", **self.more}).encode()


WORKS = (
    Work("embed", "/v1/embeddings", "input", {}),
    Work("complete", "/v1/completions", "prompt", {"max_tokens": 8, "temperature": 0, "ignore_eos": True}),
)


def batching(rig: Rig) -> None:
    """Embeddings and completions of 64 clients, each by itself and together, with many places and with few."""
    port = free_port()
    argv = [
        sys.executable,
        "-m",
        "penstock.loadtests.sim.main",
        "--port",
        str(port),
        "--model",
        _MODEL,
        *_TIMES,
    ]
    sim = Child("batching-sim", argv, rig.folder / "batching-sim.log", cores=rig.load_cores)
    try:
        sim.until(lambda: answers(port, "/health"), "listening")
        for places in (100, 8):
            for window_ms, usage in ((0, "exact"), (10, "exact"), (10, "shared"), (20, "exact")):
                _subject(rig, port, places, window_ms, usage)
    finally:
        sim.stop()
    for work, places in itertools.product(WORKS, (100, 8)):
        alone, together = (_name(work, places, window_ms, "exact") for window_ms in (0, 10))
        ratio = rig.book.ratio("batching", together, alone)
        rig.book.notes.append(f"batching: {work.name}, {places} places: together / alone {ratio:.2f}")


def _name(work: Work, places: int, window_ms: int, usage: str) -> str:
    how = f"{window_ms} ms, {usage}" if window_ms else "alone"
    return f"{work.name}, {places} places, {how}"


def _subject(rig: Rig, port: int, places: int, window_ms: int, usage: str) -> None:
    more: dict[str, object] = {
        "cache": {"mode": "off"},
        "models": {
            _MODEL: {
                "max_concurrent": places,
                "backends": [{"url": f"http://127.0.0.1:{port}"}],
                "batching": {"window_ms": window_ms, "usage": usage, "max_items": 64},
            }
        },
    }
    name = f"batching-{places}-{window_ms}-{usage}"
    gateway = Gateway(rig.folder, {}, cores=[rig.core], machine=rig.machine, name=name, more=more)
    try:
        base = "{0.scheme}://{0.netloc}".format(urlsplit(gateway.url(_MODEL)))
        for work in WORKS:
            uvloop.run(ask(base, _MODEL, work, 0.5))
            for number in range(min(rig.rounds, 3)):
                _post(port, "/sim/reset")
                cpu = gateway.cpu_s()
                figures = uvloop.run(ask(base, _MODEL, work, min(rig.seconds, 3.0)))
                figures["cpu_us"] = round((gateway.cpu_s() - cpu) * 1e6 / max(1.0, figures["requests"]), 2)
                figures["upstream"] = _asked(port, work.path)
                if figures["bad"]:
                    rig.book.faults.append(f"batching: {name}: {figures['bad']:.0f} answers not 200")
                subject = _name(work, places, window_ms, usage)
                rig.book.samples.append(Sample("batching", subject, number, figures))
    finally:
        gateway.stop()


async def ask(base: str, model: str, work: Work, seconds: float, bearer: str = "") -> dict[str, float]:
    """Ask from all connections at once, each for its next answer as soon as it has the last; what was seen."""
    numbers = itertools.count(time.time_ns())
    url = base + work.path
    waits: list[float] = []
    bad = 0
    began = time.perf_counter()

    async def one() -> None:
        nonlocal bad
        connection = await client.connect(url)
        try:
            while time.perf_counter() - began < seconds:
                reply = await connection.ask(client.request(url, work.body(model, next(numbers)), bearer))
                waits.append(reply.done_s)
                bad += reply.status != 200
        finally:
            connection.close()

    await asyncio.gather(*(one() for _ in range(_CONNECTIONS)))
    return {
        "per_s": round(len(waits) / (time.perf_counter() - began), 1),
        "requests": len(waits),
        "bad": bad,
        **{f"p{p}_us": round(percentile(waits, p) * 1e6) for p in (50, 95, 99)},
    }


def _asked(port: int, path: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/sim/stats", timeout=10) as answer:
        return float(json.load(answer)["paths"].get(path, {}).get("total", 0))


def _post(port: int, path: str) -> None:
    asked = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=b"{}", method="POST")
    asked.add_header("content-type", "application/json")
    urllib.request.urlopen(asked, timeout=10).close()
