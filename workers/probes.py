"""Which backends answer: every backend asked at an interval, all at once, the verdict written to the table.

Strategy: a probe is a GET on a connection of its own, so it also tells whether new connections are taken. `rise`
successes or `fall` failures in a row change the verdict; a verdict survives a new controller, which reads it back
from the table, and a reload that keeps the backend. Two models on one server are one probe.

Refuses to know what a worker makes of a verdict.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import httpx

from ..cache.table import DOWN, UNKNOWN, UP, BackendState, BackendTable
from ..gateway.config import Backend, BackendTls, Health, Published
from ..gateway.upstream.origin import Origin
from . import store

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Verdict:
    """Successes and failures in a row, and what they amount to. Pure."""

    health: int = UNKNOWN
    good: int = 0
    bad: int = 0

    def note(self, success: bool, health: Health) -> int:
        """Take in one probe's outcome; the health it leads to."""
        self.good, self.bad = (self.good + 1, 0) if success else (0, self.bad + 1)
        if self.good >= health.rise:
            self.health = UP
        elif self.bad >= health.fall:
            self.health = DOWN
        return self.health


@dataclass(frozen=True, slots=True)
class _Key:
    url: str
    api_key_env: str | None
    tls: BackendTls | None


@dataclass(slots=True)
class _Target:
    """One server: its verdict and the rows that show it, index to (identity, weight in thousandths)."""

    client: httpx.AsyncClient
    url: str
    name: str
    verdict: Verdict = field(default_factory=Verdict)
    rows: dict[int, tuple[int, int]] = field(default_factory=dict)


class Prober:
    """Probes what the current generation names. `observe` is told each outcome: backend's name, success."""

    def __init__(
        self,
        table: BackendTable,
        environ: Mapping[str, str],
        clock_ns: Callable[[], int],
        observe: Callable[[str, bool], None],
    ) -> None:
        self._table = table
        self._environ = environ
        self._clock_ns = clock_ns
        self._observe = observe
        self._targets: dict[_Key, _Target] = {}
        self._health = Health()

    def health_of(self, index: int) -> int:
        """The last verdict on the backend in this row of the table."""
        return next((t.verdict.health for t in self._targets.values() if index in t.rows), UNKNOWN)

    async def swap(self, published: Published) -> None:
        """Probe this generation's backends from now on, and give each a row in the table at once."""
        self._health = published.config.health
        old, self._targets = self._targets, {}
        for model, settings in published.config.models.items():
            for backend in settings.backends:
                key = _Key(backend.url, backend.api_key_env, backend.tls)
                target = self._targets.get(key) or self._targets.setdefault(
                    key, self._target(key, backend, old)
                )
                name = store.backend_key(model, backend.url)
                index, who = published.indices[name], store.identity(name)
                row = self._table.read(index)
                if target.verdict.health == UNKNOWN and row is not None and row.identity == who:
                    target.verdict.health = row.health  # a predecessor's word
                target.rows[index] = (who, round(backend.weight * 1000))
        for target in self._targets.values():
            self._write(target)
        for key, target in old.items():
            if key not in self._targets:
                await target.client.aclose()

    def _target(self, key: _Key, backend: Backend, old: Mapping[_Key, _Target]) -> _Target:
        base = "http://localhost" if backend.url.startswith("unix:") else backend.url.rstrip("/")
        known = old.get(key)
        if known is not None:
            return _Target(known.client, base, known.name, known.verdict)
        verify: ssl.SSLContext | bool = True
        if backend.tls is not None and backend.tls.insecure:
            verify = False
        elif backend.tls is not None and backend.tls.ca is not None:
            verify = ssl.create_default_context(cafile=backend.tls.ca)
        uds = backend.url.removeprefix("unix://") if backend.url.startswith("unix:") else None
        limits = httpx.Limits(max_keepalive_connections=0)
        transport = httpx.AsyncHTTPTransport(uds=uds, verify=verify, limits=limits)
        client = httpx.AsyncClient(transport=transport, trust_env=False)
        return _Target(client, base, Origin.parse(backend.url).name)

    async def round(self) -> None:
        """Probe all once and write what changed. Raises nothing a backend could cause."""
        targets = list(self._targets.items())
        outcomes = await asyncio.gather(*(self._probe(key, target) for key, target in targets))
        for (key, target), success in zip(targets, outcomes, strict=True):
            if self._targets.get(key) is not target:
                continue  # replaced meanwhile by a reload
            before = target.verdict.health
            after = target.verdict.note(success, self._health)
            self._observe(target.name, success)
            if after != before:
                log.info("backend_health backend=%s health=%s", target.name, ("unknown", "up", "down")[after])
            self._write(target)

    async def _probe(self, key: _Key, target: _Target) -> bool:
        headers = {"connection": "close"}
        api_key = self._environ.get(key.api_key_env) if key.api_key_env else None
        if api_key:
            headers["authorization"] = f"Bearer {api_key}"
        extensions = {}
        if key.tls is not None and key.tls.server_name is not None:
            extensions["sni_hostname"] = key.tls.server_name
        try:
            async with asyncio.timeout(self._health.timeout_s):
                answer = await target.client.get(
                    target.url + self._health.path, headers=headers, extensions=extensions, timeout=None
                )
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as fault:
            log.debug("probe_failed backend=%s: %s", target.name, fault or type(fault).__name__)
            return False
        return answer.is_success

    def _write(self, target: _Target) -> None:
        for index, (who, weight_milli) in target.rows.items():
            row = self._table.read(index)
            state = BackendState(
                health=target.verdict.health,
                weight_milli=weight_milli,
                updated_ns=self._clock_ns(),
                identity=who,
            )
            # Workers look at the row's checksum: an unchanged verdict must leave it alone.
            if row is None or (row.health, row.weight_milli, row.identity) != (
                *(state.health, state.weight_milli, state.identity),
            ):
                self._table.write(index, state)

    async def close(self) -> None:
        """Close every client."""
        for target in self._targets.values():
            await target.client.aclose()
        self._targets = {}
