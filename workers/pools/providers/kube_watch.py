"""Objects of the Kubernetes API kept up to date: a list, then what changes after it, for as long as it is wanted.

The way of every Kubernetes client (Kubernetes, "API concepts: efficient detection of changes"): list, watch from the
list's version, go on from the last version seen when a watch ends, list again when the server has forgotten that
version (410), and try again with a back-off when there is no server. Whoever looks sees the objects as of some moment,
never a mixture that never was; who must be sure asks the server. It refuses to know what the objects mean.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import aclosing
from types import MappingProxyType
from typing import TypeVar

from .kube_api import Json, KubeApi, KubeFault
from .kube_place import Place

T = TypeVar("T")
Seen = Callable[[str, Json | None], None]

_log = logging.getLogger("penstock.pools")


class KubeWatch:
    """A selection of objects by name. seen: called with (name, object) for each change, (name, None) for each that
    is gone."""

    def __init__(
        self,
        api: KubeApi,
        place: Place,
        *,
        labels: str = "",
        name: str = "",
        seen: Seen = lambda name, found: None,
        for_s: float = 60.0,
        retry_s: float = 0.25,
        most_retry_s: float = 10.0,
    ) -> None:
        self._api = api
        self._place = place
        self._labels = labels
        self._name = name
        self._seen = seen
        self._for_s = for_s
        self._retry_s = retry_s
        self._most_retry_s = most_retry_s
        self._objects: dict[str, Json] = {}
        self._version = ""
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._fault: KubeFault | None = None

    @property
    def objects(self) -> Mapping[str, Json]:
        """What there is, as far as it is known."""
        return MappingProxyType(self._objects)

    @property
    def fault(self) -> KubeFault | None:
        """Why the last try failed; None while it works."""
        return self._fault

    def start(self, listed: tuple[list[Json], str] | None = None) -> None:
        """Have it run; nothing where it does. listed: a list to go on from, so that nothing falls in between."""
        if self._task is None or self._task.done():
            if listed is not None:
                self._take(*listed)
            self._task = asyncio.create_task(self._run(), name=f"watch of {self._place.words}")

    async def close(self) -> None:
        """End it."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def until(self, wanted: Callable[[], T | None]) -> T:
        """What `wanted` says once that is something; it is asked after each change. Raises KubeFault where watching
        is not allowed, and whatever `wanted` raises."""
        self.start()
        while True:
            changed = self._changed
            result = wanted()
            if result is not None:
                return result
            if self._fault is not None and self._fault.for_good:
                raise self._fault
            await changed.wait()

    async def _run(self) -> None:
        pause_s = self._retry_s
        while True:
            try:
                if not self._version:
                    self._take(*await self._api.list(self._place, labels=self._labels, name=self._name))
                await self._follow()
                pause_s = self._retry_s
                # nor is one that ends each watch at once
                await asyncio.sleep(self._retry_s)
            except KubeFault as fault:
                if fault.status == 410:
                    self._version = ""
                    # a server that forgets the version of its own list is not asked without a pause
                    await asyncio.sleep(self._retry_s)
                    continue
                self._note(fault)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, self._most_retry_s)
            except Exception as fault:
                _log.exception("the watch of %s failed", self._place.words)
                self._note(KubeFault(f"the watch of {self._place.words} failed: {fault!r}"))
                self._version = ""
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, self._most_retry_s)

    async def _follow(self) -> None:
        watch = self._api.watch(
            self._place, self._version, labels=self._labels, name=self._name, for_s=self._for_s
        )
        async with aclosing(watch) as events:
            async for event in events:
                self._works()
                kind, found = event.get("type"), event.get("object")
                if not isinstance(found, dict):
                    continue
                if kind == "ERROR":
                    raise KubeFault(
                        f"the watch of {self._place.words} was ended: {found.get('message')}",
                        int(found.get("code") or 0),
                        str(found.get("reason") or ""),
                    )
                meta = found.get("metadata") or {}
                self._version = str(meta.get("resourceVersion") or self._version)
                if kind in ("ADDED", "MODIFIED"):
                    self._put(str(meta.get("name")), found)
                elif kind == "DELETED":
                    self._put(str(meta.get("name")), None)
        self._works()

    def _take(self, items: list[Json], version: str) -> None:
        now = {str((item.get("metadata") or {}).get("name")): item for item in items}
        self._works()
        for name in [name for name in self._objects if name not in now]:
            self._put(name, None)
        for name, item in now.items():
            self._put(name, item)
        self._version = version
        self._tell()

    def _put(self, name: str, found: Json | None) -> None:
        if found is None:
            self._objects.pop(name, None)
        else:
            self._objects[name] = found
        self._seen(name, found)
        self._tell()

    def _works(self) -> None:
        if self._fault is not None:
            _log.info("the watch of %s works again", self._place.words)
            self._fault = None

    def _note(self, fault: KubeFault) -> None:
        if self._fault is None or str(self._fault) != str(fault):
            _log.warning("%s", fault)
        self._fault = fault
        self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
