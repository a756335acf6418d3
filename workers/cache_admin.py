"""The admin paths of the cache: what it did, one entry, and flushing.

Strategy: everything is read from shared memory at the moment of the question. A flush is one store in the epochs, so
this node has done it before it answers; other nodes are told by way of Redis (`invalidation`).

An entry does not say whose it is, only under which sum of epochs it was stored. So one that was flushed is nearly
always recognised, and is none; whether one is fresh can be said for sure where model and tenant are given, or where
all there are have the same epochs.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import msgspec

from ..cache.arena import Arena
from ..cache.digest import Key
from ..cache.epoch import name_of_key, name_of_model, name_of_tenant
from ..cache.peek import peek
from ..gateway.config import Published
from ..gateway.record import Reader, Record
from .answer import Answer, Refused
from .invalidation import Invalidation
from .question import Question

_HEX = re.compile(r"[0-9a-fA-F]{64}")
_MAX_NAME_CHARS = 256
_WHAT = "exactly one of all (true), model, tenant, key"
_MASK = (1 << 64) - 1


class _Flush(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a flush; exactly one is given."""

    all: bool | msgspec.UnsetType = msgspec.UNSET
    model: str | msgspec.UnsetType = msgspec.UNSET
    tenant: str | msgspec.UnsetType = msgspec.UNSET
    key: str | msgspec.UnsetType = msgspec.UNSET


class CacheAdmin:
    """Answers for the cache. published: the current generation. now_ms: wall clock, milliseconds."""

    __slots__ = ("_arena", "_invalidation", "_now_ms", "_published", "_reader")

    def __init__(
        self,
        arena: Arena,
        invalidation: Invalidation,
        published: Callable[[], Published],
        now_ms: Callable[[], int],
    ) -> None:
        self._arena = arena
        self._invalidation = invalidation
        self._published = published
        self._now_ms = now_ms
        self._reader = Reader()

    # ---- flushing

    async def flush(self, question: Question) -> Answer:
        """POST: flush what the body names. Raises Refused 400, 404 for a model that is not configured, 415."""
        media = question.content_type.partition(";")[0].strip().lower()
        if media != "application/json":  # which no web page can send elsewhere without being allowed to
            raise Refused(415, "Content-Type must be application/json", "unsupported_media_type")
        what, name = self._named(question.body)
        told = await self._invalidation.flush(name)
        nodes = ("told" if told else "pending") if self._invalidation.topology else "none"
        return Answer.of({"flushed": what, "epoch": name, "this_node": "flushed", "other_nodes": nodes})

    def _named(self, body: bytes) -> tuple[dict[str, Any], str]:
        """What a body asks to flush, with a model's own name for its alias, and the epoch that does it."""
        try:
            asked = msgspec.json.decode(body, type=_Flush)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
            raise Refused(400, f"not a flush: {fault}; give {_WHAT}", "invalid_request") from None
        fields = msgspec.structs.asdict(asked)
        given = {name: value for name, value in fields.items() if value is not msgspec.UNSET}
        if len(given) != 1:
            raise Refused(400, f"give {_WHAT}", "invalid_request")
        ((field, value),) = given.items()
        if field == "all":
            if value is not True:
                raise Refused(400, "'all' is true, or left out", "invalid_request", param=field)
            return given, "all"
        if field == "key":
            key = _key(value)
            return {"key": key.hex()}, name_of_key(key)
        if not 0 < len(value) <= _MAX_NAME_CHARS:
            raise Refused(
                400, f"'{field}' has 1 to {_MAX_NAME_CHARS} characters", "invalid_request", param=field
            )
        if field == "tenant":
            return given, name_of_tenant(value)
        model = self._model(value)
        return {"model": model}, name_of_model(model)

    def _model(self, name: str) -> str:
        """A model's own name; raises Refused 404."""
        models = self._published().config.models
        for own, model in models.items():
            if name == own or name in model.aliases:
                return own
        known = ", ".join(list(models)[:50])
        raise Refused(
            404, f"the model '{name}' does not exist; there are: {known}", "model_not_found", param="model"
        )

    # ---- one entry

    async def entry(self, question: Question) -> Answer:
        """GET `…/<key>`: an entry of L1. Query: `body=true` for what it holds, `model` and `tenant` it belongs to.

        Raises Refused: 400 for what is no key, 404 where there is none, or one that is no answer any more.
        """
        key = _key(question.rest)
        asked = parse_qs(question.query)
        found = peek(self._arena, key)
        now_ms = self._now_ms()
        if found is None:
            raise Refused(404, "L1 has no such entry", "not_found")
        entry = found.entry
        if entry.expires_ms <= now_ms:
            raise Refused(404, "the entry has expired", "not_found")
        model, tenant = asked.get("model", [None])[0], asked.get("tenant", [None])[0]
        fresh = self._fresh(found.stamp, key, None if model is None else self._model(model), tenant)
        if fresh is False:
            raise Refused(404, "the entry was flushed", "not_found")
        try:
            record = self._reader.read(entry)
        except ValueError as fault:
            raise Refused(404, f"L1 has no answer under this key: {fault}", "not_found") from None
        said = {
            "key": key.hex(),
            "kind": "stream" if record.cuts else "whole",
            "status": record.status,
            "content_type": dict(record.fields).get("content-type", ""),
            "body_bytes": len(record.body),
            "pieces": len(record.cuts),
            "entry_bytes": found.size_bytes,
            "age_s": round(max(0, now_ms - entry.created_ms) / 1000, 3),
            "ttl_left_s": round((entry.expires_ms - now_ms) / 1000, 3),
            "fresh": fresh,
        }
        return Answer.of(said | _body(record) if question.flag("body") else said)

    def _fresh(self, stamp: int, key: Key, model: str | None, tenant: str | None) -> bool | None:
        """Whether an entry of this stamp is one that requests may get; None where it depends on whose it is."""
        epochs = self._arena.epochs
        models = [model] if model is not None else list(self._published().config.models)
        of_models = {epochs.get(name_of_model(name)) for name in models}
        if tenant is not None:
            of_tenants = {epochs.get(name_of_tenant(tenant))}
        else:
            of_tenants = {0, *(nonce for name, nonce in epochs.names_set().items() if name.startswith("t:"))}
        rest = stamp - epochs.get("all") - epochs.get(name_of_key(key))
        if not any((rest - of_model) & _MASK in of_tenants for of_model in of_models):
            return False
        return True if len(of_models) == len(of_tenants) == 1 else None


def _key(text: str) -> Key:
    if _HEX.fullmatch(text) is None:
        raise Refused(400, "a key is 64 hexadecimal digits", "invalid_request", param="key")
    return Key(bytes.fromhex(text))


def _body(record: Record) -> dict[str, str]:
    try:
        return {"body": record.body.decode()}
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(record.body).decode()}
