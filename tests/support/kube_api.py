"""A strict Kubernetes API server over real HTTP: what it does not understand, or may not, it refuses.

It refuses wrong content types (415), tokens it does not know (401), unknown fields (400), stale versions (409), what
its rules of RBAC do not grant (403), and cluster-scoped objects asked for in a namespace (404). Watches are chunked
lines of JSON with bookmarks; a version it has forgotten is 410, as an answer or as an event. Faults are switched on at
run time, `stop` and `start` make it restart with what it had. `requests` has every request as RBAC sees it.
"""

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from .kube_openapi import document
from .kube_schema import KINDS, Json
from .kube_store import KubeStore, Refused
from .procs import free_port

_MERGE = "application/merge-patch+json"


@dataclass(frozen=True)
class Asked:
    """One request as RBAC sees it. resource: with its subresource."""

    verb: str
    group: str
    resource: str
    namespace: str
    name: str


@dataclass
class Fault:
    """So many of the requests that match get this instead. cut: the connection is closed without an answer."""

    status: int
    times: int
    verb: str = ""
    resource: str = ""
    message: str = "switched on"
    retry_after: int | None = None
    cut: bool = False


@dataclass
class KubeApiDouble:
    """A context manager. rules: of RBAC, as in a Role; None: everybody may do everything. tls: certificate and key."""

    token: str | None = None
    rules: list[Json] | None = None
    page: int = 500
    gone_as_event: bool = True
    tls: Path | None = None
    store: KubeStore = field(default_factory=KubeStore)
    requests: list[Asked] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    port: int = 0
    watches: int = 0
    _server: "ThreadingHTTPServer | None" = None
    _open: set[socket.socket] = field(default_factory=set)
    _bookmarks: int = 0
    _ended: int = 0

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Listen; after a stop on the same port, with the same objects."""
        self.port = self.port or free_port()
        double = self

        class Handler(_Handler):
            api = double

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            allow_reuse_address = True

            def process_request(self, request: Any, client_address: Any) -> None:
                double._open.add(request)
                super().process_request(request, client_address)

            def shutdown_request(self, request: Any) -> None:
                double._open.discard(request)
                super().shutdown_request(request)

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that leaves is no error."""

        self._server = Server(("127.0.0.1", self.port), Handler)
        if self.tls is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(self.tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Listen no more, and break every connection."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.server_close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        with self.store.changed:
            self._ended += 1
            self.store.changed.notify_all()

    def fail(self, status: int, *, times: int = 1, verb: str = "", resource: str = "", **more: Any) -> None:
        """Have requests fail."""
        self.faults.append(Fault(status, times, verb, resource, **more))

    def bookmark(self) -> None:
        """Tell every watch how far it is."""
        with self.store.changed:
            self._bookmarks += 1
            self.store.changed.notify_all()

    def end_watches(self) -> None:
        """End every watch, as the server does when its time is over."""
        with self.store.changed:
            self._ended += 1
            self.store.changed.notify_all()

    def asked(self, verb: str, resource: str) -> int:
        """How often."""
        return sum(one.verb == verb and one.resource == resource for one in self.requests)

    def granted(self, asked: Asked) -> bool:
        """Whether a rule allows it."""
        return self.rules is None or any(_grants(rule, asked) for rule in self.rules)


def _grants(rule: Json, asked: Asked) -> bool:
    names = rule.get("resourceNames")
    return (
        asked.verb in rule["verbs"]
        and asked.group in rule["apiGroups"]
        and asked.resource in rule["resources"]
        and (not names or asked.name in names)
    )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: KubeApiDouble

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self._do()

    def do_POST(self) -> None:
        self._do()

    def do_PUT(self) -> None:
        self._do()

    def do_PATCH(self) -> None:
        self._do()

    def do_DELETE(self) -> None:
        self._do()

    def _do(self) -> None:
        try:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            url = urlsplit(self.path)
            params = {key: values[-1] for key, values in parse_qs(url.query).items()}
            if self._discovery(url.path):
                return
            self._resource(url.path, params, body)
        except Refused as refused:
            if refused.retry_after is not None:
                self._send(refused.status, refused.body, {"Retry-After": str(refused.retry_after)})
            else:
                self._send(refused.status, refused.body)

    def _send(self, status: int, body: Any, headers: dict[str, str] | None = None, kind: str = "") -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind or "application/json")
        self.send_header("Content-Length", str(len(raw)))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(raw)

    # ---- what may be asked

    def _resource(self, path: str, params: dict[str, str], body: bytes) -> None:
        api = self.api
        asked = self._asked(path, params)
        api.requests.append(asked)
        for fault in api.faults:
            if fault.times > 0 and fault.verb in ("", asked.verb) and fault.resource in ("", asked.resource):
                fault.times -= 1
                if fault.cut:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                raise Refused(fault.status, "Fault", fault.message, fault.retry_after)
        if api.token is not None and self.headers.get("authorization") != f"Bearer {api.token}":
            raise Refused(401, "Unauthorized", "Unauthorized")
        if not api.granted(asked):
            raise Refused(
                403,
                "Forbidden",
                f'{asked.resource} is forbidden: User "system:serviceaccount:penstock:penstock" cannot {asked.verb} '
                f'resource "{asked.resource}" in API group "{asked.group}"',
            )
        if (
            "application/json" not in self.headers.get("accept", "*/*")
            and "*/*" not in self.headers["accept"]
        ):
            raise Refused(406, "NotAcceptable", "only application/json is served")
        plural, _, sub = asked.resource.partition("/")
        given = self._body(asked.verb, body)
        store, where, name = api.store, asked.namespace, asked.name
        if asked.verb == "watch":
            self._watch(plural, where, params)
        elif asked.verb == "list":
            self._list(plural, where, params)
        elif asked.verb == "get":
            self._send(200, store.get(plural, where, name))
        elif asked.verb == "create" and not sub:
            self._send(201, store.create(plural, where, given))
        elif asked.verb == "update" and sub == "scale":
            self._send(200, self._scale(plural, where, name, given))
        elif asked.verb == "update" and not sub:
            self._send(200, store.replace(plural, where, name, given))
        elif asked.verb == "patch" and sub in ("", "status"):
            self._send(200, store.patch(plural, where, name, sub, given))
        elif asked.verb == "delete" and not sub:
            self._send(200, store.delete(plural, where, name, given))
        else:
            raise Refused(405, "MethodNotAllowed", f"{asked.verb} of {asked.resource} is not supported")

    def _asked(self, path: str, params: dict[str, str]) -> Asked:
        parts = path.strip("/").split("/")
        group, rest = ("", parts[2:]) if parts[0] == "api" else ("/".join(parts[1:2]), parts[3:])
        version = parts[1] if parts[0] == "api" else parts[2] if len(parts) > 2 else ""
        namespace = ""
        if len(rest) > 2 and rest[0] == "namespaces":
            namespace, rest = rest[1], rest[2:]
        kind = KINDS.get(rest[0] if rest else "")
        if kind is None or kind[:2] != (group, version) or kind[3] is not bool(namespace) or len(rest) > 3:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        name = rest[1] if len(rest) > 1 else ""
        verb = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}.get(self.command, "")
        if not verb:
            verb = "get" if name else "watch" if params.get("watch") in ("true", "1") else "list"
            # of one name asked for by a field, RBAC knows the name
            name = name or params.get("fieldSelector", "").removeprefix("metadata.name=")
        return Asked(verb, group, "/".join([rest[0], *rest[2:3]]), namespace, name)

    def _body(self, verb: str, body: bytes) -> Json:
        if verb in ("get", "list", "watch"):
            return {}
        kind = self.headers.get("content-type", "")
        if kind != (_MERGE if verb == "patch" else "application/json"):
            raise Refused(
                415, "UnsupportedMediaType", f"the body of the request was in an unknown format: {kind}"
            )
        given = json.loads(body)
        assert isinstance(given, dict)
        return given

    # ---- answers

    def _list(self, plural: str, where: str, params: dict[str, str]) -> None:
        found = self.api.store.list(plural, where, lambda one: _selected(one, params))
        begin = int(params.get("continue", "0"))
        end = begin + min(int(params.get("limit", "500")), self.api.page)
        meta = {"resourceVersion": str(self.api.store.version)}
        if end < len(found):
            meta["continue"] = str(end)
        self._send(200, {"kind": f"{KINDS[plural][2]}List", "metadata": meta, "items": found[begin:end]})

    def _scale(self, plural: str, where: str, name: str, given: Json) -> Json:
        store = self.api.store
        if given.get("kind") != "Scale" or given.get("apiVersion") != "autoscaling/v1":
            raise Refused(400, "BadRequest", "the object provided is unrecognized: a Scale is expected")
        if set(given["spec"]) != {"replicas"} or given["spec"]["replicas"] < 0:
            raise Refused(422, "Invalid", "spec.replicas: Invalid value")
        if (given["metadata"].get("name"), given["metadata"].get("namespace")) != (name, where):
            raise Refused(400, "BadRequest", "the name of the object does not match the name on the URL")
        with store.changed:
            found = store.get(plural, where, name)
            found["metadata"]["resourceVersion"] = given["metadata"].get("resourceVersion")
            found["spec"]["replicas"] = given["spec"]["replicas"]
            store.replace(plural, where, name, found)
        return given

    def _watch(self, plural: str, where: str, params: dict[str, str]) -> None:
        api, store = self.api, self.api.store
        try:
            at = int(params.get("resourceVersion") or "0")
        except ValueError:
            raise Refused(400, "BadRequest", "Invalid value: resourceVersion") from None
        gone = None
        try:
            store.since(at)
        except Refused as refused:
            if not api.gone_as_event:
                raise
            gone = refused
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if gone is not None:
            self._lines([{"type": "ERROR", "object": gone.body}])
            self._last()
            return
        until = time.monotonic() + float(params.get("timeoutSeconds", "300"))
        bookmarks, ended = api._bookmarks, api._ended
        with store.changed:
            api.watches += 1
        try:
            while True:
                with store.changed:
                    try:
                        changes = [
                            one
                            for one in store.since(at)
                            if one.plural == plural and one.found["metadata"].get("namespace", "") == where
                        ]
                    except Refused as refused:
                        self._lines([{"type": "ERROR", "object": refused.body}])
                        break
                    told = api._bookmarks != bookmarks and params.get("allowWatchBookmarks") == "true"
                    bookmarks = api._bookmarks
                    if not changes and not told:
                        if api._ended != ended or time.monotonic() >= until:
                            break
                        at = max(at, store.version)
                        store.changed.wait(max(until - time.monotonic(), 0))
                        continue
                    at = store.version
                self._lines(
                    {"type": one.kind, "object": one.found} for one in changes if _selected(one.found, params)
                )
                if told:
                    group, version, kind, _, _ = KINDS[plural]
                    mark = {"kind": kind, "apiVersion": f"{group}/{version}".lstrip("/")}
                    self._lines(
                        [{"type": "BOOKMARK", "object": mark | {"metadata": {"resourceVersion": str(at)}}}]
                    )
        finally:
            with store.changed:
                api.watches -= 1
        self._last()

    def _lines(self, events: Iterable[Json]) -> None:
        for event in events:
            line = json.dumps(event).encode() + b"\n"
            # in two chunks: a line is no chunk
            for part in (line[: len(line) // 2], line[len(line) // 2 :]):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))

    def _last(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    # ---- what there is, for kubectl

    def _discovery(self, path: str) -> bool:
        groups = {(group, version) for group, version, _, _, _ in KINDS.values() if group}
        parts = path.strip("/").split("/")
        if path == "/version":
            self._send(200, {"major": "1", "minor": "33", "gitVersion": "v1.33.0"})
        elif path == "/openapi/v2":
            self._send(200, document(), kind="application/com.github.proto-openapi.spec.v2.v1.0+protobuf")
        elif path == "/api":
            self._send(200, {"kind": "APIVersions", "versions": ["v1"]})
        elif path == "/apis":
            made = [
                {
                    "name": group,
                    "versions": [{"groupVersion": f"{group}/{version}", "version": version}],
                    "preferredVersion": {"groupVersion": f"{group}/{version}", "version": version},
                }
                for group, version in sorted(groups)
            ]
            self._send(200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": made})
        elif parts == ["api", "v1"] or (len(parts) == 3 and parts[0] == "apis"):
            group, version = ("", "v1") if parts[0] == "api" else (parts[1], parts[2])
            made_of = [
                {
                    "name": plural,
                    "singularName": kind.lower(),
                    "namespaced": namespaced,
                    "kind": kind,
                    "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
                }
                for plural, (of, at, kind, namespaced, _) in KINDS.items()
                if (of, at) == (group, version)
            ]
            if not made_of:
                raise Refused(404, "NotFound", "the server could not find the requested resource")
            name = f"{group}/{version}".lstrip("/")
            self._send(
                200,
                {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": made_of},
            )
        elif parts[0] in ("api", "apis"):
            return False
        else:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        return True


def _selected(found: Json, params: dict[str, str]) -> bool:
    meta = found["metadata"]
    labels = meta.get("labels") or {}
    wanted = [one.partition("=") for one in params.get("labelSelector", "").split(",") if one]
    if any(labels.get(key) != value for key, _, value in wanted):
        return False
    name = params.get("fieldSelector", "")
    return not name or name == f"metadata.name={meta.get('name')}"
