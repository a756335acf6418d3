"""What one process's second tier did, as plain numbers since its start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counts:
    """Read them at any time; they never go down.

    Look-ups: hits, misses (absent, leased to somebody, foreign), skipped (not asked, the breaker was open). foreign:
    values that were no entry of ours. commands: round trips for look-ups; timeouts: those whose deadline passed; late:
    those of them that were answered after it; errors: commands of any kind that failed. Stores: stored and
    stored_bytes (as sent), refused (Redis's memory is full), dropped (never sent: the queue was full, or Redis
    away).
    """

    hits: int = 0
    misses: int = 0
    skipped: int = 0
    foreign: int = 0
    commands: int = 0
    timeouts: int = 0
    late: int = 0
    errors: int = 0
    stored: int = 0
    stored_bytes: int = 0
    refused: int = 0
    dropped: int = 0
