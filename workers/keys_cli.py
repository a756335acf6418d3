"""`penstock keys create | list | revoke`: their options, what they change, and how they say it.

They work on the file or the Redis that a configuration names, whether a gateway runs or not. A secret is shown once,
when it is made; what is kept is its hash.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..gateway.config import Config, ConfigError
from ..gateway.keys import MAX_KEYS, Key, hashed
from .keys.source import KeySource
from .source import Source
from .table import table
from .verbs import Failed, Parsers

PREFIX = "sk-penstock-"
_SECRET_BYTES = 32
_ID_BYTES = 8
_TENANT = re.compile(r"[A-Za-z0-9._:@/-]{1,64}")
_RATES = {
    "rpm": ("requests a minute", 1_000_000_000),
    "tpm": ("tokens a minute", 1_000_000_000),
    "concurrent": ("requests at a time", 1_000_000),
    "burst": ("requests that may come at once, where --rpm limits them", 1_000_000),
}


def add_verbs(commands: Parsers, parser: type[argparse.ArgumentParser]) -> None:
    """Put `keys` and its verbs among the commands."""
    keys = commands.add_parser("keys", help="make, list and revoke API keys")
    verbs = keys.add_subparsers(dest="verb", parser_class=parser, metavar="VERB", required=True)
    create = verbs.add_parser("create", help="make a key and print it, once")
    create.add_argument("--tenant", required=True, type=_tenant, metavar="T", help="whose it is")
    create.add_argument("--models", type=_names, metavar="A,B", help="what it may use; default: every model")
    for name, (what, most) in _RATES.items():
        create.add_argument(
            f"--{name}", type=_count(most), default=0, metavar="N", help=f"{what}; default: no limit"
        )
    create.add_argument(
        "--priority", type=_priority, default=0, metavar="N", help="lower is served first; default: 0"
    )
    create.add_argument(
        "--weight",
        type=_weight,
        default=1.0,
        metavar="W",
        help="the tenant's share beside others; default: 1",
    )
    create.add_argument(
        "--expires", metavar="DAYS|DATE", help="such as 30, 2030-12-31 or 2030-12-31T12:00:00+01:00"
    )
    show = verbs.add_parser("list", help="what there is, without secrets and hashes")
    revoke = verbs.add_parser("revoke", help="end a key, on all nodes")
    revoke.add_argument("id", metavar="ID", help="as `list` shows it")
    for verb in (create, show):
        verb.add_argument("--json", action="store_true", help="for programs")
    for verb in (create, show, revoke):
        verb.add_argument(
            "-c", "--config", type=Path, metavar="FILE", required=True, help="the gateway's configuration"
        )


def run(
    args: argparse.Namespace,
    environ: Mapping[str, str],
    *,
    random: Callable[[int], bytes] = os.urandom,
    now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
) -> str:
    """What a verb prints. Raises Failed."""
    from .keys.sources import source_of
    from .keys.text import BadKeys, NoKeys

    try:
        config, _ = Source(args.config).settle(environ)
        if config.keys is None:
            raise Failed(f"{args.config}: `keys` is not there; say in which `file` or `redis` they are")
        source = source_of(config.keys, environ, random)
        if args.verb == "create":
            return _created(args, config, source, random, now())
        if args.verb == "revoke":
            return _revoked(args.id, source)
        try:
            keys = source.once()
        except NoKeys:
            keys = {}
        return _listed(keys, now(), args.json)
    except (ConfigError, BadKeys) as fault:
        raise Failed(fault) from None


def _created(
    args: argparse.Namespace,
    config: Config,
    source: KeySource,
    random: Callable[[int], bytes],
    now: datetime.datetime,
) -> str:
    known = {*config.models, *(alias for model in config.models.values() for alias in model.aliases)}
    for name in args.models or ():
        if name not in known:
            raise Failed(
                f"--models: there is no model {name[:80]!r}; there are: {', '.join(sorted(known))}"[:500]
            )
    if args.burst and not args.rpm:
        raise Failed("--burst: of no use without --rpm")
    id = f"key_{random(_ID_BYTES).hex()}"
    secret = PREFIX + base64.urlsafe_b64encode(random(_SECRET_BYTES)).rstrip(b"=").decode()
    key = Key(
        hash=hashed(secret),
        tenant=args.tenant,
        models=args.models,
        rpm=args.rpm,
        tpm=args.tpm,
        concurrent=args.concurrent,
        burst=args.burst,
        priority=args.priority,
        weight=args.weight,
        expires=_expiry(args.expires, now) if args.expires is not None else None,
        created=now.replace(microsecond=0),
    )

    def room(keys: dict[str, Key]) -> None:
        if key.limited and sum(one.limited for one in keys.values()) >= MAX_KEYS:
            raise Failed(
                f"{MAX_KEYS} keys have limits already, and there is room for no more; revoke some first"
            )

    source.add(id, key, room)
    if args.json:
        return msgspec.json.encode({"id": id, "key": secret, **_told(key)}).decode()
    rows = [
        ("id", id),
        ("key", secret),
        *((name, _cell(value)) for name, value in _told(key).items() if value or name == "priority"),
    ]
    return f"{table(rows)}\n\nThe key is shown this once; what is kept is its hash."


def _revoked(id: str, source: KeySource) -> str:
    if not source.remove(id):
        raise Failed(f"there is no key {id[:80]!r}; `penstock keys list` shows those there are")
    return f"revoked {id}"


def _listed(keys: dict[str, Key], now: datetime.datetime, as_json: bool) -> str:
    if as_json:
        return msgspec.json.encode([{"id": id, **_told(keys[id])} for id in sorted(keys)]).decode()
    if not keys:
        return "no keys"
    columns = ("tenant", "models", "rpm", "tpm", "concurrent", "burst", "priority", "weight", "expires")
    rows: list[tuple[str, ...]] = [("id", *columns)]
    for id in sorted(keys):
        told = _told(keys[id])
        cells = ["-" if name in _RATES and not told[name] else _cell(told[name]) for name in columns]
        expires = keys[id].expires
        if expires is not None and expires <= now:
            cells[-1] += " (expired)"
        rows.append((id, *cells))
    return table(rows)


def _told(key: Key) -> dict[str, Any]:
    """All that may be shown of a key."""
    told = msgspec.structs.asdict(key)
    del told["hash"]
    return told


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"{value:g}" if isinstance(value, float) else str(value)


# ---- options


def _tenant(text: str) -> str:
    if _TENANT.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not 1 to 64 letters, digits and ._:@/-")
    return text


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if not all(names):
        raise argparse.ArgumentTypeError("an empty name among them")
    return names


def _count(most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 12 and 1 <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a number from 1 to {most}")
        return int(text)

    return number


def _priority(text: str) -> int:
    if re.fullmatch(r"-?[0-9]{1,4}", text) is None or not -1000 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a number from -1000 to 1000")
    return int(text)


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight <= 1000:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a number over 0, at most 1000")
    return weight


def _expiry(text: str, now: datetime.datetime) -> datetime.datetime:
    """Days from now, or a time; a day ends the key when it begins, in UTC."""
    try:
        if text.isascii() and text.isdigit() and len(text) < 6:
            when = now.replace(microsecond=0) + datetime.timedelta(days=int(text))
        else:
            when = datetime.datetime.fromisoformat(text)
            when = when.replace(tzinfo=datetime.UTC) if when.tzinfo is None else when.astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        raise Failed(
            f"--expires: {text[:80]!r} is neither a number of days nor a date such as 2030-12-31"
        ) from None
    if when <= now:
        raise Failed(f"--expires: {text[:80]!r} is over")
    return when
