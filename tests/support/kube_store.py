"""What an API server keeps, with its rules: versions, preconditions, generations, what each subresource may change.

Threads share it: everything under `changed`, which is notified with each new version.
"""

import copy
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .kube_schema import KINDS, Json, object_faults

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_WITH_STATUS = ("pods", "deployments", "statefulsets", "vllmmodels", "services")
_WORKLOADS = ("deployments", "statefulsets")


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, reason: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.retry_after = status, reason, retry_after

    @property
    def body(self) -> Json:
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": str(self),
            "reason": self.reason,
            "code": self.status,
        }


@dataclass(frozen=True)
class Change:
    """One entry of the history. kind: ADDED, MODIFIED or DELETED."""

    version: int
    kind: str
    plural: str
    found: Json


class KubeStore:
    """Objects by (plural, namespace, name). admit: may refuse what is to be created (a quota)."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.version = 100
        self.forgotten = 0
        self.history: list[Change] = []
        self.admit: Callable[[str, Json], None] = lambda plural, found: None
        self._objects: dict[tuple[str, str, str], Json] = {}

    # ---- reading

    def get(self, plural: str, namespace: str, name: str) -> Json:
        with self.changed:
            found = self._objects.get((plural, namespace, name))
            if found is None:
                raise Refused(404, "NotFound", f'{plural} "{name}" not found')
            return copy.deepcopy(found)

    def list(
        self, plural: str, namespace: str, selects: Callable[[Json], bool] = lambda _: True
    ) -> list[Json]:
        with self.changed:
            return [
                copy.deepcopy(found)
                for (kind, where, _), found in sorted(self._objects.items(), key=lambda one: one[0])
                if kind == plural and where == namespace and selects(found)
            ]

    def since(self, version: int) -> Iterator[Change]:
        """What changed after a version. Raises Refused when that is forgotten."""
        with self.changed:
            if version < self.forgotten:
                raise Refused(410, "Expired", f"too old resource version: {version} ({self.forgotten})")
            return iter([change for change in self.history if change.version > version])

    def forget(self) -> None:
        """Compact: nothing is known of what was before now."""
        with self.changed:
            self.forgotten = self.version + 1
            self.version += 1
            self.history.clear()
            self.changed.notify_all()

    # ---- writing

    def create(self, plural: str, namespace: str, found: Json) -> Json:
        """Raises Refused."""
        meta = found.get("metadata") or {}
        name = str(meta.get("name") or "")
        if meta.get("resourceVersion"):
            raise Refused(400, "BadRequest", "resourceVersion should not be set on objects to be created")
        self._check(plural, namespace, found)
        with self.changed:
            if (plural, namespace, name) in self._objects:
                raise Refused(409, "AlreadyExists", f'{plural} "{name}" already exists')
            self.admit(plural, found)
            found = copy.deepcopy(found)
            if plural in _WITH_STATUS:
                found["status"] = {"phase": "Pending"} if plural == "pods" else {}
            found["metadata"] |= {"uid": str(uuid.uuid4()), "generation": 1}
            if KINDS[plural][3]:
                found["metadata"]["namespace"] = namespace
            return self._put("ADDED", plural, namespace, found)

    def replace(self, plural: str, namespace: str, name: str, found: Json) -> Json:
        """PUT: of the version that the body names alone. Raises Refused."""
        if not (found.get("metadata") or {}).get("resourceVersion"):
            raise Refused(422, "Invalid", "metadata.resourceVersion: must be specified for an update")
        self._check(plural, namespace, found)
        with self.changed:
            old = self.get(plural, namespace, name)
            self._same_version(plural, old, found)
            if plural in _WITH_STATUS:
                found = found | {"status": old.get("status", {})}
            return self._update(plural, namespace, old, found)

    def patch(self, plural: str, namespace: str, name: str, sub: str, patch: Json) -> Json:
        """A JSON merge patch of an object or of its `status`. Raises Refused."""
        with self.changed:
            old = self.get(plural, namespace, name)
            self._same_version(plural, old, patch)
            new = merged(old, patch)
            if sub == "status":
                kept = old | {"status": new.get("status", {})}
                if plural in _WORKLOADS:  # their strategies reset spec and labels alone
                    notes = new["metadata"].get("annotations")
                    kept = kept | {"metadata": old["metadata"] | ({"annotations": notes} if notes else {})}
                new = kept
            elif plural in _WITH_STATUS:
                new = new | {"status": old.get("status", {})}
            self._check(plural, namespace, new)
            return self._update(plural, namespace, old, new)

    def delete(self, plural: str, namespace: str, name: str, options: Json) -> Json:
        """A Pod is told to end, and goes when its node says so; others go at once. Raises Refused."""
        with self.changed:
            found = self.get(plural, namespace, name)
            for key, wanted in (options.get("preconditions") or {}).items():
                if found["metadata"].get(key) != wanted:
                    raise Refused(
                        409,
                        "Conflict",
                        f"Precondition failed: {key} in precondition: {wanted}, in object meta: "
                        f"{found['metadata'].get(key)}",
                    )
            grace = options.get("gracePeriodSeconds")
            if plural != "pods" or grace == 0:
                return self.remove(plural, namespace, name)
            if grace is None:
                grace = found["spec"].get("terminationGracePeriodSeconds", 30)
            found["metadata"] |= {
                "deletionTimestamp": "2026-01-01T00:00:00Z",
                "deletionGracePeriodSeconds": grace,
            }
            return self._put("MODIFIED", plural, namespace, found)

    def remove(self, plural: str, namespace: str, name: str) -> Json:
        """It is gone."""
        with self.changed:
            found = self.get(plural, namespace, name)
            del self._objects[plural, namespace, name]
            found["metadata"]["resourceVersion"] = str(self._next())
            self._record("DELETED", plural, found)
            return found

    def set_status(self, plural: str, namespace: str, name: str, change: Callable[[Json], None]) -> None:
        """What a node or a controller writes; nothing where the object is gone."""
        with self.changed:
            try:
                found = self.get(plural, namespace, name)
            except Refused:
                return
            before = copy.deepcopy(found.get("status"))
            change(found.setdefault("status", {}))
            if found["status"] != before:
                self._put("MODIFIED", plural, namespace, found)

    # ---- rules

    def _check(self, plural: str, namespace: str, found: Json) -> None:
        said = object_faults(found, plural)
        meta = found.get("metadata") or {}
        if said:
            raise Refused(400, "BadRequest", "strict decoding error: " + ", ".join(said))
        if KINDS[plural][3] and meta.get("namespace", namespace) != namespace:
            raise Refused(400, "BadRequest", "the namespace of the object does not match the request's")
        if not KINDS[plural][3] and meta.get("namespace"):
            raise Refused(400, "BadRequest", "namespace is not allowed for a cluster-scoped object")
        if not _NAME.fullmatch(str(meta.get("name") or "")) or len(meta["name"]) > 253:
            raise Refused(422, "Invalid", f"metadata.name: Invalid value: {meta.get('name')!r}")
        for key, value in (meta.get("labels") or {}).items():
            if not _LABEL.fullmatch(value) or not _LABEL.fullmatch(key.rpartition("/")[2]):
                raise Refused(422, "Invalid", f"metadata.labels: Invalid value: {key}={value}")
        for owner in meta.get("ownerReferences") or ():
            if not owner.get("uid") or owner["uid"] == "None":
                raise Refused(422, "Invalid", "metadata.ownerReferences.uid: Required value")
        if plural == "pods":
            pod_rules(found["spec"])

    def _same_version(self, plural: str, old: Json, new: Json) -> None:
        wanted = (new.get("metadata") or {}).get("resourceVersion")
        if wanted is not None and wanted != old["metadata"]["resourceVersion"]:
            raise Refused(
                409,
                "Conflict",
                f'Operation cannot be fulfilled on {plural} "{old["metadata"]["name"]}": the object has been modified;'
                " please apply your changes to the latest version and try again",
            )

    def _update(self, plural: str, namespace: str, old: Json, new: Json) -> Json:
        new = copy.deepcopy(new)
        for key in ("uid", "resourceVersion", "generation", "deletionTimestamp"):
            if key in old["metadata"]:
                new["metadata"][key] = old["metadata"][key]
        if new == old:
            return old
        if new.get("spec") != old.get("spec"):
            if plural == "pods":
                raise Refused(422, "Invalid", "spec: Forbidden: pod updates may not change this")
            new["metadata"]["generation"] = old["metadata"].get("generation", 1) + 1
        return self._put("MODIFIED", plural, namespace, new)

    def _put(self, kind: str, plural: str, namespace: str, found: Json) -> Json:
        found["metadata"]["resourceVersion"] = str(self._next())
        self._objects[plural, namespace, found["metadata"]["name"]] = found
        self._record(kind, plural, found)
        return copy.deepcopy(found)

    def _next(self) -> int:
        self.version += 1
        return self.version

    def _record(self, kind: str, plural: str, found: Json) -> None:
        self.history.append(Change(self.version, kind, plural, copy.deepcopy(found)))
        self.changed.notify_all()


def merged(old: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    new = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            new.pop(key, None)
        else:
            new[key] = merged(new.get(key), value)
    return new


def pod_rules(spec: Json) -> None:
    """What the API server checks of a Pod beside its shape. Raises Refused."""

    def invalid(what: str) -> Refused:
        return Refused(422, "Invalid", what)

    volumes = {volume["name"] for volume in spec.get("volumes") or ()}
    for container in spec.get("containers") or ():
        for mount in container.get("volumeMounts") or ():
            if mount["name"] not in volumes:
                raise invalid(f'volumeMounts.name: Not found: "{mount["name"]}"')
        resources = container.get("resources") or {}
        for key, value in (resources.get("requests") or {}).items():
            if "/" in key and value != (resources.get("limits") or {}).get(key):
                raise invalid(f"resources.requests[{key}]: must be equal to limits")
        ports = {port.get("name") for port in container.get("ports") or ()}
        for key in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container.get(key)
            if probe is None:
                continue
            ways = [way for way in ("exec", "httpGet", "tcpSocket", "grpc") if way in probe]
            if len(ways) != 1:
                raise invalid(f"{key}: must specify exactly one handler")
            port = (probe.get("httpGet") or {}).get("port")
            if isinstance(port, str) and port not in ports:
                raise invalid(f"{key}.httpGet.port: no such port")
        for one in container.get("env") or ():
            if not re.fullmatch(r"[-._a-zA-Z][-._a-zA-Z0-9]*", one["name"]):
                raise invalid(f"env.name: Invalid value: {one['name']}")
    if not spec.get("containers"):
        raise invalid("spec.containers: Required value")
