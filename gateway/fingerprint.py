"""A request's identity for the cache: a key, or the reason why it has none.

The key is a SHA-256 over the schema version, the tenant, the resolved model and its version tag, the endpoint, the
query and the canonical encoding of the *whole* body minus a short deny-list: a field nobody has heard of makes
another key, so a new vLLM parameter can never be answered from an older answer. Canonical means object keys sorted
and no white space, as msgspec's ``order="deterministic"`` writes it.
"""

from __future__ import annotations

import msgspec

from ..cache.digest import Key, key_of, prefix
from ..cache.outcome import NoCache
from .endpoints import RESPONSES
from .parse import Request

#: Bumped whenever anything below changes what a key covers.
KEY_SCHEMA = b"1"

#: Fields that never change an answer: who asks, not what is asked.
DENIED = frozenset({"user", "metadata", "request_id", "session_id", "priority", "cache"})

_NO_QUERY = prefix(b"")

_encode = msgspec.json.Encoder(order="deterministic").encode


def fingerprint(request: Request, key_head: bytes, model: str, query: str) -> Key | NoCache:
    """The key of a cacheable request, else why it is not.

    ``key_head`` covers schema version, tenant, model, version tag and endpoint
    (:meth:`penstock.gateway.fleet.Model.key_head`).
    """
    veto = _veto(request)
    if veto is not None:
        return veto
    fields = request.fields
    assert fields is not None  # _veto has answered for bodies without fields
    if not fields.keys().isdisjoint(DENIED):
        fields = {name: value for name, value in fields.items() if name not in DENIED}
    # the alias that was used is no part of the question: the resolved model stands in the head
    if request.model != model:
        fields = {**fields, "model": model}
    return key_of(key_head + prefix(query.encode()) if query else key_head + _NO_QUERY, _encode(fields))


def _veto(request: Request) -> NoCache | None:
    fields = request.fields
    if fields is None:
        return NoCache.MULTIPART if request.form_model is not None else NoCache.BODY_TOO_LARGE
    endpoint = request.endpoint
    if endpoint is RESPONSES and (
        fields.get("store") or fields.get("background") or fields.get("previous_response_id") is not None
    ):
        return NoCache.STATEFUL
    if endpoint.deterministic or fields.get("temperature") == 0 or fields.get("seed") is not None:
        return None
    return NoCache.NONDETERMINISTIC
