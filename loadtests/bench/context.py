"""What a scenario works with: the rig, and the book in which it enters samples, goals and faults.

A *fault* is a wrong answer (a reply without x-request-id, a count that does not add up, an error): the bench fails.
A *goal* is a figure with a bound: met or missed, printed either way, and no reason to fail unless asked for.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .rig import client, payload
from .rig.process import RigError
from .rig.wrk import Load, Wrk
from .subjects import Gateway, Subject

_EXACT_REQUESTS = 1000
_EXACT_CONNECTIONS = 8


@dataclass(frozen=True, slots=True)
class Sample:
    """One subject under one load for one round. ``figures`` are named with their unit."""

    scenario: str
    subject: str
    round: int
    figures: dict[str, float]


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure with a bound."""

    name: str
    bound: str
    found: float
    met: bool


@dataclass(slots=True)
class Book:
    """Everything a run found out."""

    samples: list[Sample] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    layout: list[dict[str, object]] = field(default_factory=list)
    #: tables in Markdown, as the documents have them
    pages: list[str] = field(default_factory=list)

    def at_least(self, name: str, found: float, bound: float) -> None:
        """Enter a goal that is met from ``bound`` up."""
        self.goals.append(Goal(name, f">= {bound:g}", round(found, 4), found >= bound))

    def at_most(self, name: str, found: float, bound: float) -> None:
        """Enter a goal that is met up to ``bound``."""
        self.goals.append(Goal(name, f"<= {bound:g}", round(found, 4), found <= bound))

    def of(self, scenario: str, subject: str, figure: str) -> list[float]:
        """Return a figure of one subject in one scenario, round by round."""
        return [
            s.figures[figure]
            for s in self.samples
            if s.scenario == scenario and s.subject == subject and figure in s.figures
        ]

    def median(self, scenario: str, subject: str, figure: str) -> float:
        """Return the median over the rounds, 0 when there are none."""
        found = self.of(scenario, subject, figure)
        return statistics.median(found) if found else 0.0

    def ratio(self, scenario: str, subject: str, other: str, figure: str = "per_s") -> float:
        """Return the median over the rounds of subject over other, both taken in the same round."""
        pairs = zip(self.of(scenario, subject, figure), self.of(scenario, other, figure), strict=False)
        found = [a / b for a, b in pairs if b]
        return statistics.median(found) if found else 0.0


@dataclass(slots=True)
class Rig:
    """The parts that stand while the bench runs."""

    folder: Path
    repository: Path
    wrk: Wrk
    core: int
    load_cores: list[int]
    machine: list[int]
    backends: dict[str, int]
    direct: Subject
    paced_direct: Subject
    router: Path | None
    rounds: int
    seconds: float
    streams: int
    idle_clients: int
    book: Book
    #: of the keys drawn; another one each time, so that no round asks what an earlier one asked
    seed: int = field(default_factory=time.time_ns)

    def gateway(
        self, name: str = "gateway", level: str = "INFO", *, model: str | None = None, concurrent: int = 1100
    ) -> Gateway:
        """Start the gateway with one worker on the core under test.

        It stands in front of all the rig's backends, or of one ``model``'s; each may have ``concurrent`` requests.
        """
        backends = self.backends if model is None else {model: self.backends[model]}
        gateway = Gateway(
            self.folder,
            backends,
            cores=[self.core],
            machine=self.machine,
            name=name,
            level=level,
            concurrent=concurrent,
        )
        if not self.book.layout:
            self.book.layout = gateway.layout()
        return gateway

    def measure(
        self,
        scenario: str,
        subject: Subject,
        number: int,
        body: bytes,
        model: str,
        connections: int = 64,
        keys: int | None = None,
        bearer: str = "",
    ) -> Load:
        """Load one subject for one round and enter the sample; for a gateway its own count must agree.

        ``keys``: how many different bodies there are, see :meth:`penstock.loadtests.bench.rig.wrk.Wrk.of_keys`.
        """
        url = subject.url(model)
        counted = subject.settled() if isinstance(subject, Gateway) else 0
        others = subject.others_cpu_s() if isinstance(subject, Gateway) else 0.0
        cpu = subject.cpu_s()
        if keys is None:
            load = self.wrk.run(url, body, connections=connections, seconds=self.seconds)
        else:
            self.seed += 1
            load = self.wrk.of_keys(
                url, body, keys, self.seed, connections=connections, seconds=self.seconds, bearer=bearer
            )
        used = subject.cpu_s() - cpu
        figures = {**load.as_dict(), "rss_kib": subject.rss_kib()}
        figures["cpu_us"] = round(used * 1e6 / max(1, load.requests), 2)
        if isinstance(subject, Gateway):
            figures["others_cpu_s"] = round(subject.others_cpu_s() - others, 2)
        if isinstance(subject, Gateway) and subject.counts:
            self._agree(scenario, subject, subject.settled() - counted, load.requests, connections)
        self.book.samples.append(Sample(scenario, subject.name, number, figures))
        if load.socket_errors or load.status_errors:
            message = f"{scenario}: {subject.name}: {load.status_errors} answers not 2xx, {load.socket_errors} errors"
            (self.book.faults if isinstance(subject, Gateway) else self.book.notes).append(message)
        return load

    def _agree(self, scenario: str, subject: Gateway, counted: int, seen: int, connections: int) -> None:
        # wrk stops with up to one request a connection sent and its reply unread: those may be counted or not.
        if not seen <= counted <= seen + connections:
            self.book.faults.append(
                f"{scenario}: {subject.name} counted {counted} requests, wrk saw {seen} answered "
                f"and had at most {connections} more under way"
            )

    def alternate(
        self,
        scenario: str,
        subjects: Sequence[Subject],
        body: bytes,
        model: str,
        connections: int = 64,
        keys: int | None = None,
        bearer: str = "",
    ) -> None:
        """Measure all subjects in every round, forwards and backwards by turns, after a short warm-up of each."""
        for subject in subjects:
            if keys is None:
                self.wrk.run(subject.url(model), body, connections=connections, seconds=1)
            else:
                self.seed += 1
                self.wrk.of_keys(
                    *(subject.url(model), body, keys, self.seed),
                    connections=connections,
                    seconds=1,
                    bearer=bearer,
                )
        for number in range(self.rounds):
            for subject in subjects if number % 2 == 0 else list(reversed(subjects)):
                self.measure(scenario, subject, number, body, model, connections, keys, bearer)

    def check_replies(self, scenario: str, gateway: Gateway, body: bytes, model: str) -> None:
        """Look at the replies themselves, apart from any timing: x-request-id on each, and an exact count."""
        url = gateway.url(model)
        checked, missing = self.wrk.verify(url, body)
        if missing or not checked:
            self.book.faults.append(f"{scenario}: {missing} of {checked} replies lack x-request-id")
        counted = gateway.settled()
        replies = asyncio.run(_exactly(url, body))
        counted = gateway.settled() - counted
        bad = sum(reply.status != 200 or not reply.request_id for reply in replies)
        if bad:
            self.book.faults.append(
                f"{scenario}: {bad} of {len(replies)} replies not 200 or without x-request-id"
            )
        if counted != len(replies):
            self.book.faults.append(f"{scenario}: {counted} requests counted, {len(replies)} sent")

    def other_router(self) -> list[Subject]:
        """Start the other router when there is one; a note says why there is none."""
        from .subjects import Router

        if self.router is None:
            return []
        ports = {model: self.backends[model] for model in (payload.MODEL, payload.STREAM_MODEL)}
        try:
            return [Router(self.folder, self.router, ports, self.core)]
        except RigError as fault:
            self.book.notes.append(f"vllm-router left out: {fault}")
            return []


async def _exactly(url: str, body: bytes) -> list[client.Reply]:
    request = client.request(url, body)

    async def some(count: int) -> list[client.Reply]:
        connection = await client.connect(url)
        try:
            return [await connection.ask(request) for _ in range(count)]
        finally:
            connection.close()

    each = _EXACT_REQUESTS // _EXACT_CONNECTIONS
    found = await asyncio.gather(*(some(each) for _ in range(_EXACT_CONNECTIONS)))
    return [reply for part in found for reply in part]
