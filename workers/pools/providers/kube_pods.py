"""`provider: kubernetes` with `vllm_model`: each member is a Pod made from a `VLLMModel` object.

Strategy: a member's Pod has one name, so what runs is found by asking, and two that start the same member make one Pod
(409: adopted). Its way to Ready is watched, for what cannot come right by itself a start is given up early. A Pod is
ended by its uid and as it was last read: one that somebody changed meanwhile is read again, and left alone where the
change is a higher fence. It refuses to know why a member is wanted.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping

from ....cache.pool_table import PoolPhase
from ..ready import until_ready
from .base import Order, Provider, ProviderFault, Running
from .kube_api import Json, KubeApi, KubeFault
from .kube_place import PODS, SERVICES, VLLM_MODELS, VLLM_MODELS_STATUS
from .kube_pod import FENCE_NOTE, MADE_FROM_NOTE, PORT, PodPlan
from .kube_state import PodPhase, PodState, state_of
from .kube_terms import KubeTerms, fence_of, refuse_lower
from .kube_watch import KubeWatch

_log = logging.getLogger("penstock.pools")
_TRIES = 8


class PodsProvider(Provider):
    """The Pods of one pool. source: the VLLMModel's name. It owns `api`."""

    def __init__(
        self, api: KubeApi, plan: PodPlan, source: str, terms: KubeTerms, watch_s: float = 60.0
    ) -> None:
        super().__init__()
        self._api = api
        self._plan = plan
        self._source = VLLM_MODELS.at(None, source)
        self._source_status = VLLM_MODELS_STATUS.at(None, source)
        self._terms = terms
        self._pods = PODS.at(plan.namespace)
        self._watch = KubeWatch(api, self._pods, labels=plan.selector, seen=self._seen, for_s=watch_s)
        #: uids of Pods that were said to run, and have not been said to be gone
        self._running: dict[str, str] = {}
        self._showing = asyncio.Lock()
        self._to_show = (PoolPhase.OFF, "")
        self._shown: tuple[str, str, int] | None = None

    async def ensure_ready(self, member: int, order: Order, timeout_s: float) -> Running:
        clock = self._terms.clock
        until = clock() + timeout_s
        name = self._plan.name(member)
        last: list[str] = [f'Pod "{name}" has not been created']
        made: list[Json] = []
        try:
            async with asyncio.timeout(timeout_s):
                pod = await self._create(member, order, until, made)
                state = await self._until_ready(pod, last)
                url = _url(state)
                last[0] = (
                    f'Pod "{name}" is ready, but {url}{self._terms.health_path} does not answer with 2xx'
                )
                await self._healthy(pod, url)
        except TimeoutError:
            why = self._api.trouble or self._watch.fault or last[0]
            fault = ProviderFault(f"not ready after {timeout_s:g} s: {why}")
        except ProviderFault as refused:
            fault = refused
        else:
            self._running[name] = _uid(pod)
            return Running(url)
        if made:
            await self._clear(made[-1])
        raise fault

    async def ensure_stopped(self, member: int, order: Order, timeout_s: float) -> None:
        name = self._plan.name(member)
        self._running.pop(name, None)
        pod = await self._delete(name, order, math.ceil(timeout_s), 2 * timeout_s + self._terms.margin_s)
        if pod is None:
            return
        try:
            async with asyncio.timeout(timeout_s + self._terms.margin_s):
                await self._until_gone(name, _uid(pod))
        except TimeoutError:
            # its node does not say that it is gone: it is taken off the books, so that another may start
            _log.warning('Pod "%s" is still there %g s after it was told to end: forced', name, timeout_s)
            if await self._delete(name, order, 0, timeout_s + self._terms.margin_s) is not None:
                try:
                    async with asyncio.timeout(self._terms.margin_s):
                        await self._until_gone(name, _uid(pod))
                except TimeoutError:
                    raise ProviderFault(
                        f'Pod "{name}" is still there after it was deleted by force'
                    ) from None

    async def status(self) -> Mapping[int, Running]:
        found: dict[int, Running] = {}
        pods, version = await self._api.list(self._pods, labels=self._plan.selector)
        wanted = await self._made_from() if pods else None
        for pod in pods:
            member, state = self._plan.member(pod), state_of(pod)
            if member is None or not state.runs:
                continue
            if state.phase is PodPhase.READY:
                self._running[self._plan.name(member)] = _uid(pod)
            stale = wanted is not None and _note(pod, MADE_FROM_NOTE) != wanted
            found[member] = Running(_url(state) if state.ip else None, stale=stale)
        if found:
            self._watch.start((pods, version))
        return found

    async def owned(self, fence: int) -> None:
        pods, _ = await self._api.list(self._pods, labels=self._plan.selector)
        for pod in pods:
            if state_of(pod).runs:
                await self._fence(pod, fence)

    async def show(self, phase: PoolPhase, reason: str) -> None:
        """In the VLLMModel's status; what keeps that from being written is logged, and nothing else."""
        self._to_show = (phase, reason)
        async with self._showing:
            await self._write(*self._to_show)

    async def _write(self, phase: PoolPhase, reason: str) -> None:
        try:
            source = await self._api.get(self._source, timeout_s=10.0)
            generation = int((source.get("metadata") or {}).get("generation") or 0)
            shown = (phase.name.capitalize(), reason, generation)
            if shown == self._shown:
                return
            status = {"phase": shown[0], "message": reason, "observedGeneration": generation}
            await self._api.merge(self._source_status, {"status": status}, timeout_s=10.0)
            self._shown = shown
        except ProviderFault as fault:
            _log.warning("the phase of %s is not shown: %s", self._source.words, fault)

    async def close(self) -> None:
        await self._watch.close()
        await self._api.close()

    # ---- starting

    async def _create(self, member: int, order: Order, until: float, made: list[Json]) -> Json:
        """The member's Pod, made or adopted; one that has ended, or was made from something else, makes way."""
        source = await self._read_source(until)
        wanted = self._plan.pod(member, source, order.fence)
        name = wanted["metadata"]["name"]
        await self._serve(source, until)
        while True:
            try:
                pod = await self._api.create(self._pods, wanted, timeout_s=self._left(until))
                made.append(pod)
                return pod
            except KubeFault as fault:
                if fault.status != 409:
                    raise
            there = await self._find(name, until)
            if there is None:
                continue
            if self._plan.member(there) != member:
                raise ProviderFault(f'a Pod "{name}" that is not this pool\'s is in the way')
            state = state_of(there)
            if state.runs and _note(there, MADE_FROM_NOTE) == _note(wanted, MADE_FROM_NOTE):
                made.append(there)
                if fence_of(there) < order.fence:
                    await self._fence(there, order.fence)
                return there
            if state.phase is not PodPhase.ENDING:
                # one that has ended is nobody's any more
                await self._delete(name, order if state.runs else None, None, self._left(until))
            await self._until_gone(name, _uid(there))

    async def _serve(self, source: Json, until: float) -> None:
        place = SERVICES.at(self._plan.namespace)
        try:
            await self._api.create(place, self._plan.service(source), timeout_s=self._left(until))
        except KubeFault as fault:
            if fault.status != 409:
                raise

    async def _until_ready(self, pod: Json, last: list[str]) -> PodState:
        """Its state once it is Ready. Raises ProviderFault once it will not be."""
        name, uid = pod["metadata"]["name"], _uid(pod)
        last[0] = f'Pod "{name}" is pending'
        met = unplaced = False

        def news() -> PodState | None:
            nonlocal met
            now = self._watch.objects.get(name)
            if now is None or _uid(now) != uid:
                if met:
                    raise ProviderFault(f'Pod "{name}" was deleted while it started')
                return None
            met = True
            state = state_of(now)
            last[0] = state.reason or last[0]
            if state.phase is PodPhase.BROKEN or not state.runs:
                raise ProviderFault(state.reason)
            changed = (state.phase is PodPhase.UNPLACED) is not unplaced
            return state if state.phase is PodPhase.READY or changed else None

        while True:
            # a node may yet come, but not for ever
            patience_s = self._plan.pool.unplaced_timeout_s if unplaced else None
            try:
                async with asyncio.timeout(patience_s):
                    state = await self._watch.until(news)
            except TimeoutError:
                raise ProviderFault(f"{last[0]} (for {patience_s:g} s)") from None
            if state.phase is PodPhase.READY:
                return state
            unplaced = state.phase is PodPhase.UNPLACED

    async def _healthy(self, pod: Json, url: str) -> None:
        """Return once vLLM says it is healthy. Raises ProviderFault once the Pod has ended."""
        name, uid = pod["metadata"]["name"], _uid(pod)

        def ended() -> str | None:
            now = self._watch.objects.get(name)
            if now is None or _uid(now) != uid:
                return f'Pod "{name}" was deleted while it started'
            state = state_of(now)
            return None if state.runs else state.reason

        health = asyncio.ensure_future(
            until_ready(url, path=self._terms.health_path, api_key=self._terms.api_key)
        )
        end = asyncio.ensure_future(self._watch.until(ended))
        try:
            await asyncio.wait((health, end), return_when=asyncio.FIRST_COMPLETED)
            if end.done():
                raise ProviderFault(end.result())
            health.result()
        finally:
            health.cancel()
            end.cancel()
            await asyncio.gather(health, end, return_exceptions=True)

    # ---- ending

    async def _clear(self, pod: Json) -> None:
        """Leave nothing of a start that failed."""
        name, uid = pod["metadata"]["name"], _uid(pod)
        try:
            now = await self._find(name, self._terms.clock() + self._terms.margin_s)
            if now is None or _uid(now) != uid:
                return
            if self._terms.shared and state_of(now).phase is PodPhase.READY:
                return  # this node does not reach it, but others may
            async with asyncio.timeout(self._terms.margin_s):
                await self._delete(name, None, 1, self._terms.margin_s)
                await self._until_gone(name, uid)
        except (ProviderFault, TimeoutError) as fault:
            _log.warning(
                'Pod "%s", whose start failed, is not gone: %s', name, str(fault) or "it takes too long"
            )

    async def _delete(
        self, name: str, order: Order | None, grace_s: int | None, timeout_s: float
    ) -> Json | None:
        """Tell a Pod of this pool to end; None where there is none. order: whose fence is to hold."""
        until = self._terms.clock() + timeout_s
        for _ in range(_TRIES):
            pod = await self._find(name, until)
            if pod is None or self._plan.member(pod) is None:
                return None
            if order is not None:
                refuse_lower(pod, order.fence, f'Pod "{name}"')
            version = str(pod["metadata"].get("resourceVersion", ""))
            try:
                await self._api.delete(
                    PODS.at(self._plan.namespace, name),
                    uid=_uid(pod),
                    version=version,
                    grace_s=grace_s,
                    timeout_s=self._left(until),
                )
            except KubeFault as fault:
                if fault.status == 404:
                    return None
                if fault.status != 409:
                    raise
            else:
                return pod
        raise ProviderFault(f'Pod "{name}" changes too often to be ended')

    async def _until_gone(self, name: str, uid: str) -> None:
        def gone() -> bool | None:
            now = self._watch.objects.get(name)
            return True if now is None or _uid(now) != uid else None

        await self._watch.until(gone)
        # the watch may not have come as far as the Pod's beginning
        while (now := await self._find(name, self._terms.clock() + self._terms.margin_s)) is not None:
            if _uid(now) != uid:
                return
            await asyncio.sleep(self._terms.every_s)

    # ---- looking

    async def _find(self, name: str, until: float) -> Json | None:
        try:
            return await self._api.get(PODS.at(self._plan.namespace, name), timeout_s=self._left(until))
        except KubeFault as fault:
            if fault.status == 404:
                return None
            raise

    async def _read_source(self, until: float) -> Json:
        try:
            return await self._api.get(self._source, timeout_s=self._left(until))
        except KubeFault as fault:
            if fault.status == 404:
                raise ProviderFault(f'there is no VLLMModel "{self._source.name}"') from None
            raise

    async def _made_from(self) -> str | None:
        """The digest of what a Pod would be made from now; None where none would be."""
        try:
            return _note(self._plan.pod(0, await self._api.get(self._source)), MADE_FROM_NOTE)
        except ProviderFault:
            return None

    async def _fence(self, pod: Json, fence: int) -> None:
        """Have a Pod refuse lower ones: of the version that was read, so that none that was higher is lowered."""
        name, uid = pod["metadata"]["name"], _uid(pod)
        for _ in range(_TRIES):
            if fence_of(pod) >= fence or _uid(pod) != uid:
                return
            version = pod["metadata"]["resourceVersion"]
            meta = {"resourceVersion": version, "annotations": {FENCE_NOTE: str(fence)}}
            try:
                await self._api.merge(PODS.at(self._plan.namespace, name), {"metadata": meta})
                return
            except KubeFault as fault:
                if fault.status not in (404, 409):
                    raise
            now = await self._find(name, self._terms.clock() + self._terms.margin_s)
            if now is None:
                return
            pod = now
        raise ProviderFault(f'Pod "{name}" changes too often to be owned')

    def _seen(self, name: str, found: Json | None) -> None:
        uid = self._running.get(name)
        if uid is None:
            return
        if found is None or _uid(found) != uid:
            reason = f'Pod "{name}" was deleted'
        else:
            state = state_of(found)
            if state.runs:
                return
            reason = state.reason
        del self._running[name]
        self.ended(int(name.rpartition("-")[2]), reason)

    def _left(self, until: float) -> float:
        return max(until - self._terms.clock(), 0.05)


def _uid(pod: Json) -> str:
    return str((pod.get("metadata") or {}).get("uid"))


def _note(pod: Json, key: str) -> str | None:
    return ((pod.get("metadata") or {}).get("annotations") or {}).get(key)


def _url(state: PodState) -> str:
    assert state.ip is not None
    return f"http://{f'[{state.ip}]' if ':' in state.ip else state.ip}:{PORT}"
