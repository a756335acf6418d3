"""`penstock config check | schema | push | pull | diff | history | rollback`: their options, and what they print.

The document that nodes share is reached through the store that a node's file names, whether a gateway runs or not. What
is put there is checked first as this node would: with its file, its environment and its machine. A version that was
pulled says in its first line which it is; pushed again, it goes in only where that one counts still.
"""

from __future__ import annotations

import argparse
import datetime
import difflib
import getpass
import json
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..gateway.config import Config, ConfigError, Layer, schema
from ..gateway.config.load import names_models, own_part, read_text
from . import store as published
from .source import Source
from .table import table
from .verbs import Failed, Parsers

_MARK = re.compile(r"# penstock config version ([0-9]{1,15})\b[^\n]*\n?")
_MOST_CHARS = 200


def add_verbs(commands: Parsers, parser: type[argparse.ArgumentParser]) -> None:
    """Put `config` and its verbs among the commands."""
    config = commands.add_parser(
        "config", help="check a configuration; change the part of it that nodes share"
    )
    verbs = config.add_subparsers(dest="action", parser_class=parser, metavar="ACTION", required=True)
    check = verbs.add_parser("check", help="say whether a configuration can be used here")
    check.add_argument("file", type=Path, metavar="FILE")
    check.add_argument("--document", type=Path, metavar="FILE", help="with this document laid over it")
    verbs.add_parser("schema", help="print the JSON Schema")
    push = verbs.add_parser("push", help="put a document into the store, for all nodes")
    push.add_argument("document", type=Path, metavar="FILE")
    push.add_argument(
        "--base",
        type=_number,
        metavar="N",
        help="only where version N counts still; 0: where there is none yet",
    )
    pull = verbs.add_parser("pull", help="print the document that counts")
    pull.add_argument("--version", dest="number", type=_number, metavar="N", help="an older one")
    diff = verbs.add_parser("diff", help="what a push of FILE, or a rollback, would change")
    diff.add_argument("document", type=Path, metavar="FILE", nargs="?")
    diff.add_argument(
        "--version", dest="number", type=_number, metavar="N", help="an older one instead of FILE"
    )
    history = verbs.add_parser("history", help="the versions that are kept, the newest first")
    history.add_argument("--json", action="store_true", help="for programs")
    rollback = verbs.add_parser("rollback", help="put an older version into the store again, as a new one")
    rollback.add_argument("number", type=_number, metavar="N", help="as `history` shows it")
    for verb in (push, rollback):
        verb.add_argument("--note", default="", metavar="TEXT", help="why, for the history")
    for verb in (push, pull, diff, history, rollback):
        verb.add_argument(
            "-c",
            "--config",
            type=Path,
            metavar="FILE",
            required=True,
            help="a node's own file; it names the store",
        )


def run(
    args: argparse.Namespace,
    environ: Mapping[str, str],
    *,
    random: Callable[[int], bytes] = os.urandom,
    now_s: Callable[[], float] = time.time,
) -> str:
    """What a verb prints. Raises Failed."""
    from .live.source import BadDocument

    try:
        if args.action == "schema":
            return json.dumps(schema(), indent=2)
        if args.action == "check":
            return _checked(args.file, args.document, environ)
        return _Store(args.config, environ, random, now_s).run(args)
    except (ConfigError, BadDocument) as fault:
        raise Failed(fault) from None


def _checked(file: Path, document: Path | None, environ: Mapping[str, str]) -> str:
    source = Source(file)
    own = source.file()
    if document is not None:
        layer = Layer(name=str(document), text=_unmarked(document)[1])
        return _good(f"{file} with {document}", source.compose(own, layer, environ))
    part = own_part(own.name, own.text, file.absolute().parent, environ)
    if part.store is not None and not names_models(own.name, own.text):
        nobody = Layer(name=own.name, text='models: {"-": {backends: [{url: "http://nobody.invalid"}]}}')
        source.compose(own, nobody, environ)
        return f"{file}: good, as far as it goes; `--document` checks it with the models of a document"
    return _good(str(file), source.compose(own, None, environ))


def _good(name: str, config: Config) -> str:
    from .gpu_check import gpu_doubts
    from .pools.nvml import Nvml

    doubts = gpu_doubts(name, config, Nvml(open_timeout_s=3.0))
    return "\n".join([f"{name}: good{', but on this machine' if doubts else ''}", *doubts])


class _Store:
    """The verbs that need the store which `file` names."""

    def __init__(
        self,
        file: Path,
        environ: Mapping[str, str],
        random: Callable[[int], bytes],
        now_s: Callable[[], float],
    ) -> None:
        from .live.far import ConfigRedis

        self._source = Source(file)
        self._own = self._source.file()
        self._environ = environ
        self._now_s = now_s
        part = own_part(self._own.name, self._own.text, file.absolute().parent, environ)
        if part.store is None:
            raise Failed(f"{file}: `store` is not there; say in which Redis the document is")
        self._far = ConfigRedis.of(part.store, environ, random)

    def run(self, args: argparse.Namespace) -> str:
        """What `args.action` prints."""
        if args.action == "history":
            return self._history(args.json)
        if args.action == "pull":
            document = self._version(args.number)
            return f"# penstock config version {document.number}\n{document.text}".rstrip("\n")
        if args.action == "rollback":
            old = self._version(args.number)
            return self._put(
                f"version {old.number}", old.text, None, args.note or f"version {old.number} again"
            )
        if args.action == "push":
            marked, text = _unmarked(args.document)
            base = args.base if args.base is not None else marked
            return self._put(str(args.document), text, base, args.note)
        return self._diff(args)

    def _put(self, name: str, text: str, base: int | None, note: str) -> str:
        from .live.far import MOST_NUMBER, Document, Raced

        head, number, there = self._far.base()
        if base is not None and base != number:
            raise Failed(
                f"not pushed: {_raced(there)}, this was made from version {base}; pull it and try again"
            )
        if there is not None and there.text == text:
            return f"version {number} says just that already"
        new = Document(
            number=number % MOST_NUMBER + 1,
            text=text,
            at=round(self._now_s(), 3),
            by=_who(),
            note=_line(note),
        )
        config = self._composed(name, text)
        try:
            self._far.put(head, new)
        except Raced as race:
            raise Failed(f"not pushed: {_raced(race.document)} meanwhile; pull it and try again") from None
        lines = [f"version {new.number} is in the store"]
        if there is not None:
            lines += self._needs(there.text, config)
        return "\n".join(lines)

    def _composed(self, name: str, text: str) -> Config:
        return self._source.compose(self._own, Layer(name=name, text=text), self._environ)

    def _needs(self, text: str, config: Config) -> list[str]:
        """Which of the keys that differ from a document's `text` take effect later."""
        try:
            before = self._composed("before", text)
        except ConfigError:
            return []
        paths = published.changed(before, config)
        start = published.needing(paths, published.RESTART)
        roll = published.needing(paths, published.ROLL)
        return [f"needs a new start: {', '.join(start)}"] * bool(start) + [
            f"needs `penstock restart`: {', '.join(roll)}"
        ] * bool(roll)

    def _diff(self, args: argparse.Namespace) -> str:
        if (args.document is None) is (args.number is None):
            raise Failed("give FILE or --version")
        there = self._far.once()
        if args.document is not None:
            name, text = str(args.document), _unmarked(args.document)[1]
        else:
            old = self._version(args.number)
            name, text = f"version {old.number}", old.text
        number = there.number if there is not None else 0
        before = there.text if there is not None else ""
        lines = [
            line.rstrip("\n")
            for line in difflib.unified_diff(
                before.splitlines(True), text.splitlines(True), f"version {number}", name
            )
        ]
        if not lines:
            return "no difference"
        config = self._composed(name, text)
        return "\n".join([*lines, *self._needs(before, config)])

    def _version(self, number: int | None) -> Any:
        document = self._far.once() if number is None else self._far.version(number)
        if document is None:
            what = (
                "no document yet; `penstock config push` puts one there"
                if number is None
                else "no such version"
            )
            raise Failed(f"there is {what}" if number is None else f"version {number}: {what} is kept")
        return document

    def _history(self, as_json: bool) -> str:
        from .live.source import BadDocument

        kept = self._far.history()
        try:
            there = self._far.once()
        except BadDocument:
            if not kept:
                raise
            there = None  # garbage counts: who asks wants to know what there is to go back to
        if as_json:
            return json.dumps(
                [
                    {
                        "version": one.number,
                        "at": _when(one.at),
                        "by": one.by,
                        "note": one.note,
                        "counts": one == there,
                    }
                    for one in kept
                ]
            )
        if not kept:
            return "no versions"
        rows = [("version", "at", "by", "note")]
        rows += [
            (
                f"{one.number}{' *' if one == there else ''}",
                _when(one.at),
                _line(one.by) or "-",
                _line(one.note) or "-",
            )
            for one in kept
        ]
        return table(rows)


def _unmarked(file: Path) -> tuple[int | None, str]:
    """The version that a pulled file was, and its text without the line that says so."""
    text = read_text(str(file), file)
    mark = _MARK.match(text)
    return (int(mark[1]), text[mark.end() :]) if mark else (None, text)


def _raced(there: Any) -> str:
    if there is None:
        return "there is no document"
    return f"version {there.number} counts, by {_line(there.by) or 'somebody'} at {_when(there.at)}"


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return _line(f"{user}@{socket.gethostname()}")


def _line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:_MOST_CHARS]


def _when(at_s: float) -> str:
    try:
        return datetime.datetime.fromtimestamp(at_s, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, OSError, ValueError):
        return "-"


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a version's number")
    return int(text)
