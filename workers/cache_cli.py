"""`penstock cache stats | flush | get | explain`: their options, what they ask, and how they say it.

They return text; `cli` prints it. The first three ask the gateway that runs, the last one reads files.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from .table import table
from .verbs import Failed, Parsers, add_gateway, asked

_KIB = 1024
_MIB = 1024 * _KIB
_GIB = 1024 * _MIB
_MOST_COLUMNS = 8
"""Workers that get a column of their own."""


def add_verbs(commands: Parsers, parser: type[argparse.ArgumentParser], port: Callable[[str], int]) -> None:
    """Put `cache` and its verbs among the commands."""
    cache = commands.add_parser("cache", help="look at the cache of a running gateway, or flush it")
    verbs = cache.add_subparsers(dest="verb", parser_class=parser, metavar="VERB", required=True)
    stats = verbs.add_parser("stats", help="what is in it and what it did")
    flush = verbs.add_parser("flush", help="make answers stale, on all nodes")
    what = flush.add_mutually_exclusive_group(required=True)
    what.add_argument("--all", action="store_true", help="everything")
    what.add_argument("--model", metavar="M", help="the answers of one model, by name or alias")
    what.add_argument("--tenant", metavar="T", help="the answers of one tenant")
    what.add_argument("--key", type=_key, metavar="K", help="one answer, by its key of 64 hexadecimal digits")
    get = verbs.add_parser("get", help="one answer in shared memory")
    get.add_argument("key", type=_key, metavar="KEY", help="64 hexadecimal digits, as `explain` prints them")
    get.add_argument("--body", action="store_true", help="with what it holds")
    get.add_argument(
        "--model", metavar="M", help="whose it is, by name or alias: says for sure if it is fresh"
    )
    get.add_argument("--tenant", metavar="T", help="likewise")
    for verb in (stats, flush, get):
        add_gateway(verb, port)
    explain = verbs.add_parser("explain", help="what the cache makes of a request body")
    explain.add_argument("file", type=Path, metavar="FILE", help="the body")
    explain.add_argument(
        "-c", "--config", type=Path, metavar="FILE", help="the configuration; without one, defaults"
    )
    explain.add_argument(
        "--endpoint",
        default="/v1/chat/completions",
        metavar="PATH",
        help="where it is sent; default: %(default)s",
    )
    explain.add_argument("--tenant", metavar="T", help="who sends it")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> str:
    """What a verb prints. Raises Failed."""
    return _explained(args, environ) if args.verb == "explain" else _asked(args)


def _explained(args: argparse.Namespace, environ: Mapping[str, str]) -> str:
    from ..gateway.config import ConfigError
    from .explain import CannotExplain, explain
    from .source import Source

    try:
        config = Source(args.config).settle(environ)[0] if args.config is not None else None
        return explain(args.file, config, args.endpoint, args.tenant)
    except (ConfigError, CannotExplain) as fault:
        raise Failed(fault) from None


def _asked(args: argparse.Namespace) -> str:
    from .admin import CACHE_ENTRIES, CACHE_FLUSH, CACHE_STATS

    body: dict[str, Any] | None = None
    if args.verb == "stats":
        method, path, say = "GET", CACHE_STATS, _stats
    elif args.verb == "flush":
        method, path, say = "POST", CACHE_FLUSH, _flushed
        body = {"all": True} if args.all else _given(args, "model", "tenant", "key")
    else:
        query = urlencode(_given(args, "model", "tenant") | ({"body": "true"} if args.body else {}))
        method, path, say = "GET", f"{CACHE_ENTRIES}{args.key}?{query}", _entry
    raw = asked(args, method, path, body)
    if args.json:
        return raw.decode()
    said: dict[str, Any] = json.loads(raw)
    return say(said)


def _given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the options that were given."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def _key(text: str) -> str:
    if re.fullmatch(r"[0-9a-fA-F]{64}", text) is None:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a key of 64 hexadecimal digits")
    return text.lower()


def _flushed(said: dict[str, Any]) -> str:
    ((field, value),) = said["flushed"].items()
    what = "everything" if field == "all" else f"{field} {value}"
    nodes = {
        "told": "other nodes have been told",
        "pending": "other nodes are told when Redis is back",
        "none": "no other node shares it",
    }[said["other_nodes"]]
    return f"flushed {what}; {nodes}"


def _entry(said: dict[str, Any]) -> str:
    fresh = {True: "yes", False: "no", None: "depends on whose it is: say --model and --tenant"}[
        said["fresh"]
    ]
    kind = f"a stream of {said['pieces']} pieces" if said["kind"] == "stream" else "whole"
    text = table(
        [
            ("key", said["key"]),
            ("answer", f"{said['status']} {said['content_type']}, {kind}"),
            ("body", f"{said['body_bytes']:,} bytes"),
            ("entry", f"{said['entry_bytes']:,} bytes"),
            ("age", f"{said['age_s']:g} s"),
            ("ttl left", f"{said['ttl_left_s']:g} s"),
            ("fresh", fresh),
        ]
    )
    body = said.get("body", said.get("body_base64"))
    return text if body is None else f"{text}\n\n{body}"


def _stats(said: dict[str, Any]) -> str:
    l1, l2 = said["l1"], said["l2"]
    rows = [("mode", said["mode"])]
    if l1 is None:
        rows.append(("L1", "none"))
    else:
        share = 100 * l1["used_bytes"] / l1["size_bytes"]
        rows.append(("L1", f"{_size(l1['size_bytes'])}, {_size(l1['used_bytes'])} used ({share:.1f} %)"))
        rows.append(
            ("", f"{l1['segments']} segments of {_size(l1['segment_bytes'])}, {l1['segments_open']} open")
        )
    if l2 is None:
        rows.append(("L2", "none"))
    else:
        state = "in use" if l2["synced"] else "not in use: what other nodes flushed is not known"
        rows.append(("L2", f"{l2['topology']}, {state}"))
        if l2["flushes_untold"]:
            rows.append(("", f"{l2['flushes_untold']} flushes wait to be told"))
    rows.append(("epochs", f"{said['epochs_set']} set"))
    parts = [table(rows)]
    for title in ("requests", "bypasses", "flights"):
        counts = [(name, f"{n:,}") for name, n in said[title].items()]
        if counts:
            parts.append(f"{title}\n{table(counts, right=True)}")
    events = _events(said)
    if events:
        parts.append(events)
    return "\n\n".join(parts)


def _events(said: dict[str, Any]) -> str:
    """A line an event; a column for all workers, and one for each where they are few."""
    workers = said["workers"] if 1 < len(said["workers"]) <= _MOST_COLUMNS else {}
    rows = [["events", "all", *(f"worker {name}" for name in workers)]]
    for layer, counts in sorted(said["events"].items()):
        for event, n in counts.items():
            each = (found.get(layer, {}).get(event, 0) for found in workers.values())
            rows.append([f"{layer} {event}", f"{n:,}", *(f"{count:,}" for count in each)])
    return table(rows, right=True) if len(rows) > 1 else ""


def _size(size_bytes: int) -> str:
    for unit, name in ((_GIB, "GiB"), (_MIB, "MiB"), (_KIB, "KiB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes} B"
