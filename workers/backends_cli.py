"""`penstock backends [list | drain | undrain]`: their options, what they ask, and how they say it.

They return text; `cli` prints it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .table import table

_CANNOT = 2

Parsers = Any
"""What `add_subparsers` gives, a private type of argparse."""


class Failed(Exception):
    """A verb could not do it; the text is one line, `status` the exit status."""

    def __init__(self, why: object, status: int) -> None:
        super().__init__(str(why))
        self.status = status


def add_verbs(commands: Parsers, parser: type[argparse.ArgumentParser], port: Callable[[str], int]) -> None:
    """Put `backends` and its verbs among the commands."""
    backends = commands.add_parser("backends", help="look at a running gateway's backends, or drain one")
    _common(backends, port)
    verbs = backends.add_subparsers(dest="verb", parser_class=parser, metavar="VERB")
    listing = verbs.add_parser("list", help="all of them; also without a verb")
    drain = verbs.add_parser("drain", help="give one no further requests; what it has is finished")
    undrain = verbs.add_parser("undrain", help="give it requests again")
    for verb in (drain, undrain):
        verb.add_argument("backend", metavar="NAME", help="host:port, or the URL")
        verb.add_argument("--model", metavar="M", help="of this model alone, by name or alias")
    for verb in (listing, drain, undrain):
        _common(verb, port, argparse.SUPPRESS)


def _common(verb: argparse.ArgumentParser, port: Callable[[str], int], default: Any = None) -> None:
    """Options that may stand before the verb or after it; the latter must not undo the former (`default`)."""
    verb.add_argument(
        "--json", action="store_true", default=default or False, help="the gateway's answer as it is"
    )
    verb.add_argument(
        "-c",
        "--config",
        type=Path,
        default=default,
        metavar="FILE",
        help="which gateway, by its configuration",
    )
    verb.add_argument("--port", type=port, default=default, help="which gateway, by its API port")


def run(args: argparse.Namespace) -> str:
    """What a verb prints. Raises Failed."""
    from .admin import BACKENDS, BACKENDS_DRAIN, BACKENDS_UNDRAIN
    from .reach import CannotReach, Refusal, ask

    method, path, body, say = "GET", BACKENDS, None, _listed
    if args.verb in ("drain", "undrain"):
        method, path = "POST", BACKENDS_DRAIN if args.verb == "drain" else BACKENDS_UNDRAIN
        body = {"backend": args.backend} | ({"model": args.model} if args.model is not None else {})
        say = _drained if args.verb == "drain" else _undrained
    try:
        raw = ask(args.config, args.port, method, path, body)
    except CannotReach as fault:
        raise Failed(fault, _CANNOT) from None
    except Refusal as fault:
        raise Failed(fault, _CANNOT if fault.status < 500 else 1) from None
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
