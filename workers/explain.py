"""`penstock cache explain`: what the cache makes of a request body, by the gateway's own functions.

Strategy: the configuration becomes a fleet as in a worker, without backends, for nothing is asked; parsing, rules and
key are the very calls that `penstock.gateway.pipeline` makes, in its order.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from msgspec.structs import replace

from ..cache.outcome import NoCache
from ..gateway.caching import Directives, directives, veto
from ..gateway.caller import ANYONE
from ..gateway.config import Config, Model
from ..gateway.endpoints import ENDPOINTS, Endpoint
from ..gateway.errors import Fault
from ..gateway.fingerprint import DENIED, KEY_SCHEMA, canonical, fingerprint
from ..gateway.fleet import Route, build
from ..gateway.parse import Parser, Request
from ..gateway.raw import RawRequest
from . import store
from .table import table

_SHOWN_CHARS = 400

WHY = {
    NoCache.OFF: "the mode is off",
    NoCache.BODY_TOO_LARGE: "the body is over 1 MiB, or has very many objects",
    NoCache.MULTIPART: "forms are not cached",
    NoCache.NONDETERMINISTIC: "temperature is not 0, and there is no seed",
    NoCache.NOT_OPTED_IN: "the mode is opt_in, and the request does not ask for it",
    NoCache.STATEFUL: "the response is stored, in the background, or follows another",
    NoCache.NO_STORE: "the request asks for neither a look-up nor a store",
}
"""The closed list of reasons, for people."""


class CannotExplain(Exception):
    """The request would be refused, or cannot be read; the text is one line."""

    def __init__(self, line: str) -> None:
        super().__init__("".join(c if c.isprintable() else "?" for c in line))


def explain(file: Path, config: Config | None, target: str, tenant: str | None) -> str:
    """The explanation of the body in `file` as a POST to `target`, a path that may have a query.

    Without a configuration the model is what the body names, with every setting at its default. Raises CannotExplain.
    """
    path, _, query = target.partition("?")
    endpoint = ENDPOINTS.get(path)
    if endpoint is None:
        raise CannotExplain(
            f"{path[:200]} is no endpoint with a body; there are: {', '.join(sorted(ENDPOINTS))}"
        )
    body = _read(file, config)
    raw = RawRequest("POST", path, query, "", _content_type(endpoint, body), "", body)
    try:
        request = Parser().parse(endpoint, raw)
        if config is None:
            config = Config(models={request.model: Model(backends=())})
        route = _route(config, request.model)
        wanted = directives(raw, request.fields)
        return _said(endpoint, request, route, wanted, query, ANYONE.tenant if tenant is None else tenant)
    except Fault as fault:
        raise CannotExplain(f"{file}: the gateway would answer {fault.status}: {fault}") from None


def _read(file: Path, config: Config | None) -> bytes:
    most = (config or Config(models={})).limits.max_body
    try:
        with file.open("rb") as opened:
            body = opened.read(most + 1)
    except OSError as fault:
        raise CannotExplain(f"cannot read {file}: {fault.strerror}") from None
    if len(body) > most:
        raise CannotExplain(f"{file}: the gateway would answer 413: the body is over {most} bytes")
    return body


def _content_type(endpoint: Endpoint, body: bytes) -> str:
    if not endpoint.multipart:
        return "application/json"
    first = body[:200].split(b"\r\n", 1)[0]  # a form begins with its boundary (RFC 2046 §5.1.1)
    return f"multipart/form-data; boundary={first[2:].decode('latin-1')}"


def _route(config: Config, name: str) -> Route:
    bare = {model: replace(settings, backends=()) for model, settings in config.models.items()}
    fleet = build(store.first(replace(config, models=bare)), {}, _no_pool)
    return fleet.route(name)


def _no_pool(*_: object) -> NoReturn:
    raise AssertionError("a fleet without backends needs no pool")


def _said(
    endpoint: Endpoint, request: Request, route: Route, wanted: Directives, query: str, tenant: str
) -> str:
    model = route.model
    reason = veto(request, model.cache_mode, wanted)
    fields = request.fields
    if reason is not None:
        verdict = f"no: {reason.value} ({WHY[reason]})"
    elif not wanted.write:
        verdict = f"no: {NoCache.NO_STORE.value} (it asks for that; it may be answered from the cache)"
    else:
        verdict = "yes" if wanted.read else "yes, without a look-up: it asks for that"
    rows = [("cached", verdict), ("mode", model.cache_mode)]
    if fields is None:
        return table(rows)
    head = model.key_head(endpoint, tenant, wanted.namespace)
    text = canonical(request, model.name)
    alias = f" (asked for as {request.model})" if request.model != model.name else ""
    rows += [
        ("key", fingerprint(request, head, model.name, query).hex()),
        ("", "made of" if reason is None else "which it would have, made of"),
        ("schema", KEY_SCHEMA.decode()),
        ("tenant", tenant),
        ("namespace", wanted.namespace or "-"),
        ("model", model.name + alias),
        ("version", model.version),
        ("endpoint", endpoint.path),
        ("query", query or "-"),
        ("left out", ", ".join(sorted(DENIED & fields.keys())) or "-"),
        ("body", f"{len(text)} bytes: {_short(text)}"),
    ]
    return table(rows)


def _short(text: bytes) -> str:
    shown = text[: 4 * _SHOWN_CHARS].decode("utf-8", "replace")
    cut = len(shown) > _SHOWN_CHARS or len(text) > 4 * _SHOWN_CHARS
    return shown[:_SHOWN_CHARS] + ("…" if cut else "")
