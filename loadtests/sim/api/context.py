"""What endpoints are given: settings, the runner, and the server's waking and sleeping. No HTTP."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from ..model.metrics import Metrics
from ..model.runner import Runner
from ..model.sleep import SleepMode
from ..settings import Settings
from ..stats import Stats
from . import body as fields
from .errors import ApiError


@dataclass(slots=True)
class Context:
    """One per simulator. `stored` keeps responses by id (bounded by its user)."""

    settings: Settings
    runner: Runner
    metrics: Metrics
    stats: Stats
    sleeping: SleepMode
    load: int = 0
    """Requests in flight on inference endpoints, what /load answers."""
    stored: dict[str, dict[str, Any]] = field(default_factory=dict)
    background: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    @property
    def asleep(self) -> bool:
        """Whether the server sleeps, at any level."""
        return self.sleeping.asleep

    def model(self, body: dict[str, Any]) -> str:
        """The model to answer for; 404 for an unknown one unless any name is served."""
        name = fields.optional(body, "model", str)
        if name is None:
            return self.settings.models[0]
        if not self.settings.any_model and name not in self.settings.models:
            raise ApiError(404, f"The model `{name[:200]}` does not exist.", param="model")
        return name
