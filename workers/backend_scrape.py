"""vLLM's metrics: asked for beside the probes, for the hints on the board and for the admin port's `/metrics`.

Strategy: the last page of each server that is up is kept as it came, within bounds, and joined only when somebody
asks. A server that has no such page costs a request an interval and nothing else.
"""

from __future__ import annotations

import asyncio
import logging

from .board import Load
from .target import Target, Unanswered
from .vllm_text import load_in, merged

log = logging.getLogger(__name__)

PATH = "/metrics"
MOST_BYTES = 2 << 20
"""Of one page; a longer one is not read. vLLM's has some 100 KiB."""
KEPT_BYTES = 32 << 20
"""Of all pages together; where they are more, the admin port shows those of fewer servers."""


class BackendScrape:
    """The last pages, by the name of the server: two that differ in their path alone are one."""

    __slots__ = ("_kept_bytes", "_pages")

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept_bytes = kept_bytes
        self._pages: dict[str, bytes] = {}

    async def ask(self, target: Target, timeout_s: float) -> Load | None:
        """The server's load as it says itself; None when it does not."""
        try:
            status, page = await target.ask(PATH, timeout_s=timeout_s, most_bytes=MOST_BYTES)
        except Unanswered as fault:
            log.debug("scrape_failed backend=%s: %s", target.name, fault)
            return None
        if status != 200:
            return None
        self._pages.pop(target.name, None)
        if len(page) + sum(map(len, self._pages.values())) <= self._kept_bytes:
            self._pages[target.name] = page
        return load_in(page)

    def forget(self, target: Target) -> None:
        """Show this server's page no more: it is down, or no longer configured."""
        self._pages.pop(target.name, None)

    async def exposition(self) -> bytes:
        """The `vllm:*` families of all servers, in the Prometheus text format."""
        return await asyncio.to_thread(merged, dict(self._pages))
