"""The service level objectives, line by line: one worker on one core, load and backend on another, at constant rates.

Strategy: the corpus (hits, misses, one in five a stream) at a rate that does not care how answers come
(:mod:`..rig.steady`), over 5,000 connections that all carry it, of a client whose API key has every kind of limit. At
10,000 requests a second, then ever more until an objective is missed (the *knee*), then at 80 % of that. Counts of
the generator and of the gateway must be the same, outcome by outcome. A run in which the generator was late gives no
figures. wrk, as fast as answers come, stands beside as what saturation is; its latencies say nothing.

What a miss waits longer because of the gateway is told twice: from outside, by the time until its first byte less what
the median request waits when the same generator asks the backend itself, so that all that load and backend do to each
other on their core is laid to the gateway's charge; and by the gateway's own histogram, which knows when it waited for
the backend.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ...suite import counts, questions
from ..context import Rig, Sample
from ..rig import payload, steady
from ..rig.exposition import Exposition
from ..rig.process import Child, memory_kib
from ..subjects import Echo, Gateway
from .governed import a_key
from .objectives import CONNECTIONS, GIVEN_MIB, OF_THE_KNEE, RATE, missed, objectives, page

T = TypeVar("T")

KNEE_SHARE = 0.8

_WARM_S = 1.0
_STEP = 1000
_STEP_S = 3.0
_PROBES = 3
_TRIES = 3
#: of a lap, of the corpus and of its plain questions
_LEAST_DRAWS = 5000
_MOST = 30_000
_L1_MIB = 256
_MODELS = (("chat-large", 0.7), ("chat-small", 0.3))
_STREAMS = "-stream"
_CLIMB = "climb, "
_CONNECTS = "penstock_upstream_connect_seconds"


class Unusable(Exception):
    """A run whose figures are the generator's own; the text says why."""


@dataclass(slots=True)
class _Stand:
    """What the runs share. ``constant_ms``: what the median miss waits without the gateway."""

    rig: Rig
    gateway: Gateway
    key: str
    corpus: Path
    plain: Path
    lap: int = 1
    constant_ms: float = 0.0

    def load(
        self, url: str, file: Path, rate: float, seconds: float, meanwhile: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """One run of the generator. Raises Unusable."""
        argv = [
            sys.executable,
            "-m",
            steady.__name__,
            url,
            str(file),
            f"--rate={rate}",
            f"--seconds={seconds}",
        ]
        argv += [f"--connections={CONNECTIONS}", f"--lap={self.lap}", f"--pid={self.gateway.workers[0]}"]
        argv += [f"--warm-s={_WARM_S}"]
        self.lap += 1 + round(rate * (_WARM_S + seconds) / _LEAST_DRAWS)  # asked by nobody before
        self.gateway.without_clients()
        child = Child(
            *("steady", argv, self.rig.folder / "steady.log"),
            cores=self.rig.load_cores,
            env={"PENSTOCK_BENCH_KEY": self.key},
        )
        try:
            child.until(lambda: b"ready" in child.log.read_bytes(), "ready")
            time.sleep(_WARM_S + seconds / 2)
            meanwhile()
            child.until(lambda: child.log.read_bytes().endswith(b"}\n"), "the figures", 30 + 2 * seconds)
        finally:
            child.stop()
        found: dict[str, Any] = json.loads(child.log.read_text().splitlines()[-1])
        why = steady.late(found["cpu"], found["lag"])
        if why:
            raise Unusable(f"{rate:,.0f} requests/s: {why}, {found['failed'] or 'nothing'} failed")
        return found


def _patiently(run: Callable[..., T], *given: Any) -> T:
    """A run, and again where the generator was late, which on a machine shared with others it is now and then."""
    for _ in range(_TRIES - 1):
        try:
            return run(*given)
        except Unusable as fault:
            print(f"again: {fault}", flush=True)
    return run(*given)


def slo(rig: Rig) -> None:
    """The objectives at 10,000 requests a second and at 80 % of the knee, and what saturation is."""
    key, file = a_key(rig.folder)
    corpus = _corpus(questions.make(questions.Terms(models=_MODELS)))
    asked = [one for one in corpus.questions if not one.stream]
    plain = questions.Corpus(asked, range(len(asked)), 0.0)
    ports = {
        name + tail: rig.backends[payload.STREAM_MODEL if tail else payload.MODEL]
        for name, _ in _MODELS
        for tail in ("", _STREAMS)
    }
    access_log = rig.folder / "access.jsonl"
    more: dict[str, object] = {
        "log": {"level": "INFO", "access": {"path": str(access_log)}},
        "cache": {"l1": {"size": f"{_L1_MIB}MiB"}},
        "keys": {"file": str(file)},
    }
    gateway = Gateway(
        rig.folder, ports, cores=[rig.core], machine=rig.machine, name="slo", concurrent=1000, more=more
    )
    try:
        stand = _Stand(
            *(rig, gateway, key),
            _written(rig.folder / "corpus.jsonl", corpus),
            _written(rig.folder / "plain.jsonl", plain),
        )
        labels = _measure(stand)
        bodies = rig.folder / "bodies.txt"
        bodies.write_text("".join(f"{corpus.questions[number].body}\n" for number in corpus.draws))
        _saturate(stand, bodies)
        gateway.settled()
        counted = counts.counted([gateway.metrics()]).requests
    finally:
        gateway.stop()
    written = access_log.read_bytes().count(counts.ENDPOINT.encode())
    if written != counted:
        rig.book.faults.append(f"slo: {written} requests are in the access log, {counted} were counted")
    access_log.unlink()
    said = [note.removeprefix("slo: ") for note in rig.book.notes if note.startswith("slo: ")]
    rig.book.pages.append(
        "\n".join([page(rig.book, labels), *(f"\n* {note[0].upper()}{note[1:]}" for note in said)])
    )


def _measure(stand: _Stand) -> list[str]:
    rig = stand.rig
    try:
        direct = _patiently(stand.load, rig.direct.url(payload.MODEL), stand.plain, RATE / 2, _WARM_S)
        stand.constant_ms = direct["direct_first"]["p50_us"] / 1000
        rig.book.notes.append(f"slo: the backend itself is waited for {stand.constant_ms:.3f} ms (median)")
        _patiently(stand.load, stand.gateway.url(""), stand.corpus, RATE / 4, _WARM_S)
        for number in range(min(rig.rounds, 3)):
            _patiently(_run, stand, f"{RATE:,}/s", number, RATE, rig.seconds)
        highest, why = _knee(stand)
        rig.book.notes.append(f"slo: the knee is at {highest:,}/s: {why}")
        if highest:
            for number in range(min(rig.rounds, 3)):
                _patiently(_run, stand, "80 % of the knee", number, KNEE_SHARE * highest, rig.seconds)
    except Unusable as fault:
        rig.book.faults.append(f"slo: no figures: {fault}")
    of_slo = (s.subject for s in rig.book.samples if s.scenario == "slo" and "per_s" in s.figures)
    labels = [label for label in dict.fromkeys(of_slo) if not label.startswith(_CLIMB)]
    for label in labels:
        for one in objectives(rig.book.median("slo", label, "rate")):
            found = rig.book.median("slo", label, one.figure)
            (rig.book.at_least if one.least else rig.book.at_most)(
                f"slo, {label}: {one.name}", found, one.bound
            )
    return labels


def _run(stand: _Stand, label: str, number: int, rate: float, seconds: float) -> dict[str, float]:
    """One run through the gateway: its figures, entered as a sample."""
    gateway, book = stand.gateway, stand.rig.book
    gateway.without_clients()  # an earlier run may have left some that it had given up
    gateway.settled()
    before = gateway.metrics()
    clients: list[int] = []

    def halfway() -> None:
        gateway.metrics()  # as a Prometheus would
        clients.append(gateway.clients())

    found = stand.load(gateway.url(""), stand.corpus, rate, seconds, halfway)
    gateway.settled()
    after = gateway.metrics()
    counted = counts.counted([after]).since(counts.counted([before]))
    if not found["failed"] and +counted.outcomes != Counter(found["outcomes"]):
        book.faults.append(
            f"slo: {label}: the generator saw {found['outcomes']}, the gateway counted {dict(+counted.outcomes)}"
        )
    own = counts.Counts(below=_gained(before, after, counts.ADDED, 'cache="MISS"'))
    connects = counts.Counts(below=_gained(before, after, _CONNECTS, ""))
    figures = {
        "rate": rate,
        # the last answer comes when its request has been due for a moment, which the latencies tell
        "per_s": round(found["good"] / (took if (took := found["seconds"]) > seconds + 0.05 else seconds), 1),
        "errors_percent": round(100 * (found["planned"] - found["good"]) / found["planned"], 4),
        "hit_percent": round(100 * found["hits"] / found["planned"], 2),
        "cpu_percent": round(100 * found["watched_cpu"], 1),
        "cpu_us": round(1e6 * found["watched_cpu"] / rate, 1),
        "connects": max(connects.below.values(), default=0),
        "memory_percent": round(100 * _memory_mib(gateway) / GIVEN_MIB, 1),
        "clients": clients[0],
        "generator_cpu_percent": round(100 * found["cpu"], 1),
        "waited": found["waited"],
        "coalesced": found["outcomes"].get("COALESCED", 0),
    }
    for p in (50, 95, 99):
        figures[f"lag_p{p}_ms"] = found["lag"].get(f"p{p}_us", 0.0) / 1000
        figures[f"hit_p{p}_ms"] = found["hit"].get(f"p{p}_us", math.inf) / 1000
        figures[f"added_p{p}_ms"] = round(
            found["miss_first"].get(f"p{p}_us", math.inf) / 1000 - stand.constant_ms, 4
        )
        figures[f"stream_p{p}_ms"] = found["miss_stream"].get(f"p{p}_us", math.inf) / 1000
        figures[f"own_p{p}_ms"] = round(own.quantile_ms(p / 100), 3)
        figures[f"connect_p{p}_ms"] = round(connects.quantile_ms(p / 100), 3)
    figures |= {f"p{p}_us": found["hit"].get(f"p{p}_us", math.inf) for p in (50, 95, 99)}
    book.samples.append(Sample("slo", label, number, figures))
    if found["failed"]:
        book.notes.append(f"slo: {label}: failed: {found['failed']}")
    return figures


def _knee(stand: _Stand) -> tuple[int, str]:
    book = stand.rig.book

    def found(label: str) -> tuple[str, float]:
        figures = {name: book.median("slo", label, name) for name in (*OF_THE_KNEE, "per_s")}
        return missed(figures), figures["per_s"]

    def probe(rate: int) -> tuple[str, float]:
        label = f"{_CLIMB}{rate:,}/s"
        try:
            for number in range(_PROBES):
                _patiently(_run, stand, label, number, rate, _STEP_S)
        except Unusable as fault:
            return f"the generator gives out, not the gateway: {fault}", rate
        return found(label)

    return knee(RATE, *found(f"{RATE:,}/s"), probe)


def knee(
    rate: int, missed: str, carried: float, probe: Callable[[int], tuple[str, float]]
) -> tuple[int, str]:
    """Return the highest rate, in steps, at which nothing is missed, and what is at the next.

    What ``rate`` itself ``missed`` is known, and how many answers a second it had (``carried``); ``probe`` says both
    of another rate. Where too much was asked, less than was carried is tried next, then up again from there.
    """
    known: dict[int, str] = {}
    while missed:
        known[rate] = missed
        rate = min(rate - _STEP, int(carried) // _STEP * _STEP)
        if rate <= 0:
            return 0, missed
        missed, carried = probe(rate)
    while rate < _MOST:
        following = rate + _STEP
        missed = known.get(following) or probe(following)[0]
        if missed:
            return rate, f"{following:,}/s: {missed}"
        rate = following
    return rate, "the climb ends there"


def _saturate(stand: _Stand, bodies: Path) -> None:
    """The same corpus as fast as answers come, over 64 connections: how much goes through, never how long it takes."""
    rig, gateway = stand.rig, stand.gateway
    stand.lap += 1000
    used = gateway.cpu_s()
    load = rig.wrk.of_corpus(
        *(gateway.url(""), bodies, stand.lap), seconds=max(3.0, rig.seconds), bearer=stand.key
    )
    cpu = (gateway.cpu_s() - used) * 1e6 / load.duration_us
    rig.book.samples.append(
        Sample(
            "slo", "saturation", 0, {"closed_per_s": round(load.per_s, 1), "cpu_percent": round(100 * cpu, 1)}
        )
    )
    echo = Echo(rig.folder, rig.core)
    try:
        bare = rig.wrk.of_corpus(*(echo.url(payload.MODEL), bodies, 0), seconds=2.0)
    finally:
        echo.stop()
    rig.book.notes.append(
        f"slo: saturated: {load.per_s:,.0f} answers/s, {cpu:.0%} of the worker's core, "
        f"{load.per_s / bare.per_s:.2f} of bare Granian that is sent the same ({bare.per_s:,.0f})"
    )
    if load.socket_errors or load.status_errors:
        rig.book.faults.append(f"slo: saturated: {load.status_errors} not 2xx, {load.socket_errors} errors")


def _corpus(made: questions.Corpus) -> questions.Corpus:
    """The corpus with other names for the models of streams: nginx answers by port, it does not read bodies."""
    asked = []
    for one in made.questions:
        name = one.model + (_STREAMS if one.stream else "")
        body = one.body.replace(f'"model":"{one.model}"', f'"model":"{name}"', 1)
        asked.append(questions.Question(name, one.stream, body))
    return questions.Corpus(asked, made.draws, made.alpha, made.seed)


def _written(file: Path, corpus: questions.Corpus) -> Path:
    file.write_text("".join(f"{line}\n" for line in corpus.lines()))
    return file


def _gained(before: Exposition, after: Exposition, family: str, label: str) -> Counter[float]:
    old, new = before.buckets(family, label), after.buckets(family, label)
    return Counter({bound: round(count - old.get(bound, 0.0)) for bound, count in new.items()})


def _memory_mib(gateway: Gateway) -> float:
    """What all its processes hold themselves, and the cache's file, whose pages are all there from the start."""
    return sum(memory_kib(pid)["anonymous"] for pid in gateway.processes()) / 1024 + _L1_MIB
