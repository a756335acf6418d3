"""What the configuration's sources say becomes what is in force, or is refused.

Strategy: for each source the newest word is kept beside the one in force. At each news both newest are tried together;
where they are refused each is tried with the other's word that is in force, so that a broken file holds up no document,
and a broken document no file. What is not in force then is refused: said once for each word, shown as long as it lasts.
How a configuration is put in force is the caller's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from prometheus_client.core import Metric

from ...gateway.config import Config, ConfigError, Layer
from .. import families
from . import kept
from .file import ConfigFile
from .source import LiveSource

log = logging.getLogger(__name__)

AGAIN_S = 2.0
"""When what could not be written is tried again."""
FILE, STORE = "file", "store"
_EMPTY = "there is no document any more"


class Refused(Exception):
    """A configuration that is right in itself and cannot be had; the text is one line."""


Compose = Callable[[Layer, Layer | None], Config]
Apply = Callable[[Config, Layer | None], Awaitable[str]]


class Reloader:
    """compose: the configuration that a file and a document make; raises ConfigError.

    apply: put it in force; `loaded`, `unchanged` or `failed`, raises Refused. counted: is told of each outcome.
    refused: of each word that was refused, by its source. state: the folder where the document is kept.
    """

    def __init__(
        self,
        file: ConfigFile,
        far: LiveSource | None,
        document: Layer | None,
        state: Path,
        compose: Compose,
        apply: Apply,
        counted: Callable[[str], None],
        refused: Callable[[str], None],
    ) -> None:
        self._sources: dict[str, LiveSource] = {FILE: file} | ({STORE: far} if far is not None else {})
        self._heard = {name: Heard(name, self._news) for name in self._sources}
        if far is not None:
            self._heard[STORE].good = self._heard[STORE].newest = document
        self._document = document
        self._kept: Layer | None = None
        self._state = state
        self._file = file
        self._compose = compose
        self._apply = apply
        self._counted = counted
        self._refused = refused
        self._changed = asyncio.Event()
        self._asked = False

    @property
    def sources(self) -> tuple[str, ...]:
        """Where the configuration comes from."""
        return tuple(self._sources)

    def ask(self) -> None:
        """Read the file again, and look whether the document is another: an operator wants it now."""
        self._asked = True
        self._changed.set()
        if STORE in self._sources:
            self._sources[STORE].look()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for name, source in self._sources.items():
                group.create_task(source.follow(self._heard[name]))
            group.create_task(self._settling())

    def _news(self) -> None:
        self._changed.set()

    async def _settling(self) -> None:
        outcome = ""
        while True:
            try:
                async with asyncio.timeout(AGAIN_S if outcome == "failed" else None):
                    await self._changed.wait()
            except TimeoutError:
                self._changed.set()
            self._changed.clear()
            asked, self._asked = self._asked, False
            if asked:
                self._file_again()
            outcome = await self._settle(asked)
            if outcome:
                self._counted(outcome)

    def _file_again(self) -> None:
        heard = self._heard[FILE]
        heard.said = ""
        try:
            heard.found(self._file.once())
        except ConfigError as fault:
            heard.refused(str(fault))

    async def _settle(self, asked: bool) -> str:
        """Try what is new; the outcome, empty where nothing was done that anybody wants to hear of."""
        file, far = self._heard[FILE], self._heard.get(STORE)
        refused = self._told_garbage()
        outcome = ""
        choices = self._choices(asked)
        if not choices and far is not None and far.newest is not far.good:
            far.fault = "it waits for the file, of which nothing is known that can be used"
        for choice in choices:
            try:
                outcome = await self._apply(self._compose(*choice), choice[1])
            except (ConfigError, Refused) as fault:
                for heard, layer in ((file, choice[0]), (far, choice[1])):
                    if heard is not None and layer is not heard.good:
                        heard.fault = str(fault)
                continue
            if outcome != "failed":
                file.good = choice[0]
                if far is not None:
                    far.good = choice[1]
                    self._keep(choice[1])
            break
        for heard in self._heard.values():
            if heard.newest is not None and heard.newest is heard.good:
                heard.settled()
            elif outcome != "failed" and heard.fault and heard.said != heard.fault:
                heard.said = heard.fault
                log.error("config_refused source=%s kept: %s", heard.name, heard.fault)
                self._refused(heard.name)
                refused = True
        if refused:
            return "refused"
        return outcome if asked or outcome != "unchanged" else ""

    def _told_garbage(self) -> bool:
        """Whether a source has something that is not even text, and that was not said yet."""
        told = False
        for heard in self._heard.values():
            if heard.garbage and heard.said != heard.garbage:
                heard.said = heard.garbage
                log.error("config_refused source=%s kept: %s", heard.name, heard.garbage)
                self._refused(heard.name)
                told = True
        return told

    def _choices(self, asked: bool) -> list[tuple[Layer, Layer | None]]:
        """What to try, the best first."""
        file, far = self._heard[FILE], self._heard.get(STORE)
        document = far.newest if far is not None else self._document
        good = far.good if far is not None else self._document
        in_force = (file.good, good)
        found: list[tuple[Layer, Layer | None]] = []
        for one in ((file.newest, document), (file.newest, good), (file.good, document)):
            if one[0] is not None and one not in found and (one != in_force or (asked and not found)):
                found.append((one[0], one[1]))
        return found

    def _keep(self, document: Layer | None) -> None:
        if document is None or document is self._kept:
            return
        try:
            kept.write(self._state, document)
            self._kept = document
        except OSError as fault:
            log.warning("config_not_kept folder=%s: %s", self._state, fault.strerror)

    # ---- for operators

    def metrics(self) -> Iterable[Metric]:
        """What is wrong now."""
        wrong, there = (
            families.metric(families.CONFIG_REFUSED_NOW),
            families.metric(families.CONFIG_SOURCE_UP),
        )
        for name, heard in self._heard.items():
            wrong.add_metric([name], float(bool(heard.wrong)))
            there.add_metric([name], float(not heard.trouble))
        yield from (wrong, there)
        if STORE in self._heard:
            document = self._heard[STORE].good
            version = float(document.version or 0) if document is not None else 0.0
            yield families.metric(families.CONFIG_DOCUMENT_VERSION, version)

    def report(self) -> dict[str, Any]:
        """For the operator's status."""
        told: dict[str, Any] = {}
        for name, heard in self._heard.items():
            told[name] = {"readable": not heard.trouble, "refused": heard.wrong or None}
            if name == STORE:
                told[name]["version"] = heard.good.version if heard.good is not None else None
        return told


class Heard:
    """What one source has told: a listener. newest: its last word; good: the one that is in force."""

    def __init__(self, name: str, news: Callable[[], None]) -> None:
        self.name = name
        self.newest: Layer | None = None
        self.good: Layer | None = None
        self.fault = ""
        self.garbage = ""
        self.said = ""
        self.trouble = ""
        self._news = news

    @property
    def wrong(self) -> str:
        """Why what is there is not in force; empty where it is."""
        return self.garbage or self.fault

    def settled(self) -> None:
        """What was found last is in force."""
        self.fault = ""
        if not self.garbage:
            self.said = ""

    def found(self, layer: Layer | None) -> None:
        if layer is None and self.newest is not None:
            if self.wrong:
                self.garbage = ""
                self._gone()
                self._news()
            if self.trouble != _EMPTY:
                self.trouble = _EMPTY
                log.error("config_store_empty version=%s kept", self.newest.version)
            return
        self._readable()
        if layer is None:
            return
        self.garbage = ""
        if layer != self.newest:
            self.newest = layer
            self.fault = ""
        self._news()

    def unchanged(self) -> None:
        self._readable()

    def refused(self, why: str) -> None:
        self._readable()
        if why != self.garbage:
            self.garbage = why
            self._gone()
            self._news()

    def lost(self, why: str) -> None:
        if not self.trouble:
            log.error("config_store_lost kept: %s", why)
        self.trouble = why

    def _gone(self) -> None:
        """A text that was refused is not there any more, and must not be put in force later."""
        if self.fault:
            self.newest, self.fault = self.good, ""

    def _readable(self) -> None:
        if self.trouble:
            self.trouble = ""
            log.info("config_store_readable")
