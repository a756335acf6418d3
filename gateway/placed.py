"""An answer that has begun, whole or not, and what it holds until it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errand import Errand
from .fleet import Backend, Model
from .lease import Lease
from .sent import Sent
from .upstream.call import Call

if TYPE_CHECKING:
    from .dispatch import Dispatch


class Placed(Sent):
    """An answer from a backend, with its places there and at the model."""

    __slots__ = ("_caller", "_dispatch", "_lease", "_model")

    def __init__(
        self,
        dispatch: Dispatch,
        errand: Errand,
        model: Model,
        backend: Backend,
        lease: Lease,
        call: Call,
        attempts: int,
    ) -> None:
        self._caller = errand.caller
        self._dispatch = dispatch
        self._lease = lease
        self._model = model
        self.attempts = attempts
        self.backend = backend
        self.call = call
        # of a model that was reloaded while its servers woke there are two
        self.fallback = "" if model is errand.model or model.name == errand.model.name else model.name

    def end(self) -> None:
        """Give the places back, and say how it went; of an answer that is not whole nobody wants the rest."""
        call, backend, dispatch = self.call, self.backend, self._dispatch
        if call.complete:
            if backend.doubted and call.status < 500:
                dispatch.breakers.succeeded(backend, 0)
        else:
            if call.fault is not None:
                # an error's status has been told already, and a pause is our client's, whatever runs out meanwhile
                if call.status < 500 and not call.paused:
                    dispatch.breakers.failed(backend, 0, call.fault.kind.value)
            elif backend.doubted and call.ended and call.status < 500:
                dispatch.breakers.succeeded(backend, 0)
            call.abort()
        self._lease.settle()
        if self._model.pool is not None:
            dispatch.finished(self._model)
        dispatch.admission.leave(self._model, self._caller)
