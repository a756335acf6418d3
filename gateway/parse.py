"""The only decode of a request body: one JSON decode, then validation of what it gave.

Up to 1 MiB the body becomes builtins (the cache key needs every field) and `msgspec.convert` checks them against
the endpoint's Struct. Over 1 MiB only ``model`` and ``stream`` are decoded, everything else is skipped without
being built: building 10 MiB of small objects held the loop for 700 ms, skipping them takes 20 ms. The original
bytes are kept and go upstream as they are. Knows nothing of routing: what a model name means is decided later.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from .endpoints import Endpoint
from .errors import Fault, Kind
from .multipart import FormField, read_fields
from .raw import RawRequest
from .schema import Routed

#: Bodies over this are neither canonicalised nor cached (bytes).
LARGE_BODY_BYTES = 1 << 20

#: Nor are shorter ones with more objects and arrays than this: a MiB of empty arrays held the loop for 25 ms.
MANY_CONTAINERS = 1 << 16
_MAY_HOLD_MANY_BYTES = 2 * MANY_CONTAINERS

_FORM_FIELDS = frozenset({"model", "stream"})
_AT = re.compile(r"^(?P<what>.*?)(?: - at `(?:key in )?\$(?P<path>[^`]*)`)?$", re.S)


class Request:
    """A parsed request: ``fields`` are the body's builtins, None for multipart and for large bodies."""

    __slots__ = ("body", "endpoint", "fields", "form_model", "model", "stream")

    def __init__(
        self,
        endpoint: Endpoint,
        body: bytes,
        model: str,
        stream: bool,
        fields: dict[str, Any] | None,
        form_model: FormField | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.body = body
        self.model = model
        self.stream = stream
        self.fields = fields
        self.form_model = form_model


Decode = Callable[[bytes], Any]


class Parser:
    """Turns raw requests into requests; holds the two decoders and nothing else."""

    __slots__ = ("_decode", "_decode_routed")

    def __init__(
        self,
        decode: Decode | None = None,
        decode_routed: Callable[[bytes], Routed] | None = None,
    ) -> None:
        self._decode = decode or msgspec.json.Decoder().decode
        self._decode_routed = decode_routed or msgspec.json.Decoder(Routed).decode

    def parse(self, endpoint: Endpoint, raw: RawRequest) -> Request:
        """The request in ``raw``; raises :class:`Fault` (400, 411, 415) with the field's path as ``param``."""
        body = raw.body
        content_type = raw.content_type
        if endpoint.multipart:
            return self._form(endpoint, body, content_type)
        if content_type != "application/json" and not _is_json(content_type):
            raise Fault(
                Kind.UNSUPPORTED_MEDIA_TYPE,
                f"Content-Type must be application/json, not '{content_type[:80]}'",
            )
        if not body:
            raise Fault(Kind.BODY_MISSING, "the request has no body")
        fields: dict[str, Any] | None = None
        try:
            if len(body) > _MAY_HOLD_MANY_BYTES and _is_large(body):
                routed = self._decode_routed(body)
            else:
                fields = self._decode(body)
                routed = msgspec.convert(fields, endpoint.shape)
        except msgspec.ValidationError as error:
            raise _invalid(str(error)) from None
        except msgspec.DecodeError as error:
            raise Fault(Kind.INVALID_JSON, f"the body is not JSON: {error}") from None
        except UnicodeDecodeError:
            raise Fault(Kind.INVALID_JSON, "the body is not JSON: it is not UTF-8") from None
        except RecursionError:
            raise Fault(Kind.INVALID_JSON, "the body is not JSON: nested too deeply") from None
        return Request(endpoint, body, routed.model, routed.stream is True, fields)

    def _form(self, endpoint: Endpoint, body: bytes, content_type: str) -> Request:
        if not content_type.lower().startswith("multipart/form-data"):
            raise Fault(
                Kind.UNSUPPORTED_MEDIA_TYPE,
                f"Content-Type must be multipart/form-data, not '{content_type[:80]}'",
            )
        if not body:
            raise Fault(Kind.BODY_MISSING, "the request has no body")
        form = read_fields(body, content_type, _FORM_FIELDS)
        model = form.get("model")
        if model is None or not model.value:
            raise Fault(Kind.INVALID_REQUEST, "the form has no field 'model'", param="model")
        stream = form.get("stream")
        wants_stream = stream is not None and stream.value.lower() in ("true", "1")
        return Request(endpoint, body, model.value, wants_stream, None, model)


def _is_large(body: bytes) -> bool:
    return len(body) > LARGE_BODY_BYTES or body.count(b"{") + body.count(b"[") > MANY_CONTAINERS


def _is_json(content_type: str) -> bool:
    media = content_type.partition(";")[0].strip().lower()
    return media == "application/json" or (media.startswith("application/") and media.endswith("+json"))


def _invalid(text: str) -> Fault:
    match = _AT.match(text)
    path = (match["path"] or "") if match else ""
    # of builtins the decoder knows no key: "[...]" stands for it, so the path ends before the first
    path = path.partition("[...]")[0].lstrip(".")
    what = match["what"] if match else text
    missing = re.search(r"missing required field `([^`]+)`", what)
    if missing:
        path = f"{path}.{missing[1]}" if path else missing[1]
    where = f"'{path}': " if path else ""
    return Fault(Kind.INVALID_REQUEST, f"{where}{what}", param=path or None)
