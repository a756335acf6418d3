"""An answer that has begun, whoever asked for it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from .fleet import Backend
from .upstream.call import Call


class Sent(ABC):
    """An answer that has begun: ``end`` must follow. ``fallback`` is the model that gave it, if not the one asked."""

    __slots__ = ("attempts", "backend", "call", "fallback")

    def __init__(self, call: Call, backend: Backend, attempts: int, fallback: str) -> None:
        self.attempts = attempts
        self.backend = backend
        self.call = call
        self.fallback = fallback

    @abstractmethod
    def end(self) -> None:
        """Give back what it holds; of an answer that is not whole nobody wants the rest."""
