"""`penstock top`: its options, and which way frames go out."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from ..verbs import Parsers, add_which


def add_verb(commands: Parsers, port: Callable[[str], int]) -> None:
    """Put `top` among the commands."""
    top = commands.add_parser("top", help="watch a running gateway: rates, latency, cache, backends, pools")
    top.add_argument(
        "--interval", type=_interval, default=2.0, metavar="S", help="seconds between two looks; default: 2"
    )
    top.add_argument("--once", action="store_true", help="look twice, print one frame and exit")
    add_which(top, port)


def run(args: argparse.Namespace) -> None:
    """Print frames; one, or until told to stop. Raises Failed where there is to be one and no gateway answers."""
    from rich.console import Console

    from .change import Change
    from .frame import frame
    from .look import look, looking
    from .screen import show, write

    seen = sys.stdout.isatty()
    # whole names, for scripts; a frame that is looked at has the terminal's width
    console = Console(highlight=False, width=None if seen else 240)
    if args.once:
        first = look(args)
        time.sleep(args.interval)
        console.print(frame(Change(look(args), first), time.strftime("%H:%M:%S"), "", None))
        return
    try:
        (show if seen and not console.is_dumb_terminal else write)(looking(args, args.interval), console)
    except KeyboardInterrupt:
        return


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.1 to 3600")
    return seconds
