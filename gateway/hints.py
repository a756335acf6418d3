"""What a row of the backend table tells a worker besides up or down: what the server reports, and its slow start.

Pure: the clock is an argument. A hint is worth something while it is young: one that has not been renewed for
`STALE_PROBES` intervals counts as nothing, so a controller that is gone, or a server whose metrics are, steers nobody.

A backend that has come up gets a tenth of its weight, and all of it when `slow_start_s` have passed; in between its
share grows evenly. Where all backends of a model came up at one moment, as at a start, all are held back alike, and
that is to hold back none; for this the ramp has steps of a hundredth.
"""

from __future__ import annotations

from ..cache.table import BackendState
from .config.structs import Health
from .fleet import LEAST_RAMP, Backend
from .policies.hint import hint

STALE_PROBES = 3


def take_in(backend: Backend, state: BackendState, health: Health, now_s: float) -> None:
    """Set the backend's hints, `since_s` and `ramp` to what is true now; now_s: the worker's clock."""
    fresh = state.updated_ns and now_s - state.updated_ns / 1e9 <= STALE_PROBES * health.interval_s
    backend.waiting = float(state.waiting) if fresh else 0.0
    backend.kv = state.kv_permille / 1000 if fresh else 0.0
    backend.hint = hint(backend.waiting, backend.kv)
    if state.since_ns:
        backend.since_s = max(backend.since_s, state.since_ns / 1e9)
    backend.ramp = ramp(now_s - backend.since_s, health.slow_start_s)


def ramp(age_s: float, slow_start_s: float) -> float:
    """What a backend's weight counts, 0.1 to 1, `age_s` after it came up."""
    if age_s >= slow_start_s:
        return 1.0
    return round(LEAST_RAMP + (1.0 - LEAST_RAMP) * max(0.0, age_s) / slow_start_s, 2)
