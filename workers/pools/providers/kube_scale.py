"""`provider: kubernetes` with `scale`: members are the replicas of a Deployment or a StatefulSet.

Strategy: the number of replicas is the only thing that is changed, through the scale subresource, and only of the
version that was read; after a conflict it is read again. So who stopped looking (a paused gateway) stops nothing: a
new owner notes its fence at the object, which makes it another version, and shows in it. A Pod of it is never touched.
It refuses to know how the Pods come to be; why they do not is read from them, for who waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from ....gateway.config import KubernetesPool
from .base import Order, Provider, ProviderFault, Running
from .kube_api import Json, KubeApi, KubeFault
from .kube_place import PODS, workload
from .kube_pod import FENCE_NOTE
from .kube_state import PodPhase, state_of
from .kube_terms import KubeTerms, fence_of, refuse_lower
from .kube_watch import KubeWatch
from .reach import Reach

_log = logging.getLogger("penstock.pools")
_TRIES = 8


class ScaleProvider(Provider):
    """One Deployment or StatefulSet. reach: asks the members' backends for their health. It owns `api` and `reach`."""

    ordered = True

    def __init__(
        self,
        api: KubeApi,
        pool: KubernetesPool,
        namespace: str,
        reach: Reach,
        terms: KubeTerms,
        watch_s: float = 60.0,
    ) -> None:
        super().__init__()
        assert pool.scale is not None
        self._api = api
        self._pool = pool
        self._reach = reach
        self._terms = terms
        self._kind, self._name, self._namespace = pool.scale.kind, pool.scale.name, namespace
        self._place = workload(self._kind).at(namespace, self._name)
        self._scale = workload(self._kind, "scale").at(namespace, self._name)
        self._status = workload(self._kind, "status").at(namespace, self._name)
        self._watch = KubeWatch(
            api, workload(self._kind).at(namespace), name=self._name, seen=self._seen, for_s=watch_s
        )
        #: how many members were said to run, and have not been said to be gone
        self._running = 0

    async def ensure_ready(self, member: int, order: Order, timeout_s: float) -> Running:
        raised = False
        last = [f"{self._place.words} has not been scaled"]
        try:
            async with asyncio.timeout(timeout_s):
                raised = await self._at_least(member + 1, timeout_s)
                if order.fence and not raised:
                    await self.owned(order.fence)
                await self._until_ready(member, last)
                last[0] = f"{self._place.words} is ready, but its server does not answer with 2xx"
                await self._reach.until_healthy(member)
        except TimeoutError:
            fault = ProviderFault(f"not ready after {timeout_s:g} s: {self._api.trouble or last[0]}")
        except ProviderFault as refused:
            fault = refused
        else:
            self._running = max(self._running, member + 1)
            self._watch.start()
            return Running()
        if raised or not self._terms.shared:
            try:
                await self._at_most(member, None, self._terms.margin_s)
            except ProviderFault as left:
                _log.warning("%s, whose start failed, is not scaled back: %s", self._place.words, left)
        raise fault

    async def ensure_stopped(self, member: int, order: Order, timeout_s: float) -> None:
        self._running = min(self._running, member)
        found = await self._at_most(member, order, timeout_s)
        if found is None:
            return
        try:
            # its Pods have their own grace, which is not this pool's to shorten
            async with asyncio.timeout(timeout_s + self._terms.margin_s):
                while True:
                    if len(await self._pods(found)) <= member:
                        return
                    await asyncio.sleep(self._terms.every_s)
        except TimeoutError:
            raise ProviderFault(
                f"{self._place.words} is scaled to {member}, but after {timeout_s:g} s its Pods are still there"
            ) from None

    async def status(self) -> Mapping[int, Running]:
        found = await self._read(30.0)
        count = min(_replicas(found), self._pool.max)
        self._running = max(self._running, min(count, _ready(found)))
        if count:
            self._watch.start()
        return {member: Running() for member in range(count)}

    async def owned(self, fence: int) -> None:
        for _ in range(_TRIES):
            found = await self._read(30.0)
            if fence_of(found) >= fence:
                return
            version = found["metadata"].get("resourceVersion")
            meta = {"resourceVersion": version, "annotations": {FENCE_NOTE: str(fence)}}
            try:
                # with its status alone: to change the object itself is to be able to run anything
                await self._api.merge(self._status, {"metadata": meta})
                return
            except KubeFault as fault:
                if fault.status != 409:
                    raise
        raise ProviderFault(f"{self._place.words} changes too often to be owned")

    async def close(self) -> None:
        await self._watch.close()
        await self._reach.close()
        await self._api.close()

    # ---- the number of replicas

    async def _at_least(self, count: int, timeout_s: float) -> bool:
        """Whether the number had to be raised."""
        for _ in range(_TRIES):
            found = await self._read(timeout_s)
            if _replicas(found) >= count:
                return False
            if await self._put(found, count, timeout_s):
                return True
        raise ProviderFault(f"{self._place.words} changes too often to be scaled")

    async def _at_most(self, count: int, order: Order | None, timeout_s: float) -> Json | None:
        """The object as it was before; None where there is none."""
        for _ in range(_TRIES):
            try:
                found = await self._read(timeout_s)
            except KubeFault as fault:
                if fault.status == 404:
                    return None
                raise
            if _replicas(found) <= count:
                return found
            if order is not None:
                refuse_lower(found, order.fence, self._place.words)
            if await self._put(found, count, timeout_s):
                return found
        raise ProviderFault(f"{self._place.words} changes too often to be scaled")

    async def _put(self, found: Json, count: int, timeout_s: float) -> bool:
        """Whether it was still as it was found."""
        meta = {
            "name": self._name,
            "namespace": self._namespace,
            "resourceVersion": found["metadata"].get("resourceVersion"),
        }
        body = {
            "apiVersion": "autoscaling/v1",
            "kind": "Scale",
            "metadata": meta,
            "spec": {"replicas": count},
        }
        try:
            await self._api.replace(self._scale, body, timeout_s=timeout_s)
        except KubeFault as fault:
            if fault.status != 409:
                raise
            return False
        return True

    # ---- looking

    async def _read(self, timeout_s: float) -> Json:
        return await self._api.get(self._place, timeout_s=timeout_s)

    async def _pods(self, found: Json) -> list[Json]:
        """Those of its Pods that have not ended."""
        labels = ((found.get("spec") or {}).get("selector") or {}).get("matchLabels") or {}
        selector = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
        if not selector:
            return []
        pods, _ = await self._api.list(PODS.at(self._namespace), labels=selector)
        return [pod for pod in pods if state_of(pod).phase is not PodPhase.ENDED]

    async def _until_ready(self, member: int, last: list[str]) -> None:
        """Return once so many replicas are ready. Raises ProviderFault once they will not be."""
        unplaced_since: float | None = None
        while True:
            found = await self._read(30.0)
            if _replicas(found) <= member:
                raise ProviderFault(f"{self._place.words} was scaled to {_replicas(found)} by somebody else")
            if _ready(found) > member and _observed(found):
                return
            last[0] = f"{_ready(found)} of {_replicas(found)} replicas of {self._place.words} are ready"
            _refused(found)
            unplaced = False
            for pod in await self._pods(found):
                state = state_of(pod)
                if not self._is_of(pod, found, member) or not state.runs or state.phase is PodPhase.READY:
                    continue
                if state.phase is PodPhase.BROKEN:
                    raise ProviderFault(state.reason)
                last[0] = state.reason
                unplaced = unplaced or state.phase is PodPhase.UNPLACED
            now = self._terms.clock()
            if not unplaced:
                unplaced_since = None
            elif unplaced_since is None:
                unplaced_since = now
            elif now - unplaced_since >= self._pool.unplaced_timeout_s:
                raise ProviderFault(f"{last[0]} (for {self._pool.unplaced_timeout_s:g} s)")
            await asyncio.sleep(self._terms.every_s)

    def _is_of(self, pod: Json, found: Json, member: int) -> bool:
        """Whether a Pod may be the member's: in a StatefulSet they are numbered."""
        if self._kind != "statefulset":
            return True
        start = int((((found.get("spec") or {}).get("ordinals")) or {}).get("start") or 0)
        return bool((pod.get("metadata") or {}).get("name") == f"{self._name}-{start + member}")

    def _seen(self, name: str, found: Json | None) -> None:
        left = _replicas(found) if found is not None else 0
        why = f"{self._place.words} was scaled to {left} by somebody else"
        if found is None:
            why = f"{self._place.words} was deleted"
        while self._running > left:
            self._running -= 1
            self.ended(self._running, why)


def _replicas(found: Json) -> int:
    wanted = (found.get("spec") or {}).get("replicas")
    return 1 if wanted is None else int(wanted)


def _ready(found: Json) -> int:
    return int((found.get("status") or {}).get("readyReplicas") or 0)


def _observed(found: Json) -> bool:
    """Whether its status is about what it is told now."""
    seen = int((found.get("status") or {}).get("observedGeneration") or 0)
    return seen >= int((found.get("metadata") or {}).get("generation") or 0)


def _refused(found: Json) -> None:
    """Raises ProviderFault where no Pod can be made, for want of quota say."""
    for one in (found.get("status") or {}).get("conditions") or ():
        if one.get("type") == "ReplicaFailure" and one.get("status") == "True":
            said = " ".join(str(one.get("message") or "").split())[:300]
            raise ProviderFault(f"{one.get('reason')}: {said}")
