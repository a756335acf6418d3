"""`penstock backends [list | drain | undrain]`: their options, what they ask, and how they say it.

They return text; `cli` prints it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .table import table
from .verbs import Parsers, add_gateway, asked


def add_verbs(commands: Parsers, parser: type[argparse.ArgumentParser], port: Callable[[str], int]) -> None:
    """Put `backends` and its verbs among the commands."""
    backends = commands.add_parser("backends", help="look at a running gateway's backends, or drain one")
    add_gateway(backends, port)
    verbs = backends.add_subparsers(dest="verb", parser_class=parser, metavar="VERB")
    listing = verbs.add_parser("list", help="all of them; also without a verb")
    drain = verbs.add_parser("drain", help="give one no further requests; what it has is finished")
    undrain = verbs.add_parser("undrain", help="give it requests again")
    for verb in (drain, undrain):
        verb.add_argument("backend", metavar="NAME", help="host:port, or the URL")
        verb.add_argument("--model", metavar="M", help="of this model alone, by name or alias")
    for verb in (listing, drain, undrain):
        add_gateway(verb, port, argparse.SUPPRESS)


def run(args: argparse.Namespace) -> str:
    """What a verb prints. Raises Failed."""
    from .admin import BACKENDS, BACKENDS_DRAIN, BACKENDS_UNDRAIN

    method, path, body, say = "GET", BACKENDS, None, _listed
    if args.verb in ("drain", "undrain"):
        method, path = "POST", BACKENDS_DRAIN if args.verb == "drain" else BACKENDS_UNDRAIN
        body = {"backend": args.backend} | ({"model": args.model} if args.model is not None else {})
        say = _drained if args.verb == "drain" else _undrained
    raw = asked(args, method, path, body)
    return raw.decode() if args.json else say(json.loads(raw)["backends"])


def _listed(backends: Sequence[Mapping[str, Any]]) -> str:
    if not backends:
        return "no backend: none has been found yet"
    rows = [("model", "backend", "zone", "tier", "health", "in flight", "waiting", "kv", "weight")]
    rows += [
        (
            one["model"],
            one["backend"],
            one["zone"] or "-",
            str(one["priority"]),
            _health(one),
            str(one["inflight"]),
            *(
                ("-", "-")
                if one["reported_age_s"] is None
                else (str(one["waiting"]), f"{one['kv_usage']:.0%}")
            ),
            f"{one['weight']:g}" + (f" x {one['ramp']:g}" if one["ramp"] < 1 else ""),
        )
        for one in backends
    ]
    return table(rows)


def _health(one: Mapping[str, Any]) -> str:
    health: str = one["health"]
    more = (one["drained"] and "drained", one["breaker"] not in (None, "closed") and "breaker open")
    return ", ".join([health, *(word for word in more if word)])


def _drained(backends: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(
        f"{one['model']}: {one['backend']} is drained; {one['inflight']} in flight" for one in backends
    )


def _undrained(backends: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(f"{one['model']}: {one['backend']} gets requests again" for one in backends)
