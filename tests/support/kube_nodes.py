"""Nodes and controllers behind the API-server double: Pods that are scheduled, run, become ready and end.

A Pod gets an address of its own in 127.0.0.0/8, and on port 8000 a server: a real `penstock sim`, or by default one
that answers /health and /v1/models alone, with 401 to whoever has not its key. Deployments and StatefulSets get the
Pods they ask for. What is to go wrong is said by image or switched on: `broken`, `gpus`, `slow`.
"""

import itertools
import os
import random
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from .kube_schema import Json
from .kube_store import KubeStore, Refused
from .procs import Proc, accepts, console_script

_networks = itertools.count(random.SystemRandom().randrange(1 << 20))


def free_address() -> str:
    """An address of this machine that nobody else is likely to use."""
    number = next(_networks)
    return f"127.{64 + (number >> 14) % 128}.{(number >> 7) % 128 + 1}.{number % 128 + 1}"


@dataclass
class KubeNodes:
    """A context manager. sim: Pods run `penstock sim`. gpus: of all nodes. api_key: what the Secret holds.

    broken: image -> the waiting reason of a container made from it. slow: Pods run, but are not ready until `let_in`.
    stuck: Pods do not end when they are told to. address: of the next Pods, in the place of one each.
    """

    store: KubeStore
    sim: bool = False
    gpus: int = 8
    api_key: str | None = None
    broken: dict[str, str] = field(default_factory=dict)
    slow: bool = False
    stuck: bool = False
    not_ready: bool = False
    address: str | None = None
    started: list[str] = field(default_factory=list)
    servers: dict[str, Any] = field(default_factory=dict)
    _over: bool = False
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self.store.changed:
            self._over = True
            self.store.changed.notify_all()
        assert self._thread is not None
        self._thread.join()
        for uid in list(self.servers):
            self._end(uid)

    def nudge(self, **switches: Any) -> None:
        """Switch something, and look again."""
        with self.store.changed:
            for key, value in switches.items():
                assert hasattr(self, key)
                setattr(self, key, value)
            self.store.version += 1
            self.store.changed.notify_all()

    def crash(self, name: str, namespace: str = "default", code: int = 1) -> None:
        """A Pod's process ends by itself."""
        pod = self.store.get("pods", namespace, name)
        self._end(pod["metadata"]["uid"])
        ended = {"terminated": {"reason": "Error", "exitCode": code}}

        def change(status: Json) -> None:
            status |= {"phase": "Failed", "containerStatuses": [_container(pod, ended)]}
            status["conditions"] = [{"type": "Ready", "status": "False", "reason": "PodFailed"}]

        self.store.set_status("pods", namespace, name, change)

    # ---- the loop of all controllers: look at everything after each change

    def _run(self) -> None:
        seen = -1
        while True:
            with self.store.changed:
                while seen == self.store.version and not self._over:
                    self.store.changed.wait(0.05)
                    if any(_waits(one) for one in self.servers.values()):
                        break
                if self._over:
                    return
                seen = self.store.version
            for namespace in self._namespaces():
                for plural in ("deployments", "statefulsets"):
                    for found in self.store.list(plural, namespace):
                        self._control(plural, namespace, found)
                for pod in self.store.list("pods", namespace):
                    self._keep(namespace, pod)
            self._sweep()

    def _namespaces(self) -> list[str]:
        with self.store.changed:
            return sorted({where for _, where, _ in self.store._objects if where})

    def _control(self, plural: str, namespace: str, found: Json) -> None:
        name, spec = found["metadata"]["name"], found["spec"]
        wanted = spec.get("replicas", 1)
        template = spec["template"]
        labels = template["metadata"]["labels"]
        mine = [
            pod
            for pod in self.store.list("pods", namespace)
            if (pod["metadata"].get("labels") or {}).items() >= labels.items()
        ]
        failure: list[Json] = []
        for i in range(wanted):
            called = f"{name}-{i}" if plural == "statefulsets" else f"{name}-5d8f9c7b6-{i:05d}"
            if any(pod["metadata"]["name"] == called for pod in mine):
                continue
            meta = {"name": called, "namespace": namespace, "labels": labels}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}
            try:
                mine.append(self.store.create("pods", namespace, pod))
            except Refused as refused:
                failure = [
                    {
                        "type": "ReplicaFailure",
                        "status": "True",
                        "reason": "FailedCreate",
                        "message": str(refused),
                    }
                ]
        for pod in sorted(mine, key=lambda one: one["metadata"]["name"])[wanted:]:
            if not pod["metadata"].get("deletionTimestamp"):
                self.store.delete("pods", namespace, pod["metadata"]["name"], {})
        ready = sum(_is_ready(pod) for pod in mine[:wanted])
        generation = found["metadata"]["generation"]

        def change(status: Json) -> None:
            status |= {"observedGeneration": generation, "replicas": wanted, "readyReplicas": ready}
            status.pop("conditions", None)
            if failure:
                status["conditions"] = failure

        self.store.set_status(plural, namespace, name, change)

    def _keep(self, namespace: str, pod: Json) -> None:
        meta, spec, status = pod["metadata"], pod["spec"], pod["status"]
        name, uid = meta["name"], meta["uid"]
        if meta.get("deletionTimestamp"):
            if not self.stuck:
                self._end(uid)
                try:
                    self.store.remove("pods", namespace, name)
                except Refused:
                    return
            return
        if status.get("phase") in ("Failed", "Succeeded") or _is_ready(pod):
            return
        (container,) = spec["containers"]
        wants = int(((container.get("resources") or {}).get("limits") or {}).get("nvidia.com/gpu", "0"))
        if uid not in self.servers:
            if wants > self.gpus - self._taken(namespace, uid):
                self._unplaced(namespace, name)
                return
            reason = self.broken.get(container["image"])
            if reason is not None:
                waiting = {
                    "waiting": {"reason": reason, "message": f'image "{container["image"]}": not found'}
                }
                self._set(namespace, pod, "Pending", [_container(pod, waiting)], placed=True)
                return
            if self.slow:
                self._set(namespace, pod, "Pending", [], placed=True)
                return
            self.started.append(name)
            self.servers[uid] = self._serve(container)
        server = self.servers[uid]
        running = [_container(pod, {"running": {}})]
        ready = server.ready() and not self.not_ready
        self._set(namespace, pod, "Running", running, placed=True, ip=server.ip, ready=ready)

    def _taken(self, namespace: str, uid: str) -> int:
        return sum(
            int(
                ((pod["spec"]["containers"][0].get("resources") or {}).get("limits") or {}).get(
                    "nvidia.com/gpu", 0
                )
            )
            for pod in self.store.list("pods", namespace)
            if pod["metadata"]["uid"] in self.servers and pod["metadata"]["uid"] != uid
        )

    def _unplaced(self, namespace: str, name: str) -> None:
        why = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
        no = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why}
        self.store.set_status("pods", namespace, name, lambda status: status.update(conditions=[no]))

    def _set(
        self,
        namespace: str,
        pod: Json,
        phase: str,
        containers: list[Json],
        *,
        placed: bool,
        ip: str | None = None,
        ready: bool = False,
    ) -> None:
        conditions = [
            {"type": "PodScheduled", "status": "True"},
            {"type": "Ready", "status": "True" if ready else "False"},
        ]

        def change(status: Json) -> None:
            status |= {"phase": phase, "conditions": conditions, "containerStatuses": containers}
            if ip is not None:
                status["podIP"] = ip

        self.store.set_status("pods", namespace, pod["metadata"]["name"], change)

    def _serve(self, container: Json) -> "Light | _Sim":
        ip = self.address or free_address()
        return _Sim(ip, container, self.api_key) if self.sim else Light(ip, self.api_key)

    def _end(self, uid: str) -> None:
        server = self.servers.pop(uid, None)
        if server is not None:
            server.stop()

    def _sweep(self) -> None:
        """Processes of Pods that were removed by force end, and Pods whose process ended by itself have failed."""
        there = {
            pod["metadata"]["uid"]: (namespace, pod["metadata"]["name"])
            for namespace in self._namespaces()
            for pod in self.store.list("pods", namespace)
        }
        for uid, server in list(self.servers.items()):
            if uid not in there:
                self._end(uid)
            elif server.ended():
                namespace, name = there[uid]
                self.crash(name, namespace, server.ended())


def _waits(server: Any) -> bool:
    return not server.seen_ready or bool(server.ended())


def _is_ready(pod: Json) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _container(pod: Json, state: Json) -> Json:
    (container,) = pod["spec"]["containers"]
    return {
        "name": container["name"],
        "image": container["image"],
        "imageID": "",
        "ready": "running" in state,
        "restartCount": 0,
        "state": state,
    }


class _Sim:
    """`penstock sim` with the names that vLLM would serve."""

    def __init__(self, ip: str, container: Json, api_key: str | None) -> None:
        self.ip, self.seen_ready = ip, False
        args = container.get("args") or []
        names = []
        if "--served-model-name" in args:
            begin = args.index("--served-model-name") + 1
            names = list(itertools.takewhile(lambda one: not one.startswith("--"), args[begin:]))
        argv = [console_script(), "sim", "--host", ip, "--port", "8000"]
        for name in names or ["model"]:
            argv += ["--model", name]
        if api_key is not None:
            argv += ["--api-key", api_key]
        self.proc = Proc(argv, name="pod", env=dict(os.environ), grace_s=5).start(wait=False)

    def ready(self) -> bool:
        self.seen_ready = self.seen_ready or accepts(self.ip, 8000)
        return self.seen_ready

    def ended(self) -> int:
        return self.proc.exit_status() or 0

    def stop(self) -> None:
        self.proc.stop()


class Light:
    """A server in this process."""

    def __init__(self, ip: str, api_key: str | None) -> None:
        self.ip, self.seen_ready, self.asked = ip, True, 0
        light = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                """Nothing."""

            def do_GET(self) -> None:
                light.asked += 1
                good = api_key is None or self.headers.get("authorization") == f"Bearer {api_key}"
                self.send_response(200 if good else 401)
                self.send_header("Content-Length", "0")
                self.end_headers()

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

        self._server = Server((ip, 8000), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def ready(self) -> bool:
        return True

    def ended(self) -> int:
        return 0

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
