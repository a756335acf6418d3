"""Tells in plain lines what the demo's sleeping pool does, and what becomes of the requests for it.

Run as `python -m penstock.workers.narrator ADMIN_URL MODEL`, a process of its own: it knows the gateway by its admin
port alone, asks a few times a second, and says what has changed. Asking wakes nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx
import msgspec

_EVERY_S = 0.2
_TIMEOUT_S = 5.0
_REQUESTS = "penstock_requests_total"


class _Pool(msgspec.Struct):
    model: str
    phase: str
    waiting: int = 0
    reason: str = ""


class _Pools(msgspec.Struct):
    pools: list[_Pool]


@dataclass(frozen=True, slots=True)
class Seen:
    """The pool at one moment. answered: good answers so far, by how the cache took part (`MISS`, `HIT-L1`, …)."""

    phase: str
    reason: str = ""
    answered: Mapping[str, int] = field(default_factory=dict)


class Story:
    """What has happened between one look and the next, in words; before the first look the pool was off and nobody had
    asked. Times are seconds of one clock.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._last = Seen("off")
        self._starting_at = 0.0

    def hear(self, now: float, seen: Seen) -> list[str]:
        """The lines for what is new."""
        last, self._last = self._last, seen
        lines = []
        asked = {how: n - last.answered.get(how, 0) for how, n in seen.answered.items()}
        hits = sum(n for how, n in asked.items() if how.startswith("HIT") and n > 0)
        others = sum(n for how, n in asked.items() if not how.startswith("HIT") and n > 0)
        off = last.phase == "off"
        if hits and off:
            lines.append(
                f"the cache has answered {_requests(hits)}; no server runs, and none was started for it"
            )
        if seen.phase != last.phase:
            lines += self._turned(now, last, seen)
        if others:
            lines.append(f"its server has answered {_requests(others)}")
        if hits and not off:
            lines.append(f"the cache has answered {_requests(hits)}; its server was not asked")
        return [f"  {self._model}: {line}" for line in lines]

    def _turned(self, now: float, last: Seen, seen: Seen) -> list[str]:
        if seen.phase == "starting":
            self._starting_at = now
            return ["a request waits, and its server is being started"]
        if seen.phase == "ready":
            if last.phase == "starting":
                return [f"its server is ready after {now - self._starting_at:.1f} s; what waited goes on"]
            return ["its server is ready"]
        if seen.phase in ("draining", "stopping"):
            return (
                []
                if last.phase == "draining"
                else ["nobody has asked for a while: its server is being stopped"]
            )
        if seen.phase == "off":
            return ["no server runs"]
        if seen.phase == "failed":
            return [f"its server could not be started: {seen.reason}"]
        return []


def _requests(count: int) -> str:
    return "a request" if count == 1 else f"{count} requests"


def _look(client: httpx.Client, model: str) -> Seen | None:
    """The pool as the gateway tells it now; None while it tells nothing. Raises httpx.HTTPError and MsgspecError."""
    told = client.get("/gateway/pools").raise_for_status().content
    pool = next((one for one in msgspec.json.decode(told, type=_Pools).pools if one.model == model), None)
    if pool is None:
        return None
    return Seen(pool.phase, pool.reason, _answered(client.get("/metrics").raise_for_status().text, model))


def _answered(metrics: str, model: str) -> dict[str, int]:
    """Good answers for the model by how the cache took part, out of Prometheus' text."""
    counted: dict[str, int] = {}
    for line in metrics.splitlines():
        if line.startswith(_REQUESTS + "{") and f'model="{model}"' in line and 'status="200"' in line:
            labels, _, value = line.partition("} ")
            how = labels.partition('cache="')[2].partition('"')[0]
            counted[how] = counted.get(how, 0) + int(float(value))
    return counted


def main(argv: list[str]) -> int:
    """Tell until the gateway is gone."""
    url, model = argv
    story = Story(model)
    with httpx.Client(base_url=url, timeout=_TIMEOUT_S, trust_env=False) as client:
        while True:
            try:
                seen = _look(client, model)
            except (httpx.HTTPError, msgspec.MsgspecError):
                seen = None  # not up yet, or on its way down: whoever started this ends it
            if seen is not None:
                for line in story.hear(time.monotonic(), seen):
                    sys.stdout.write(line + "\n")
                sys.stdout.flush()
            time.sleep(_EVERY_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
