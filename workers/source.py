"""Where the configuration comes from: one file, and what the command line says instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from ..gateway.config import Config, Machine, load

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


@dataclass(frozen=True, slots=True)
class Source:
    """The file at `path`; the other fields, where given, take precedence over it, at every reload.

    machine: what the file is checked against, taken where the gateway starts: a process that reads the file again
    later is pinned to a core of its own and would take that for all there are.
    """

    path: Path
    port: int | None = None
    workers: int | None = None
    log_level: Level | None = None
    machine: Machine = field(default_factory=Machine.here)

    def read(self, environ: Mapping[str, str]) -> Config:
        """The configuration as it is now, checked. Raises ConfigError, whose text is one line."""
        return load(self.path, environ, machine=self.machine, adjust=self._adjusted)

    def _adjusted(self, config: Config) -> Config:
        replace = msgspec.structs.replace
        if self.port is not None:
            config = replace(config, listen=replace(config.listen, port=self.port))
        if self.workers is not None:
            config = replace(config, workers=replace(config.workers, count=self.workers))
        if self.log_level is not None:
            config = replace(config, log=replace(config.log, level=self.log_level))
        return config
