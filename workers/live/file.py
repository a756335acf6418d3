"""The configuration's file, watched."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from ...gateway.config import ConfigError, Layer
from ...gateway.config.load import read_text
from ..file_watch import changes
from .source import Listener


class ConfigFile:
    """The file at `path`. What is being written is read when it has been still for a moment."""

    name = "file"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._wake = asyncio.Event()

    def once(self) -> Layer:
        """What is in it. Raises ConfigError."""
        return Layer(name=str(self._path), text=read_text(str(self._path), self._path))

    def look(self) -> None:
        """Read it at once."""
        self._wake.set()

    async def follow(self, listener: Listener) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watching(listener))
            group.create_task(self._asked(listener))

    async def _watching(self, listener: Listener) -> None:
        async with contextlib.aclosing(changes(self._path)) as each:
            async for _ in each:
                self._tell(listener)

    async def _asked(self, listener: Listener) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._tell(listener)

    def _tell(self, listener: Listener) -> None:
        try:
            layer = self.once()
        except ConfigError as fault:
            listener.refused(str(fault))
        else:
            listener.found(layer)
