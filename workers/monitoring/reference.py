"""The page of all metric families, made from where they are declared."""

from __future__ import annotations

from collections.abc import Iterable

from ...gateway.metrics import FAMILIES, Family
from ..families import SEEN
from ..scrape import CONTROL_FAMILIES

_HEAD = """\
# Metrics

`/metrics` of the admin port (127.0.0.1:9090 unless told otherwise) has them, of all processes of the node together, in
the Prometheus text format. `/proxy/metrics` has the same without the backends' own. With `admin.key_env` set it wants
that key; [monitoring.md](monitoring.md) has Prometheus's side.

Counters go on through deaths and restarts of workers; they begin anew with a new start of the gateway. A gauge of a
worker counts while the worker lives. Families without a series are there with their name and help alone. Times are in
seconds, sizes in bytes.

This page is made from the code by `make docs`.
"""
_TAIL = """\

## Of the backends

Every family whose name begins with `vllm:`, as each server that is up gives it at its own `/metrics`, with a label
`backend` (`host:port`, or the socket's path). What is over 2 MiB for one server, or over 32 MiB for all, is left out.

## Events of the cache

Of `penstock_cache_events_total`, `layer="l1"`: `stored`, of them `replaced` over an older answer; `evicted` for want of
room; `expired` when their turn came; `carried` because they had been read; `skipped` when no segment was to be had at
that moment; `too_large`. `layer="l2"`: `hits`, `misses`, `skipped` (not asked: it does not answer), `foreign` (no entry
of ours), `commands`, `timeouts`, of them `late` when the reply came after all, `errors`, `stored`, `stored_bytes`,
`refused` (its memory is full), and what [redis.md](redis.md) says of the queue of stores.
"""


def markdown() -> str:
    """`docs/metrics.md`."""
    parts = [_HEAD]
    parts += _table("Counted by workers", FAMILIES.values())
    parts += _table("Counted by the controller", CONTROL_FAMILIES.values())
    parts += _table("Seen by the controller at each scrape", SEEN.values())
    buckets = {family.buckets_s: None for family in _histograms()}
    parts.append("\n## Buckets\n\nUpper bounds in seconds; `+Inf` comes after them.\n")
    for bounds in buckets:
        names = ", ".join(f"`{family.name}`" for family in _histograms() if family.buckets_s == bounds)
        parts.append(f"* {names}: {', '.join(f'{bound:g}' for bound in bounds)}")
    parts.append(_TAIL)
    return "\n".join(parts)


def _histograms() -> list[Family]:
    return [family for family in (*FAMILIES.values(), *CONTROL_FAMILIES.values()) if family.buckets_s]


def _table(title: str, families: Iterable[Family]) -> list[str]:
    lines = [f"\n## {title}\n", "| family | type | labels | what |", "|---|---|---|---|"]
    for family in families:
        labels = ", ".join((*family.labels, "worker") if family.worker else family.labels)
        lines.append(f"| `{family.name}` | {family.type} | {labels} | {family.help} |")
    return lines
