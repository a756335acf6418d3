"""What verbs have in common that ask a gateway which runs: how it is named, how it is asked, what it is to fail."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

CANNOT = 2

Parsers = Any
"""What `add_subparsers` gives, a private type of argparse."""


class Failed(Exception):
    """A verb could not do it; the text is one line, `status` the exit status."""

    def __init__(self, why: object, status: int = CANNOT) -> None:
        super().__init__(str(why))
        self.status = status


def add_gateway(verb: argparse.ArgumentParser, port: Callable[[str], int], default: Any = None) -> None:
    """The options of a verb that asks a gateway. Where they may stand before a verb of a verb or after it, the latter
    must not undo the former (`default`).
    """
    verb.add_argument(
        "--json", action="store_true", default=default or False, help="the gateway's answer as it is"
    )
    add_which(verb, port, default)


def add_which(verb: argparse.ArgumentParser, port: Callable[[str], int], default: Any = None) -> None:
    """Only those that say which gateway it is."""
    verb.add_argument(
        "-c",
        "--config",
        type=Path,
        default=default,
        metavar="FILE",
        help="which gateway, by its configuration",
    )
    verb.add_argument("--port", type=port, default=default, help="which gateway, by its API port")


def asked(
    args: argparse.Namespace, method: str, path: str, body: object = None, timeout_s: float | None = None
) -> bytes:
    """What the gateway answers. Raises Failed."""
    from .reach import TIMEOUT_S, CannotReach, Refusal, ask

    try:
        return ask(args.config, args.port, method, path, body, timeout_s or TIMEOUT_S)
    except CannotReach as fault:
        raise Failed(fault) from None
    except Refusal as fault:
        raise Failed(fault, CANNOT if fault.status < 500 else 1) from None
