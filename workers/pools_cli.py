"""`penstock pools`, `wake`, `stop` and `switch`: their options, what they ask, and how they say it.

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
VERBS = ("wake", "stop", "switch")
_TOLD = {
    "wake": "is to be ready",
    "stop": "is to be off as soon as nothing is in flight",
    "switch": "is to be ready, and the others off",
}

Parsers = Any
"""What `add_subparsers` gives, a private type of argparse."""


class Failed(Exception):
    """A verb could not do it; the text is one line, `status` the exit status."""

    def __init__(self, why: object, status: int) -> None:
        super().__init__(str(why))
        self.status = status


def add_verbs(
    commands: Parsers, parser: type[argparse.ArgumentParser], port: Callable[[str], int]
) -> Parsers:
    """Put the verbs among the commands; what further verbs of `pools` are put among."""
    pools = commands.add_parser("pools", help="look at a running gateway's pools of servers that sleep")
    _common(pools, port)
    verbs = pools.add_subparsers(dest="verb", parser_class=parser, metavar="VERB")
    _common(verbs.add_parser("list", help="all of them; also without a verb"), port, argparse.SUPPRESS)
    for verb, help in (
        ("wake", "have a model's servers ready"),
        ("stop", "have them off as soon as nothing is in flight; the next request wakes them"),
        ("switch", "have one model ready, and all others off that may be"),
    ):
        one = commands.add_parser(verb, help=help)
        one.add_argument("model", metavar="MODEL", help="name or alias")
        _common(one, port)
    return verbs


def _common(verb: argparse.ArgumentParser, port: Callable[[str], int], default: Any = None) -> None:
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
    from .admin import POOLS
    from .reach import CannotReach, Refusal, ask

    method, path, body = "GET", POOLS, None
    if args.command in VERBS:
        method, path, body = "POST", f"{POOLS}/{args.command}", {"model": args.model}
    try:
        raw = ask(args.config, args.port, method, path, body)
    except CannotReach as fault:
        raise Failed(fault, _CANNOT) from None
    except Refusal as fault:
        raise Failed(fault, _CANNOT if fault.status < 500 else 1) from None
    if args.json:
        return raw.decode()
    told = _listed(json.loads(raw)["pools"])
    if args.command in VERBS:
        return f"{args.model} {_TOLD[args.command]}; `penstock pools` tells how far it is. Now:\n{told}"
    return told


def _listed(pools: Sequence[Mapping[str, Any]]) -> str:
    if not pools:
        return "no model has a pool"
    rows = [("model", "provider", "phase", "ready", "for", "waiting", "queued", "running", "")]
    rows += [
        (
            one["model"],
            one["provider"],
            one["phase"],
            f"{one['ready']} of {one['max']}",
            f"{one['phase_for_s']:.0f} s",
            *(str(one[key]) for key in ("waiting", "queued", "running")),
            one["reason"] if one["phase"] == "failed" else "",
        )
        for one in pools
    ]
    return table(rows)
