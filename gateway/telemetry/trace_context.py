"""Reads W3C Trace Context, https://www.w3.org/TR/trace-context/: what is malformed is as good as not there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?")
_MOST_CHARS = 256
_SAMPLED = 1
_STATE_CHARS = 512
_STATE_MEMBERS = 32


@dataclass(frozen=True, slots=True)
class Parent:
    """Whose request this is part of: ids in hexadecimal digits, as they came."""

    trace_id: str
    span_id: str
    sampled: bool


def parent_of(values: Sequence[str]) -> Parent | None:
    """The parent that a request's fields ``traceparent`` name; None where that is not exactly one valid."""
    if len(values) != 1 or len(values[0]) > _MOST_CHARS:
        return None
    match = _PARENT.fullmatch(values[0])
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more) or not trace_id.strip("0") or not span_id.strip("0"):
        return None
    return Parent(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))


def state_of(values: Sequence[str]) -> str:
    """What fields ``tracestate`` say together, to be passed on; empty where it is longer than it must be passed on."""
    state = ",".join(values)
    if len(state) > _STATE_CHARS or state.count(",") >= _STATE_MEMBERS or not state.isprintable():
        return ""
    return state
