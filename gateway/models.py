"""``GET /v1/models`` and ``/v1/models/{id}``: from configuration and health, so they answer while everything sleeps.

(https://platform.openai.com/docs/api-reference/models/list; ``max_model_len`` is vLLM's, ``state`` is ours.)
"""

from __future__ import annotations

import msgspec

from .caller import ANYONE, Caller
from .fleet import Fleet, Route


def _card(name: str, route: Route) -> dict[str, object]:
    model = route.model
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "penstock",
        "root": model.name,
        "parent": None,
        "max_model_len": model.max_model_len,
        "state": model.pool.state if model.pool is not None else "ready" if model.ready else "down",
    }


def list_models(fleet: Fleet, caller: Caller = ANYONE) -> bytes:
    """Every model and alias that ``caller`` may use, in the order of the configuration."""
    cards = [_card(name, route) for name, route in fleet.routes_of(caller)]
    return msgspec.json.encode({"object": "list", "data": cards})


def show_model(fleet: Fleet, name: str, caller: Caller = ANYONE) -> bytes:
    """One model or alias; raises ``Fault`` as :meth:`Fleet.route` does."""
    return msgspec.json.encode(_card(name, fleet.route(name, caller)))
