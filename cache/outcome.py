"""Closed lists of what the cache can say about a request; their values are what clients and metrics see."""

from __future__ import annotations

import enum


class Outcome(enum.Enum):
    """How a request met the cache: the value of ``x-penstock-cache``."""

    HIT_L1 = "HIT-L1"
    HIT_L2 = "HIT-L2"
    MISS = "MISS"
    COALESCED = "COALESCED"
    BYPASS = "BYPASS"


class NoCache(enum.Enum):
    """Why a request is never answered from the cache nor stored: the value of ``x-penstock-cache-reason``."""

    OFF = "off"
    BODY_TOO_LARGE = "body_too_large"
    MULTIPART = "multipart"
    NONDETERMINISTIC = "nondeterministic"
    NOT_OPTED_IN = "not_opted_in"
    STATEFUL = "stateful"
    NO_STORE = "no_store"

    __hash__ = object.__hash__  # by identity, in C: tables are looked up by it on every request
