"""A worker's look at the API keys: one load of a number in shared memory, a file when the number has changed."""

from __future__ import annotations

import logging
from pathlib import Path

from ...cache.segment import Segment
from ...gateway.keys import PublishedKeys
from . import published

log = logging.getLogger(__name__)

AGAIN_S = 0.1
"""A generation that could not be read is tried again after that long."""


class LatestKeys:
    """What a worker had last, and whether there is something newer. Raises as `published.read_current` does."""

    def __init__(self, folder: Path, segment: Segment) -> None:
        self._folder = folder
        self._segment = segment
        self.first = published.read_current(folder, segment)
        self._have = self.first.generation
        self._refused = 0
        self._again_s = 0.0

    def news(self, now: float) -> PublishedKeys | None:
        """A newer generation; None when there is none, or while it cannot be read: then the old one stays.

        now: seconds, monotonic.
        """
        generation = self._segment.keys_generation
        if generation == self._have or now < self._again_s:
            return None
        try:
            found = published.read_current(self._folder, self._segment)
        except (OSError, ValueError) as fault:
            self._again_s = now + AGAIN_S
            if self._refused != generation:
                self._refused = generation
                log.error("keys_kept generation=%d refused=%d: %s", self._have, generation, fault)
            return None
        self._have = found.generation
        return found
