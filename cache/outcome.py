"""Closed lists of what the cache can say about a request; their values are what clients and metrics see."""

from __future__ import annotations

import enum


class Outcome(enum.Enum):
    """How a request met the cache: the value of ``x-penstock-cache``."""

    MISS = "MISS"
    BYPASS = "BYPASS"


class NoCache(enum.Enum):
    """Why a request has no key and is never cached: the value of ``x-penstock-cache-reason``."""

    BODY_TOO_LARGE = "body_too_large"
    MULTIPART = "multipart"
    NONDETERMINISTIC = "nondeterministic"
    STATEFUL = "stateful"
