"""Leases as objects of coordination.k8s.io/v1, in the gateway's own namespace.

A pool has one Lease, `penstock-pool-<hash>`, whose holder, duration and times are as other tools expect them; what
else `lease.Lease` has stands in an annotation. A node has one, `penstock-node-<node>`, with its words about all pools.
A lease is replaced by its resourceVersion only, so of two writers one gets a conflict. Reads are not from a cache.

`leaseTransitions` counts the owners. It is too small a number for fences, which must grow though somebody deletes the
object: they begin at the milliseconds of this node's wall clock, and grow by one where that clock is behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
import xxhash

from .lease import MOST_BYTES, MOST_NODES, Lease, LeaseStoreFault, Seen, Told, Word, lease_of, pack, word_of
from .providers.base import ProviderFault
from .providers.kube_api import Json, KubeApi, KubeFault
from .providers.kube_place import LEASES
from .providers.kube_pod import DOMAIN

KIND_LABEL = f"{DOMAIN}/lease"
POOL_NOTE, LEASE_NOTE, WORDS_NOTE = f"{DOMAIN}/pool", f"{DOMAIN}/agreed", f"{DOMAIN}/words"
_MOST_POOLS = 1024
_ASK_S = 2.0


class KubernetesLeases:
    """It owns `api`. namespace: where the objects are. wall_s: the wall clock, in seconds since 1970."""

    def __init__(self, api: KubeApi, namespace: str, wall_s: Callable[[], float]) -> None:
        self._api = api
        self._namespace = namespace
        self._wall_s = wall_s
        self._own = ""  # the version of this node's object
        self._transitions: dict[str, int] = {}

    async def exchange(self, node: str, told: Mapping[str, Told]) -> Mapping[str, Seen]:
        try:
            await self._write_words(node, told)
            swapped = {pool: await self._swap(pool, one) for pool, one in told.items()}
            items, _ = await self._api.list(
                LEASES.at(self._namespace), labels="app.kubernetes.io/managed-by=penstock", timeout_s=_ASK_S
            )
            dropped = {name for one in told.values() for name in one.drop}
            await self._drop(dropped, items)
        except ProviderFault as fault:
            raise LeaseStoreFault(str(fault)) from None
        words = _words_in(items)
        leases = {_note(one, POOL_NOTE): one for one in items if _kind(one) == "pool"}
        floor = int(self._wall_s() * 1000)
        seen = {}
        for pool in told:
            found = leases.get(pool)
            self._transitions[pool] = _transitions(found)
            by_node = {name: said[pool] for name, said in words.items() if pool in said}
            seen[pool] = Seen(_lease_in(found), _version(found), swapped[pool], floor, by_node)
        return seen

    async def _write_words(self, node: str, told: Mapping[str, Told]) -> None:
        name = f"penstock-node-{node}"
        place = LEASES.at(self._namespace, name)
        words = msgspec.json.encode({pool: msgspec.Raw(pack(one.word)) for pool, one in told.items()})
        spec = {"holderIdentity": node, "leaseDurationSeconds": 30, "renewTime": self._now()}
        for _ in range(4):
            body = self._body(name, "node", {WORDS_NOTE: words.decode()}, spec, self._own)
            try:
                if self._own:
                    self._own = _version(await self._api.replace(place, body, timeout_s=_ASK_S))
                else:
                    made = await self._api.create(LEASES.at(self._namespace), body, timeout_s=_ASK_S)
                    self._own = _version(made)
                return
            except KubeFault as fault:
                if fault.status not in (404, 409):
                    raise
            try:  # an earlier controller of this node made it, or somebody deleted it
                self._own = _version(await self._api.get(place, timeout_s=_ASK_S))
            except KubeFault as fault:
                if fault.status != 404:
                    raise
                self._own = ""
        raise KubeFault(f"{place.words} changes too often")

    async def _swap(self, pool: str, told: Told) -> bool:
        lease = told.lease
        if lease is None:
            return False
        name = f"penstock-pool-{xxhash.xxh3_64_hexdigest(pool.encode())}"
        before = self._transitions.get(pool, 0)
        spec = {
            "holderIdentity": lease.owner,
            "leaseDurationSeconds": max(1, -(-lease.lease_ms // 1000)),
            "renewTime": self._now(),
            # a renewal has no other number than the owner's last one
            "leaseTransitions": min(before + told.takes, (1 << 31) - 1),
        }
        notes = {POOL_NOTE: pool, LEASE_NOTE: pack(lease).decode()}
        body = self._body(name, "pool", notes, spec, told.version)
        place = LEASES.at(self._namespace, name)
        try:
            if told.version:
                await self._api.replace(place, body, timeout_s=_ASK_S)
            else:
                await self._api.create(LEASES.at(self._namespace), body, timeout_s=_ASK_S)
        except KubeFault as fault:
            if fault.status in (404, 409):
                return False
            raise
        return True

    async def _drop(self, nodes: set[str], items: list[Json]) -> None:
        for one in items:
            meta = one["metadata"]
            if _kind(one) == "node" and (one.get("spec") or {}).get("holderIdentity") in nodes:
                try:
                    place = LEASES.at(self._namespace, meta["name"])
                    await self._api.delete(
                        place, uid=str(meta.get("uid")), version=_version(one), timeout_s=_ASK_S
                    )
                except KubeFault as fault:
                    if fault.status not in (404, 409):
                        raise

    def _body(self, name: str, kind: str, notes: Mapping[str, str], spec: Json, version: str) -> Json:
        meta: Json = {
            "name": name,
            "namespace": self._namespace,
            "labels": {"app.kubernetes.io/managed-by": "penstock", KIND_LABEL: kind},
            "annotations": dict(notes),
        }
        if version:
            meta["resourceVersion"] = version
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": spec}

    def _now(self) -> str:
        at = datetime.fromtimestamp(self._wall_s(), UTC)
        return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    async def ring(self) -> None:
        """Nobody is rung: who waits for something looks four times as often."""

    async def listen(self, look: asyncio.Event) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        await self._api.close()


def _kind(one: Json) -> str:
    return str((one["metadata"].get("labels") or {}).get(KIND_LABEL, ""))


def _note(one: Json, name: str) -> str:
    value: Any = (one["metadata"].get("annotations") or {}).get(name, "")
    return value if isinstance(value, str) else ""


def _version(one: Json | None) -> str:
    return str((one.get("metadata") or {}).get("resourceVersion", "")) if one is not None else ""


def _transitions(one: Json | None) -> int:
    count = ((one or {}).get("spec") or {}).get("leaseTransitions", 0)
    return count if isinstance(count, int) and count >= 0 else 0


def _lease_in(one: Json | None) -> Lease | None:
    """None where there is none, or where it is not one of ours: then it is written over."""
    if one is None:
        return None
    try:
        return lease_of(_note(one, LEASE_NOTE).encode())
    except ValueError:
        return None


def _words_in(items: list[Json]) -> dict[str, dict[str, Word]]:
    """By node, and then by pool."""
    found: dict[str, dict[str, Word]] = {}
    for one in items:
        node = (one.get("spec") or {}).get("holderIdentity")
        text = _note(one, WORDS_NOTE)
        if _kind(one) != "node" or not isinstance(node, str) or len(found) >= MOST_NODES:
            continue
        if len(text) > MOST_BYTES * 16:
            continue
        try:
            raw = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
            found[node] = {pool: word_of(bytes(word)) for pool, word in list(raw.items())[:_MOST_POOLS]}
        except ValueError:
            continue
    return found
