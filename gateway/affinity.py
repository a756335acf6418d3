"""What ties a request to a backend, under the two policies that tie: read from its body when it is asked for.

A body up to 1 MiB has been decoded already. Of a larger one only the few fields that count are built, and of a
conversation only what comes before its first answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from .policies.consistent_hash import user_key
from .policies.prefix_affinity import SYSTEM_ROLES, prefix_key


class _Begin(Struct):
    messages: Raw | UnsetType = UNSET
    input: Raw | UnsetType = UNSET
    prompt: Raw | UnsetType = UNSET
    system: Raw | UnsetType = UNSET
    instructions: Raw | UnsetType = UNSET
    user: Raw | UnsetType = UNSET
    metadata: Raw | UnsetType = UNSET


def affinity(
    policy: str, prefix_chars: int, tenant: str | None, fields: Mapping[str, Any] | None, body: bytes | None
) -> bytes | None:
    """A request's key under ``policy``; None when nothing ties it. ``fields``: the decoded body, None if it was not."""
    if fields is None:
        fields = beginning(body or b"")
    if policy == "prefix_affinity":
        return prefix_key(fields, prefix_chars)
    return user_key(fields, tenant)


def beginning(body: bytes) -> dict[str, Any]:
    """What keys are made of in a JSON body, a conversation cut behind its first turn; {} for other bodies."""
    found: dict[str, Any] = {}
    try:
        begin = _decode_begin(body)
        for name in _Begin.__struct_fields__:
            raw = getattr(begin, name)
            if raw is not UNSET:
                long = name in ("messages", "input") and bytes(memoryview(raw)[:1]) == b"["
                found[name] = _first_turn(raw) if long else _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return found


def _first_turn(raw: Raw) -> list[Any]:
    turns = []
    for turn in _decode_turns(raw):
        turns.append(_decode(turn))
        if not (isinstance(turns[-1], dict) and turns[-1].get("role") in SYSTEM_ROLES):
            break
    return turns


_decode = msgspec.json.decode
_decode_begin = msgspec.json.Decoder(_Begin).decode
_decode_turns = msgspec.json.Decoder(list[Raw]).decode
