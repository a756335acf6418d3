"""What goes wrong, and for whom: the list of faults switched on, and which request each one strikes.

Refuses to know how a fault is done (sabotage). Fields from outside are checked here; a bad one raises ValueError
with a sentence.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

from .wire import Request

MAX_FAULTS = 64
_MAX_SECONDS = 3600.0
_MAX_BYTES = 4 << 30

PROBED = frozenset({"/health", "/ping", "/metrics", "/load", "/version", "/v1/models", "/is_sleeping"})
"""A fault that names no path spares these, so that a failing server still looks alive."""

# kind -> {parameter: (type, default)}
KINDS: dict[str, dict[str, tuple[type, Any]]] = {
    "refuse": {"seconds": (float, 1.0), "drop_idle": (bool, True)},
    "reset_before_headers": {},
    "reset_after_headers": {},
    "cut_mid_stream": {"after": (int, 3), "how": (str, "clean")},
    "error_frame_then_done": {"after": (int, 3), "status": (int, 500), "message": (str, "EngineCore died")},
    "hang": {"stage": (str, "headers"), "after": (int, 3), "seconds": (float, _MAX_SECONDS)},
    "slow": {"seconds": (float, 0.0), "per_event_s": (float, 0.0)},
    "status": {
        "status": (int, 500),
        "statuses": (list, None),
        "message": (str, "simulated failure"),
        "retry_after": (int, None),
        "body": (str, None),
        "content_type": (str, None),
    },
    "garbage": {"variant": (str, "not_http")},
    "oversized": {"bytes": (int, 100 << 20), "event_bytes": (int, 64 << 10), "chunked": (bool, False)},
    "stale": {"how": (str, "fin")},
    "no_terminal": {},
    "truncated": {"missing": (int, 0)},
    "sleep_fails": {"how": (str, "error"), "seconds": (float, _MAX_SECONDS)},
    "wake_fails": {"how": (str, "error"), "seconds": (float, _MAX_SECONDS)},
    "reload_fails": {"how": (str, "error"), "seconds": (float, _MAX_SECONDS)},
}
SLEEP_PATHS = {"sleep_fails": "/sleep", "wake_fails": "/wake_up", "reload_fails": "/collective_rpc"}
"""What these strike where no path is named."""
_HOW_IT_FAILS = frozenset({"error", "lies", "hangs", "dies"})
CHOICES: dict[tuple[str, str], frozenset[str]] = {
    ("cut_mid_stream", "how"): frozenset({"clean", "fin", "rst", "chunk"}),
    ("hang", "stage"): frozenset({"headers", "stream"}),
    ("stale", "how"): frozenset({"fin", "rst"}),
    **{(kind, "how"): _HOW_IT_FAILS for kind in SLEEP_PATHS},
    ("garbage", "variant"): frozenset(
        {
            "not_http",
            "bad_chunk_size",
            "bad_chunk_end",
            "bad_content_length",
            "negative_content_length",
            "two_content_lengths",
            "length_and_chunked",
            "status_99",
            "status_101",
            "status_700",
            "header_flood",
            "long_header",
            "bad_header",
            "trailing",
            "early_100s",
        }
    ),
}


@dataclass(slots=True)
class Fault:
    """One switched-on fault. Strikes matching requests after `skip` of them, `count` times (None: always)."""

    ident: int
    kind: str
    path: str | None
    probability: float
    count: int | None
    skip: int
    parameters: dict[str, Any]
    hits: int = 0
    seen: int = 0
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the fault is switched off: what hangs for it goes on."""

    def matches(self, path: str) -> bool:
        """By exact path, by prefix (`/v1/*`, `*`); without a path, everything but what probes ask for."""
        if self.path is None:
            return path not in PROBED
        return path.startswith(self.path[:-1]) if self.path.endswith("*") else path == self.path

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "id": self.ident,
            "kind": self.kind,
            "path": self.path,
            "probability": self.probability,
            "count": self.count,
            "skip": self.skip,
            **self.parameters,
            "hits": self.hits,
        }


class Faults:
    """The faults switched on, first match wins."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._faults: list[Fault] = []
        self._next = 1

    @property
    def active(self) -> bool:
        """Any fault at all: canned mode steps aside."""
        return bool(self._faults)

    def draw(self, choices: list[int]) -> int:
        """One of several, by the seeded generator."""
        return self._random.choice(choices)

    def replace(self, specs: list[dict[str, Any]]) -> list[Fault]:
        """Switches off what was on and these on; ValueError says what is wrong, and then nothing changes."""
        if len(specs) > MAX_FAULTS:
            raise ValueError(f"at most {MAX_FAULTS} faults at a time")
        made = [_checked(dict(spec), self._next + n) for n, spec in enumerate(specs)]
        self.clear()
        self._next += len(made)
        self._faults = [fault for fault in made if fault.kind != "refuse"]
        return made

    def clear(self) -> None:
        """Switches all off and lets go what hangs."""
        for fault in self._faults:
            fault.over.set()
        self._faults.clear()

    def pick(self, request: Request) -> Fault | None:
        """The fault that strikes this request, if any; counts it."""
        for fault in self._faults:
            if not fault.matches(request.path) or (fault.count is not None and fault.hits >= fault.count):
                continue
            if fault.kind == "stale" and request.ordinal < 2:
                continue
            fault.seen += 1
            if fault.seen <= fault.skip:
                continue
            if fault.probability < 1.0 and self._random.random() >= fault.probability:
                continue
            fault.hits += 1
            return fault
        return None

    def describe(self) -> list[dict[str, Any]]:
        """All of them, as JSON."""
        return [fault.describe() for fault in self._faults]


def _checked(spec: dict[str, Any], ident: int) -> Fault:
    kind = spec.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(sorted(KINDS))}")
    path = spec.pop("path", SLEEP_PATHS.get(kind))
    if path is not None and (not isinstance(path, str) or len(path) > 256):
        raise ValueError("path must be a string of at most 256 characters")
    probability = _number(spec.pop("probability", 1.0), "probability", 0.0, 1.0)
    count = spec.pop("count", None)
    if count is not None:
        count = int(_number(count, "count", 0, 1 << 31))
    skip = int(_number(spec.pop("skip", 0), "skip", 0, 1 << 31))
    parameters = {
        name: _parameter(kind, name, spec.pop(name, default), wanted, default)
        for name, (wanted, default) in KINDS[kind].items()
    }
    if spec:
        raise ValueError(f"unknown field for {kind}: {next(iter(spec))!s:.64}")
    return Fault(ident, kind, path, probability, count, skip, parameters)


def _parameter(kind: str, name: str, value: Any, wanted: type, default: Any) -> Any:
    if value is None and default is None:
        return None
    if wanted is float:
        return _number(value, name, 0.0, _MAX_SECONDS)
    if wanted is int:
        return int(_number(value, name, 0, _MAX_BYTES))
    if wanted is list:
        if not isinstance(value, list) or not value or len(value) > 64:
            raise ValueError(f"{name} must be a list of 1 to 64 statuses")
        return [int(_number(item, name, 100, 999)) for item in value]
    if not isinstance(value, wanted):
        raise ValueError(f"{name} must be a {wanted.__name__}")
    allowed = CHOICES.get((kind, name))
    if allowed is not None and value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(sorted(allowed))}")
    return value[:65_536] if isinstance(value, str) else value


def _number(value: Any, name: str, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise ValueError(f"{name} must be a number from {least:g} to {most:g}")
    return value
