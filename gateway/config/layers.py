"""A node's own file and the document that nodes share, laid over each other.

Strategy: what is written is put together before it is read, so that a key means the same wherever it stands. Mappings
are merged key by key and the document goes before; `models` are taken from it as a whole, or a model could never be
removed. What belongs to one node alone, and what guards it, may stand in its file only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from .faults import ConfigError
from .secrets import refuse_secrets
from .source import parse

OWN = ("listen", "admin", "workers", "node", "keys", "store")
"""Sections that a document may not have: they are of one node, or decide whom it lets in."""
_OWN_KEYS = (("pools", "state"), ("cache", "l1", "size"), ("cache", "l1", "keep"))


class Layer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The text of one of a configuration's sources.

    name: what errors call it. version: which of its versions that is, for people; empty for a file.
    """

    name: str
    text: str
    version: str = ""


def document(layer: Layer) -> dict[str, Any]:
    """What a document says, as plain values. Raises ConfigError where it has what no document may have."""
    raw = parse(layer.name, layer.text)
    refuse_secrets(layer.name, layer.text, raw)
    for key in OWN:
        if key in raw:
            raise ConfigError(
                layer.name,
                f"$.{key}",
                "not for a document that nodes share",
                "write it in each node's own file",
            )
    for path in _OWN_KEYS:
        if _depth(raw, path) == len(path):
            raise ConfigError(
                layer.name,
                "$." + ".".join(path),
                "not for a document that nodes share",
                "write it in each node's own file",
            )
    return raw


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`."""
    out = dict(below)
    for key, value in above.items():
        under = out.get(key)
        if key != "models" and isinstance(value, dict) and isinstance(under, dict):
            out[key] = merged(under, value)
        else:
            out[key] = value
    return out


def blamed(fault: ConfigError, file: Mapping[str, Any], over: Mapping[str, Any], name: str) -> ConfigError:
    """`fault` of what was merged, told of the document `name` where the place it names came from there."""
    path = re.findall(r"[^.\[\]]+", fault.path.removeprefix("$"))
    found = _depth(over, path)
    if found and found >= _depth(file, path):
        return ConfigError(name, fault.path, fault.what, fault.fix)
    return fault


def _depth(raw: Any, path: tuple[str, ...] | list[str]) -> int:
    """How many keys of `path` there are."""
    for depth, key in enumerate(path):
        if not isinstance(raw, dict) or key not in raw:
            return depth
        raw = raw[key]
    return len(path)
