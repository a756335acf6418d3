"""The allow-list of paths: what is proxied, in which dialect, and how its body is read. Anything else is 404.

The dev and admin endpoints of vLLM are not here, so no spelling of a path can reach them: the path sent upstream
is the one in this table, never the client's.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from . import schema


class Dialect(enum.Enum):
    """Which API's words an endpoint speaks: its error objects, its stream's end and error frames."""

    OPENAI = "openai"
    MESSAGES = "messages"
    RESPONSES = "responses"

    __hash__ = object.__hash__  # by identity, in C: tables are looked up by it on every request


@dataclass(frozen=True, slots=True, eq=False)
class Endpoint:
    """One proxied path. ``deterministic``: the same body always has the same answer (embeddings and their kin)."""

    path: str
    dialect: Dialect
    shape: type[schema.Routed]
    multipart: bool = False
    deterministic: bool = False


def _table() -> dict[str, Endpoint]:
    openai, shape = Dialect.OPENAI, schema.Routed
    rows = [
        Endpoint("/v1/chat/completions", openai, schema.ChatCompletion),
        Endpoint("/v1/completions", openai, schema.Completion),
        Endpoint("/v1/embeddings", openai, schema.Embedding, deterministic=True),
        Endpoint("/v1/responses", Dialect.RESPONSES, schema.Response),
        Endpoint("/v1/messages", Dialect.MESSAGES, schema.AnthropicMessage),
        Endpoint("/v1/messages/count_tokens", Dialect.MESSAGES, schema.AnthropicMessage, deterministic=True),
        Endpoint("/v1/audio/transcriptions", openai, shape, multipart=True),
        Endpoint("/v1/audio/translations", openai, shape, multipart=True),
    ]
    for path in (
        *("/v1/rerank", "/rerank", "/v2/rerank", "/v1/score", "/score"),
        *("/classify", "/pooling", "/tokenize", "/detokenize"),
    ):
        rows.append(Endpoint(path, openai, shape, deterministic=True))
    return {row.path: row for row in rows}


#: Exact path to endpoint, for ``POST``.
ENDPOINTS: dict[str, Endpoint] = _table()

RESPONSES = ENDPOINTS["/v1/responses"]


_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._~-]{0,127}")


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A call about one stored response: ``GET``/``DELETE /v1/responses/{id}``, ``POST …/{id}/cancel``."""

    id: str
    method: str
    target: str


def stored_response(method: str, path: str) -> StoredResponse | frozenset[str] | None:
    """The stored response that a path names; the allowed methods where the method is wrong; None for other paths.

    An id is 1 to 128 unreserved characters (RFC 3986) and no dot segment: it cannot smuggle a path or a query upstream.
    """
    if not path.startswith("/v1/responses/"):
        return None
    rest, cancel = path[len("/v1/responses/") :], False
    if rest.endswith("/cancel"):
        rest, cancel = rest[: -len("/cancel")], True
    if _ID.fullmatch(rest) is None:
        return None
    allowed = frozenset({"POST"} if cancel else {"GET", "DELETE"})
    if method not in allowed:
        return allowed
    return StoredResponse(rest, method, f"/v1/responses/{rest}{'/cancel' if cancel else ''}")


def model_id(path: str) -> str | None:
    """The model that ``/v1/models/{id}`` names (ids may hold slashes), or None for other paths."""
    if not path.startswith("/v1/models/"):
        return None
    return path[len("/v1/models/") :] or None
