"""What the configuration is made of: one file, what the command line says instead, and a document that nodes share."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from ..gateway.config import Config, ConfigError, Layer, Machine, load
from ..gateway.config.load import names_models, own_part, read_text
from .pools import state

log = logging.getLogger(__name__)

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

    def read(self, environ: Mapping[str, str], document: Layer | None = None) -> Config:
        """The file as it is now, with `document` laid over it, checked. Raises ConfigError, whose text is one line."""
        return self.compose(self.file(), document, environ)

    def file(self) -> Layer:
        """What is in the file. Raises ConfigError."""
        return Layer(name=str(self.path), text=read_text(str(self.path), self.path))

    def compose(self, file: Layer, document: Layer | None, environ: Mapping[str, str]) -> Config:
        """The configuration that these two make, checked. Raises ConfigError, also for what no check was ready for."""
        try:
            return load(
                file.text,
                environ,
                machine=self.machine,
                name=file.name,
                adjust=self._adjusted,
                over=document,
                folder=self.path.absolute().parent,
            )
        except ConfigError:
            raise
        except Exception as fault:
            # what came from outside ends no controller: the next one would meet it again
            log.exception("config_check_failed")
            name = file.name if document is None else document.name
            what = f"the check itself failed ({type(fault).__name__})"
            raise ConfigError(name, "$", what, "undo the last change, and report the traceback") from None

    def settle(self, environ: Mapping[str, str]) -> tuple[Config, Layer | None]:
        """The configuration to start with, and the document in it: that of the store where the file names one.

        Where the store cannot be asked, has none, or one that cannot be used, the one that was in force last counts,
        and where there never was one the file alone, if it has models. Raises ConfigError.
        """
        file = self.file()
        own = own_part(file.name, file.text, self.path.absolute().parent, environ, self._adjusted)
        if own.store is None:
            return self.compose(file, None, environ), None
        from .live import kept  # Redis is for those who have one
        from .live.far import ConfigRedis
        from .live.source import BadDocument

        far = ConfigRedis.of(own.store, environ, os.urandom)
        why = "there is none in the store yet"
        there = None
        try:
            there = far.once()
        except BadDocument as fault:
            why = str(fault)
        folder = state.of_gateway(own.pools.state, environ, self.path, own.listen.port)
        choices = [far.layer(there) if there is not None else None, kept.read(folder)]
        refusal: ConfigError | None = None
        for document in choices:
            if document is None:
                continue
            try:
                return self.compose(file, document, environ), document
            except ConfigError as fault:
                refusal = refusal or fault
        if refusal is not None:
            raise refusal
        if names_models(file.name, file.text):
            return self.compose(file, None, environ), None
        raise ConfigError(
            file.name,
            "$",
            f"no `models` here, and no document ({why})",
            "`penstock config push` one, or add `models:` here",
        )

    def _adjusted(self, config: Config) -> Config:
        replace = msgspec.structs.replace
        if self.port is not None:
            config = replace(config, listen=replace(config.listen, port=self.port))
        if self.workers is not None:
            config = replace(config, workers=replace(config.workers, count=self.workers))
        if self.log_level is not None:
            config = replace(config, log=replace(config.log, level=self.log_level))
        return config
