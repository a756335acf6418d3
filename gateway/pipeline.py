"""One request's life, from its bytes to its answer. `docs/request.md` draws :meth:`Pipeline.serve` in these words.

    parse -> route -> limits -> fingerprint -> recall -> fly -> admit -> choose -> lease -> upstream
          -> relay | respond -> keep

Everything with an opinion is elsewhere and pure; this file only puts it in order and gives back, on every path,
what it took: the place in the queue, the lease at the backend, the connection.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from time import perf_counter_ns

from ..cache.l2 import Lease
from ..cache.outcome import NoCache, Outcome
from .answer import Answering
from .caching import directives, veto
from .caller import ANYONE, Caller
from .dispatch import Dispatch
from .endpoints import RESPONSES, Endpoint, StoredResponse
from .errand import Errand, body_for
from .errors import Fault, Kind
from .fingerprint import fingerprint
from .fleet import Backend, Fleet, Model, Route
from .life import Life
from .limits.limits import Limits
from .parse import Parser, Request
from .raw import Out, RawRequest
from .recall import Kept, Question, Recall
from .sharing import Sharing
from .sticky import Foreign, Sticky

_BYPASSED = Outcome.BYPASS.value
_NO_LEASE = Lease.NONE  # looked up once: an enum's members are slow in Python 3.11
_BYPASS = {
    reason: (("x-penstock-cache", _BYPASSED), ("x-penstock-cache-reason", reason.value)) for reason in NoCache
}


class Pipeline:
    """Serves requests on one loop; holds what requests of this worker share."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        limits: Limits,
        dispatch: Dispatch,
        answering: Answering,
        recall: Recall,
        sharing: Sharing,
        sticky: Sticky,
        parser: Parser | None = None,
    ) -> None:
        self.fleet = fleet
        self._limits = limits
        self._dispatch = dispatch
        self._answering = answering
        self._recall = recall
        self._sharing = sharing
        self._sticky = sticky
        self._parser = parser or Parser()

    def serve(
        self, endpoint: Endpoint, raw: RawRequest, out: Out, life: Life, caller: Caller = ANYONE
    ) -> Coroutine[None, None, None] | None:
        """Answer one request to a proxied endpoint; raises :class:`Fault` for what the client must be told.

        What it gives back is what is still to be waited for; None when the request has been answered. A hit that is
        no stream costs no coroutine.
        """
        request = self._parser.parse(endpoint, raw)
        route = self.fleet.route(request.model, caller)
        model = route.model
        life.model = model.name
        if caller.row >= 0:
            life.grant = self._limits.admit(caller)
        wanted = directives(raw, request.fields)
        reason = veto(request, model.cache_mode, wanted)
        if reason is not None:
            return self._ask(self._errand(endpoint, request, route, raw, caller, life), reason, out, life)
        key = fingerprint(
            request, model.key_head(endpoint, caller.tenant, wanted.namespace), model.name, raw.query
        )
        question = self._recall.question(key, model.name, caller.tenant, wanted, request)
        if wanted.read:
            kept = self._recall.near(question)
            if kept is not None:
                return self._sharing.give(kept, endpoint, raw, out, life)
            if self._recall.tiers.reaches_far:
                return self._look_far(question, endpoint, request, route, raw, caller, out, life)
        errand = self._errand(endpoint, request, route, raw, caller, life)
        if wanted.shared:
            return self._sharing.fly(question, errand, _NO_LEASE, out, life)
        return self._fetch(question, errand, _NO_LEASE, out, life)

    async def _look_far(
        self,
        question: Question,
        endpoint: Endpoint,
        request: Request,
        route: Route,
        raw: RawRequest,
        caller: Caller,
        out: Out,
        life: Life,
    ) -> None:
        recall = self._recall
        found: Kept | Lease = _NO_LEASE
        asked = recall.ask(question)
        if asked is not None:
            began = perf_counter_ns()
            value = await asked
            life.far_ns = perf_counter_ns() - began
            found = recall.leased(question, value) or await recall.far(question, value)
        if isinstance(found, Lease):
            errand = self._errand(endpoint, request, route, raw, caller, life)
            await self._fetch(question, errand, found, out, life)
            return
        rest = self._sharing.give(found, endpoint, raw, out, life)
        if rest is not None:
            await rest

    def _fetch(
        self, question: Question, errand: Errand, lease: Lease, out: Out, life: Life
    ) -> Coroutine[None, None, None]:
        """What nobody has kept."""
        wanted = question.wanted
        if wanted.shared:
            return self._sharing.fly(question, errand, lease, out, life)
        if wanted.write:
            return self._sharing.alone(question, errand, lease, out, life)
        return self._ask(errand, NoCache.NO_STORE, out, life)

    async def stored(
        self, stored: StoredResponse, raw: RawRequest, out: Out, life: Life, caller: Caller = ANYONE
    ) -> None:
        """Answer a call about one stored response: by the backend that holds it, else by asking each in turn.

        A backend that fails does not end the search; when no other has it, its failure is the answer: it might have it.
        What is another tenant's, or at a model that is not for this caller, is not there. A server that sleeps is woken
        when it is known to hold the response, and not to be asked whether it does.
        """
        if caller.row >= 0:
            life.grant = self._limits.admit(caller)
        allowed = {route.model for _, route in self.fleet.routes_of(caller)}
        by_backend = {b.index: model for model in allowed for b in model.backends}
        within = [b for b in self.fleet.backends if b.index in by_backend]
        backend = self._holder(stored.id, within, caller)
        candidates = [backend] if backend is not None else [b for b in within if by_backend[b.index].asks(b)]
        if not candidates and any(model.pool is None for model in by_backend.values()):
            raise Fault(Kind.NO_BACKEND, "no backend is healthy", retry_after_s=2.0)
        target = f"{stored.target}?{raw.query}" if raw.query else stored.target
        failed: Fault | None = None
        for candidate in candidates:
            model = by_backend[candidate.index]
            life.model = model.name
            body = raw.body or None
            errand = Errand(RESPONSES, model, stored.method, target, raw, body, caller, pinned=candidate)
            try:
                sent = await self._dispatch.send(errand, life)
            except Fault as fault:
                failed = fault
                continue
            try:
                if sent.call.status == 404 and len(candidates) > 1:
                    continue
                rest = self._answering.answer(errand, sent, (), out, life)
                if rest is not None:
                    await rest
                return
            finally:
                sent.end()
        raise failed or _no_response(stored.id)

    # ---- past the cache

    async def _ask(self, errand: Errand, reason: NoCache, out: Out, life: Life) -> None:
        """Admit, choose, lease, ask, and answer with what comes."""
        life.cache = _BYPASSED
        life.reason = reason
        sent = await self._dispatch.send(errand, life)
        try:
            rest = self._answering.answer(errand, sent, _BYPASS[reason], out, life)
            if rest is not None:
                await rest
        finally:
            sent.end()

    def _errand(
        self,
        endpoint: Endpoint,
        request: Request,
        route: Route,
        raw: RawRequest,
        caller: Caller,
        life: Life,
    ) -> Errand:
        """What is to be asked of a backend; raises :class:`Fault` 429 when the caller has no tokens left for it."""
        if life.grant is not None:
            life.grant.reserve(request)
        body = body_for(request, route, caller)
        target = f"{endpoint.path}?{raw.query}" if raw.query else endpoint.path
        pinned = self._pinned(request, route.model, caller) if endpoint is RESPONSES else None
        return Errand(endpoint, route.model, "POST", target, raw, body, caller, request, pinned)

    def _pinned(self, request: Request, model: Model, caller: Caller) -> Backend | None:
        previous = request.fields.get("previous_response_id") if request.fields is not None else None
        return self._holder(previous, model.backends, caller) if isinstance(previous, str) else None

    def _holder(self, id: str, backends: Sequence[Backend], caller: Caller) -> Backend | None:
        """Who has a stored response, as far as is known; raises :class:`Fault` 404 for another tenant's."""
        try:
            return self._sticky.find(id, backends, caller.tenant)
        except Foreign:
            raise _no_response(id) from None


def _no_response(id: str) -> Fault:
    return Fault(Kind.NOT_FOUND, f"no backend has a response with the id '{id[:128]}'")
