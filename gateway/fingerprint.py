"""A request's identity for the cache.

The key is a SHA-256 over the schema version, the tenant, the caller's namespace, the resolved model and its version
tag, the endpoint, the query and the canonical encoding of the *whole* body minus a short deny-list: a field nobody
has heard of makes another key, so a new vLLM parameter can never be answered from an older answer. Canonical means
object keys sorted and no white space, as msgspec's ``order="deterministic"`` writes it.
"""

from __future__ import annotations

import msgspec

from ..cache.digest import Key, key_of, prefix
from .parse import Request

#: Bumped whenever anything below changes what a key covers.
KEY_SCHEMA = b"2"

#: Fields that never change an answer: who asks, not what is asked.
DENIED = frozenset({"user", "metadata", "request_id", "session_id", "priority", "cache"})

_NO_QUERY = prefix(b"")

_encode = msgspec.json.Encoder(order="deterministic").encode


def fingerprint(request: Request, key_head: bytes, model: str, query: str) -> Key:
    """The key of a request that the rules let be cached (:func:`penstock.gateway.caching.veto`).

    ``key_head`` covers schema version, tenant, namespace, model, version tag and endpoint
    (:meth:`penstock.gateway.fleet.Model.key_head`).
    """
    fields = request.fields
    if fields is not None and request.model == model and fields.keys().isdisjoint(DENIED):
        body = _encode(fields)  # as nearly all are; one frame less
    else:
        body = canonical(request, model)
    return key_of(key_head + prefix(query.encode()) if query else key_head + _NO_QUERY, body)


def canonical(request: Request, model: str) -> bytes:
    """What the key covers of a request's body: all of it but :data:`DENIED`, with the resolved model's name."""
    fields = request.fields
    assert fields is not None  # bodies without fields are vetoed
    if not fields.keys().isdisjoint(DENIED):
        fields = {name: value for name, value in fields.items() if name not in DENIED}
    # the alias that was used is no part of the question: the resolved model stands in the head
    if request.model != model:
        fields = {**fields, "model": model}
    return _encode(fields)
