"""`penstock pools`, `wake`, `stop` and `switch`: their options, what they ask, and how they say it.

They return text; `cli` prints it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .table import table
from .verbs import Parsers, add_gateway, asked

VERBS = ("wake", "stop", "switch")
_TOLD = {
    "wake": "is to be ready",
    "stop": "is to be off as soon as nothing is in flight",
    "switch": "is to be ready, and the others off",
}


def add_verbs(
    commands: Parsers, parser: type[argparse.ArgumentParser], port: Callable[[str], int]
) -> Parsers:
    """Put the verbs among the commands; what further verbs of `pools` are put among."""
    pools = commands.add_parser("pools", help="look at a running gateway's pools of servers that sleep")
    add_gateway(pools, port)
    verbs = pools.add_subparsers(dest="verb", parser_class=parser, metavar="VERB")
    add_gateway(verbs.add_parser("list", help="all of them; also without a verb"), port, argparse.SUPPRESS)
    for verb, help in (
        ("wake", "have a model's servers ready"),
        ("stop", "have them off as soon as nothing is in flight; the next request wakes them"),
        ("switch", "have one model ready, and all others off that may be"),
    ):
        one = commands.add_parser(verb, help=help)
        one.add_argument("model", metavar="MODEL", help="name or alias")
        add_gateway(one, port)
    return verbs


def run(args: argparse.Namespace) -> str:
    """What a verb prints. Raises Failed."""
    from .admin import POOLS

    method, path, body = "GET", POOLS, None
    if args.command in VERBS:
        method, path, body = "POST", f"{POOLS}/{args.command}", {"model": args.model}
    raw = asked(args, method, path, body)
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
