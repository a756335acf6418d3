"""The controller's part in API keys: what their source tells becomes a generation that every worker loads.

A change is whole or not at all: rows given, file written, number published. The sources' troubles change nothing but
a line in the log, once for each. Another controller goes on where the last one was killed: from the generation that
was published, over whatever file it was writing.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...cache.segment import Segment
from ...gateway.config import Keys
from ...gateway.keys import Key, PublishedKeys
from . import published
from .source import KeySource
from .sources import source_of

log = logging.getLogger(__name__)

MIND_S = 0.25


class KeysSync:
    """What it `found` goes to the workers; `run` until cancelled."""

    def __init__(self, folder: Path, segment: Segment, last: PublishedKeys, source: KeySource) -> None:
        self._folder = folder
        self._segment = segment
        self._published = last
        self._source = source
        self._keys: dict[str, Key] | None = last.keys
        self._left_out = 0
        self._unpublished = False
        self._trouble = ""

    @classmethod
    def of(
        cls, folder: Path, segment: Segment, keys: Keys | None, environ: Mapping[str, str]
    ) -> KeysSync | None:
        """That of a gateway that has keys, from the start or a controller's last breath on; None for others.

        keys: as configured now, of use only where what was published is gone.
        """
        if not segment.geometry.keys:
            return None
        try:
            last = published.read_current(folder, segment)
        except (OSError, ValueError) as fault:
            log.error("keys_lost generation=%d: %s", segment.keys_generation, fault)
            if keys is None:
                return None
            last = PublishedKeys(generation=segment.keys_generation, source=keys, keys=None, rows={})
        return cls(folder, segment, last, source_of(last.source, environ, os.urandom))

    async def run(self) -> None:
        """Follow the source, and mind what was published."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._source.follow(self))
            group.create_task(self._minding())

    def report(self) -> dict[str, Any]:
        """For the operator's status; nothing of a key."""
        keys = self._published.keys
        return {
            "source": self._source.name,
            "generation": self._published.generation,
            "known": keys is not None,
            "readable": not self._trouble,
            "keys": len(keys or ()),
            "limited": len(self._published.rows),
            "left_out": self._left_out,
        }

    # ---- the source's listener

    def found(self, keys: dict[str, Key]) -> None:
        """Publish what is new."""
        self.unchanged()
        if keys != self._keys or self._published.keys is None:
            self._keys = keys
            self._publish(keys)

    def unchanged(self) -> None:
        """The source can be read."""
        if self._trouble:
            self._trouble = ""
            log.info("keys_readable source=%s", self._source.name)

    def lost(self, why: str) -> None:
        """What was published stays."""
        if why != self._trouble:
            self._trouble = why
            what = "keys_unknown: every request gets 503" if self._published.keys is None else "keys_kept"
            log.error("%s generation=%d: %s", what, self._published.generation, why)

    # ---- publishing

    def _publish(self, keys: dict[str, Key]) -> None:
        new = published.following(keys, self._published)
        assert new.keys is not None
        left_out = len(keys) - len(new.keys)
        try:
            published.write(self._folder, new)
        except OSError as fault:
            if not self._unpublished:
                log.error(
                    "keys_not_written generation=%d kept: %s", self._published.generation, fault.strerror
                )
            self._unpublished = True
            return
        self._unpublished = False
        self._segment.publish_keys(new.generation)
        self._published = new
        log.info("keys_published generation=%d keys=%d", new.generation, len(new.keys))
        if left_out and left_out != self._left_out:
            log.error("keys_left_out keys=%d: more have limits than there is room for", left_out)
        self._left_out = left_out

    async def _minding(self) -> None:
        """Write what could not be written, put back what somebody removed, find room for keys that had none."""
        while True:
            await asyncio.sleep(MIND_S)
            current = self._published
            if self._keys is None:
                continue
            if self._unpublished:
                self._publish(self._keys)
            elif self._left_out:
                room = published.following(self._keys, current)
                if len(room.rows) > len(current.rows):
                    self._publish(self._keys)
            elif not published.exists(self._folder, current.generation):
                try:
                    published.write(self._folder, current)
                    log.warning("keys_file_restored generation=%d", current.generation)
                except OSError as fault:
                    log.debug("keys_file_lost: %s", fault)
