"""What is to be asked upstream, for whom, and in which words at which model."""

from __future__ import annotations

from typing import Any

import msgspec

from .alias import Alias
from .caller import ANYONE, Caller
from .endpoints import Endpoint
from .errors import Fault, Kind
from .fleet import Backend, Model, Route
from .parse import Request
from .raw import RawRequest


class Errand:
    """One request on its way to a backend of ``model``.

    ``request``: what it was made from, None where no other model may answer it. ``pinned``: no other backend will do.
    ``cuts`` gets the ends of the chunks.
    """

    __slots__ = (
        "body",
        "caller",
        "cuts",
        "endpoint",
        "method",
        "model",
        "pinned",
        "raw",
        "request",
        "target",
    )

    def __init__(
        self,
        endpoint: Endpoint,
        model: Model,
        method: str,
        target: str,
        raw: RawRequest,
        body: bytes | None,
        caller: Caller = ANYONE,
        request: Request | None = None,
        pinned: Backend | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.model = model
        self.method = method
        self.target = target
        self.raw = raw
        self.body = body
        self.caller = caller
        self.request = request
        self.pinned = pinned
        self.cuts: list[int] | None = None

    @property
    def streams(self) -> bool:
        """Whether an event stream is asked for."""
        request = self.request
        return request is not None and request.stream and not self.endpoint.deterministic

    @property
    def fields(self) -> dict[str, Any] | None:
        """The decoded body, None where it was not decoded."""
        return self.request.fields if self.request is not None else None

    def body_for(self, model: Model) -> bytes | None:
        """The body as another model must be asked; raises :class:`Fault` where its place in it is not certain."""
        request = self.request
        if request is None or model is self.model:
            return self.body
        return body_for(request, Route(model, Alias(request.model, model.name)), self.caller)


def body_for(request: Request, route: Route, caller: Caller = ANYONE) -> bytes:
    """A request's body as its model's backends are to see it: the model by its own name, nothing that is meant for us.

    Where there are keys a ``priority``, by which vLLM may order what waits in it, is the key's and not what is asked
    for.

    The very object that came where there is nothing to change.
    """
    fields = request.fields
    if fields is not None:
        if "cache" in fields:
            fields = {n: v for n, v in {**fields, "model": route.model.name}.items() if n != "cache"}
        if caller is not ANYONE and "priority" in fields:
            fields = {**fields, "model": route.model.name, "priority": caller.priority}
        if fields is not request.fields:
            return _encode(fields)
    elif caller is not ANYONE and request.form_model is None:
        try:
            known = _decode_large(request.body)
        except (msgspec.MsgspecError, UnicodeError):  # what is skipped elsewhere is looked at here
            raise Fault(Kind.INVALID_JSON, "the body is not JSON") from None
        if "priority" in known:
            return _encode({**known, "model": route.model.name, "priority": caller.priority})
    return request.body if route.alias is None else route.alias.rewrite(request)


_encode = msgspec.json.encode
_decode_large = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
