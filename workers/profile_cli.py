"""`penstock profile`: its options, and the file it writes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

from .verbs import Failed, Parsers, add_which, asked

_PATIENCE_S = 60.0
_PLACES = {".html": ("/debug/profile", {"format": "html"}), ".gz": ("/debug/pprof/profile", {})}


def add_verb(commands: Parsers, port: Callable[[str], int]) -> None:
    """Put `profile` among the commands."""
    profile = commands.add_parser("profile", help="write what a running gateway spends its processor time in")
    profile.add_argument("--seconds", type=float, default=10.0, metavar="N", help="how long; default: 10")
    profile.add_argument(
        "--worker", default="all", metavar="W", help="its number, or controller; default: all workers"
    )
    profile.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("penstock-profile.json"),
        metavar="FILE",
        help=".html for a page, .pb.gz for pprof, anything else for speedscope; default: penstock-profile.json",
    )
    add_which(profile, port)


def run(args: argparse.Namespace) -> str:
    """Take it and write it; what is printed. Raises Failed."""
    path, more = _PLACES.get(args.output.suffix, ("/debug/profile", {}))
    query = urlencode({"seconds": args.seconds, "worker": args.worker, **more})
    data = asked(args, "GET", f"{path}?{query}", timeout_s=max(0.0, args.seconds) + _PATIENCE_S)
    try:
        args.output.write_bytes(data)
    except OSError as fault:
        raise Failed(f"{args.output}: {fault.strerror}") from None
    return f"{args.output}: {len(data):,} bytes"
