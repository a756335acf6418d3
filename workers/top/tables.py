"""The tables of a frame, from what happened between two samples. Pure; knows no terminal.

What needs a look comes first in its table, because the end of a long one is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...cache.outcome import Outcome
from ...gateway import metrics
from ...gateway.upstream.origin import Origin
from .. import families
from .change import Change
from .sample import KV_USED, RUNNING, WAITING
from .section import BAD, GOOD, WORTH_A_LOOK, Cell, Section
from .words import count, duration, percent, rate, size

_LAYERS = tuple(one.value for one in Outcome)
_LOOKED = tuple(one for one in _LAYERS if one != Outcome.BYPASS.value)
_HITS = (Outcome.HIT_L1.value, Outcome.HIT_L2.value)
_QS = (0.5, 0.95, 0.99)
_HEALTH = {"up": GOOD, "down": BAD}
_PHASE = {"ready": GOOD, "failed": BAD, "starting": WORTH_A_LOOK, "draining": WORTH_A_LOOK}


def tables(change: Change) -> list[Section]:
    """All of them, those that a small terminal shows first."""
    return [
        _requests(change),
        _cache(change),
        _errors(change),
        _models(change),
        _backends(change),
        _pools(change),
        _workers(change),
    ]


def _requests(change: Change) -> Section:
    def line(name: str, counter: str, histogram: str, **labels: str) -> list[Cell]:
        return [
            name,
            rate(change.rate(counter, **labels)),
            *(duration(one) for one in change.quantiles(_QS, histogram)),
            count(change.now.total(counter, **labels)),
        ]

    first, tokens = metrics.FIRST_TOKEN.name, metrics.TOKENS.name
    return Section(
        ("REQUESTS", "a second", "p50", "p95", "p99", "since start"),
        [
            line("all, to the last byte", metrics.REQUESTS.name, metrics.DURATION.name),
            line("added by the gateway", f"{metrics.ADDED.name}_count", metrics.ADDED.name),
            line("to a stream's first token", f"{first}_count", first),
            line("tokens, between two", tokens, metrics.INTER_TOKEN.name, kind="completion"),
        ],
        keep=4,
    )


def _cache(change: Change) -> Section:
    """Shares are those of the requests that the cache had to do with, as in the rule for the hit rate."""
    name = metrics.REQUESTS.name
    now, total = change.rates("cache", name) or {}, change.now.by("cache", name)
    rows: list[list[str]] = [["share now"], ["share since start"], ["a second"], ["since start"]]
    for layers in (_HITS, *((one,) for one in _LAYERS)):
        a_second, whole = (sum(told.get(one, 0.0) for one in layers) for told in (now, total))
        looked, ever = (sum(told.get(one, 0.0) for one in _LOOKED) for told in (now, total))
        counts = layers[0] in _LOOKED
        rows[0].append(percent(a_second / looked if looked else None) if counts else "")
        rows[1].append(percent(whole / ever if ever else None) if counts else "")
        rows[2].append(rate(a_second if change.over_s else None))
        rows[3].append(count(whole))
    return Section(("CACHE", "hits", *_LAYERS), [*rows], keep=4)


def _errors(change: Change) -> Section:
    name = metrics.ERRORS.name
    now, total = change.rates("code", name) or {}, change.now.by("code", name)
    section = Section(("ERRORS", "a second", "since start"))
    for code in sorted(total, key=lambda code: (-now.get(code, 0.0), -total[code], code)):
        if total[code]:
            bad = BAD if now.get(code) else ""
            section.rows.append((code, (rate(now.get(code)), bad), count(total[code])))
    return section


def _models(change: Change) -> Section:
    rates = change.rates("model", metrics.REQUESTS.name) or {}
    section = Section(("MODELS", "requests/s", "running", "of", "queued", "of", "waking"))
    models: Mapping[str, Any] = change.now.status["models"]
    for name, one in sorted(models.items(), key=lambda item: -item[1]["queued"] - item[1]["waiting"]):
        stuck = WORTH_A_LOOK if one["queued"] else ""
        section.rows.append(
            (
                name,
                rate(rates.get(name, 0.0) if change.over_s else None),
                count(one["running"]),
                count(one["max_concurrent"]),
                (count(one["queued"]), stuck),
                count(one["max_queue"]),
                (count(one["waiting"]), WORTH_A_LOOK if one["waiting"] else ""),
            )
        )
    return section


def _backends(change: Change) -> Section:
    section = Section(
        ("BACKENDS", "of", "health", "in flight", "weight", "vLLM runs", "queues", "KV"), left=3
    )
    rows = []
    for model, told in change.now.status["models"].items():
        for one in told["backends"]:
            health, style = _health(one)
            name = Origin.parse(one["url"]).name
            row = (
                name,
                model,
                (health, style),
                count(one["inflight"]),
                f"{one['weight']:g}",
                *_own_words(change, name),
            )
            rows.append((style != BAD, row))
    section.rows = [row for _, row in sorted(rows, key=lambda ranked: ranked[0])]
    return section


def _health(one: Mapping[str, Any]) -> tuple[str, str]:
    health: str = one["health"]
    if one["breaker"] not in (None, "closed"):
        return f"{health}, breaker", BAD
    if one["drained"]:
        return f"{health}, drained", WORTH_A_LOOK
    return health, _HEALTH.get(health, "")


def _own_words(change: Change, backend: str) -> Iterator[str]:
    """What its `/metrics` says: running, waiting, and how full the fullest engine's KV cache is."""
    for name in (RUNNING, WAITING):
        found = [value for _, value in change.now.each(name, backend=backend)]
        yield count(sum(found)) if found else "-"
    used = [value for name in KV_USED for _, value in change.now.each(name, backend=backend)]
    yield percent(max(used, default=None))


def _pools(change: Change) -> Section:
    section = Section(("POOLS", "provider", "phase", "for", "servers", ""), left=5)
    pools: Mapping[str, Any] = change.now.status["pools"]
    for one in sorted(pools.values(), key=lambda one: bool(one["phase"] != "failed")):
        phases = [member["phase"] for member in one["members"]]
        servers = ", ".join(f"{phases.count(p)} {p}" for p in sorted(set(phases)) if p != "off")
        section.rows.append(
            (
                one["model"],
                one["provider"],
                (one["phase"], _PHASE.get(one["phase"], "")),
                duration(one["phase_for_s"]),
                f"{servers or 'none'} of {one['max']}",
                one["reason"] if one["phase"] == "failed" else "",
            )
        )
    return section


def _workers(change: Change) -> Section:
    section = Section(("PROCESSES", "pid", "CPU", "memory", "lag p99", "lag max", "answering", "clients"))
    cpu = change.rates("pid", families.PROCESS_CPU_SECONDS.name) or {}
    now = change.now
    seen = sorted(
        now.each(families.PROCESS_RESIDENT_BYTES.name),
        key=lambda one: (not one[0]["process"].startswith("worker-"), len(one[0]["process"]), str(one[0])),
    )
    for labels, resident in seen:
        process, pid = labels["process"], labels["pid"]
        row: list[Cell] = [process, pid, percent(cpu.get(pid)), size(resident)]
        if process.startswith("worker-"):
            worker = process.removeprefix("worker-")
            lag = change.quantiles((0.99,), metrics.LAG.name, worker=worker)[0]
            longest = now.total(metrics.LAG_MAX.name, worker=worker)
            row += [
                duration(lag),
                (duration(longest), WORTH_A_LOOK if longest >= 0.1 else ""),
                count(now.total(metrics.INFLIGHT.name, worker=worker)),
                count(now.total(metrics.CLIENTS.name, worker=worker)),
            ]
        section.rows.append(row)
    return section
