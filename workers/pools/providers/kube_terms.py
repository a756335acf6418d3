"""What both kinds of Kubernetes pools are made from, and what they say about a fence. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .base import ProviderFault
from .kube_api import Json
from .kube_pod import FENCE_NOTE


@dataclass(frozen=True, slots=True)
class KubeTerms:
    """clock: monotonic seconds. api_key: sent to the servers. health_path: answered with 2xx by one that is ready.

    shared: other nodes have the pool too. every_s: between two looks at what says nothing by itself. margin_s: what a
    server that was told to end has beyond its grace, before it is taken off the books.
    """

    clock: Callable[[], float]
    health_path: str = "/health"
    api_key: str | None = None
    shared: bool = False
    every_s: float = 0.5
    margin_s: float = 15.0


def fence_of(found: Json) -> int:
    """The highest fence that an object has seen; 0 for none."""
    noted = str(((found.get("metadata") or {}).get("annotations") or {}).get(FENCE_NOTE, "0"))
    return int(noted) if noted.isdecimal() and len(noted) < 20 else 0


def refuse_lower(found: Json, fence: int, what: str) -> None:
    """Raises ProviderFault where an object has seen a higher fence: another node owns the pool by now."""
    if fence_of(found) > fence:
        raise ProviderFault(f"{what} belongs to another node by now: fence {fence_of(found)}, not {fence}")
