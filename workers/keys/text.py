"""API keys as text: YAML for people, in a file; JSON for Redis, a key a field.

Nothing here says what a value was: somebody may have put a secret where a hash belongs.
"""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Mapping
from typing import Any

import msgspec
import yaml

from ...gateway.config import ConfigError
from ...gateway.config.faults import did_you_mean
from ...gateway.config.source import parse as parse_yaml
from ...gateway.keys import Key

_HEAD = """\
# API keys of Penstock, as hashes. `penstock keys` makes and revokes them; what is changed by hand counts at once.
"""
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_UNKNOWN = re.compile(r"unknown field `([^`]*)`")


class BadKeys(Exception):
    """Keys that cannot be read; the text is one line, without a value of theirs."""

    def __init__(self, where: object, what: str) -> None:
        super().__init__("".join(c if c.isprintable() else "?" for c in f"{where}: {what}"))


class NoKeys(BadKeys):
    """There never were any."""

    def __init__(self, where: object) -> None:
        super().__init__(where, "there are no keys yet; `penstock keys create` makes the first")


def parse(name: str, text: str) -> dict[str, Key]:
    """The keys in a file's text, by id; `name` is what errors call the file. Raises BadKeys for the whole of it."""
    try:
        root = parse_yaml(name, text)
    except ConfigError as fault:
        place = f"{fault.path}: " if fault.path not in ("", "$") else ""
        raise BadKeys(name, f"{place}{fault.what}") from None
    unknown = [word for word in root if word != "keys"]
    if unknown or not isinstance(root.get("keys"), dict):
        raise BadKeys(
            name, f"unknown key `{unknown[0]}`" if unknown else "`keys:` with keys below it is missing"
        )
    found: dict[str, Key] = {}
    by_hash: dict[str, str] = {}
    for id, told in root["keys"].items():
        if _ID.fullmatch(id) is None:
            raise BadKeys(name, f"keys.{id[:80]}: not an id; use letters, digits and ._-")
        found[id] = key = _key(f"{name}: keys.{id}", told)
        other = by_hash.setdefault(key.hash, id)
        if other != id:
            raise BadKeys(name, f"keys.{id}: the same hash as {other}; remove one")
    return found


def dump(keys: Mapping[str, Key]) -> str:
    """What `parse` reads, by id in order."""
    plain: dict[str, Any] = {}
    for id in sorted(keys):
        fields = msgspec.structs.asdict(keys[id])
        defaults = dict(
            zip(Key.__struct_fields__[-len(Key.__struct_defaults__) :], Key.__struct_defaults__, strict=True)
        )
        plain[id] = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in fields.items()
            if name not in defaults or value != defaults[name]
        }
    return _HEAD + yaml.safe_dump({"keys": plain}, sort_keys=False, width=1000, allow_unicode=True)


def pack(key: Key) -> bytes:
    """One key as JSON."""
    return msgspec.json.encode(key)


def unpack(where: str, data: bytes) -> Key:
    """What `pack` made. Raises BadKeys."""
    try:
        return msgspec.json.decode(data, type=Key)
    except msgspec.DecodeError as fault:
        raise BadKeys(where, _explained(fault)) from None


def _key(where: str, told: Any) -> Key:
    if not isinstance(told, dict):
        raise BadKeys(where, "nothing follows; indent its fields below it")
    plain = {name: _utc(value) for name, value in told.items()}
    try:
        return msgspec.convert(plain, Key)
    except msgspec.ValidationError as fault:
        raise BadKeys(where, _explained(fault)) from None


def _utc(value: Any) -> Any:
    """Times as YAML gives them, a day or one without a zone among them, in UTC."""
    if isinstance(value, datetime.datetime):
        if value.tzinfo is None:
            return value.replace(tzinfo=datetime.UTC)
        with contextlib.suppress(
            OverflowError
        ):  # on the first day or the last one there are, and `Key` refuses both
            return value.astimezone(datetime.UTC)
    if isinstance(value, datetime.date):
        return datetime.datetime(value.year, value.month, value.day, tzinfo=datetime.UTC)
    return value


def _explained(fault: msgspec.DecodeError) -> str:
    text = str(fault)
    unknown = _UNKNOWN.search(text)
    if unknown is not None:
        near = did_you_mean(unknown[1], Key.__struct_fields__)
        return f"unknown field `{unknown[1][:80]}`" + (f"; did you mean `{near}`?" if near else "")
    what, _, place = text.partition(" - at ")
    field = re.fullmatch(r"`\$\.([a-z]+).*`", place)
    return f"{field[1]}: {what}" if field else what
