"""Header fields between a backend and a client: what is dropped, what is ours (RFC 9110 §7.6.1, hop-by-hop)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

HOP_BY_HOP = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"),
        *("te", "trailer", "transfer-encoding", "upgrade"),
    }
)

#: Fields that carry a key: the client's is not the backend's business, nor the other way round.
CREDENTIALS = frozenset(
    {
        *("authorization", "proxy-authorization", "x-api-key", "api-key", "cookie"),
        *("x-goog-api-key", "x-litellm-api-key", "anthropic-api-key", "ocp-apim-subscription-key"),
    }
)

#: Of a request: hop-by-hop, the client's credentials, what we set ourselves, and ``accept-encoding`` (answers are
#: relayed, counted and cached as the identity encoding). ``expect`` is met by the server host.
NOT_UPSTREAM = (
    HOP_BY_HOP
    | CREDENTIALS
    | {"host", "content-length", "x-request-id", "accept-encoding", "expect", "cache-control"}
)

#: Of a response: hop-by-hop, the backend's credentials (some echo what they were sent), what we set ourselves, and
#: cookies, which would be one client's alone.
NOT_DOWNSTREAM = (
    HOP_BY_HOP
    | CREDENTIALS
    | {"content-length", "x-request-id", "date", "server", "set-cookie", "www-authenticate"}
)

#: Values of ``Connection`` that name no field.
_USUAL = frozenset({b"keep-alive", b"close", b"Keep-Alive", b"Close"})


class HeaderTable:
    """Upstream field names as the client gets them; remembers names, so the usual ones cost one look-up."""

    __slots__ = ("_names",)

    _REMEMBERED = 512

    def __init__(self) -> None:
        self._names: dict[bytes, str | None] = {}

    def downstream(self, fields: Iterable[tuple[bytes, bytes]]) -> tuple[list[tuple[str, str]], str]:
        """The fields to send on (none that is hop-by-hop, ours, or not ASCII) and the Content-Type among them."""
        names = self._names
        media = hop_by_hop = ""
        out = []
        for raw, value in fields:
            try:
                name = names[raw]
            except KeyError:
                name = self._learn(raw)
            if name and value.isascii():
                text = value.decode("ascii")
                out.append((name, text))
                if name == "content-type":
                    media = text
            elif name == "" and value not in _USUAL:
                hop_by_hop += value.decode("latin-1") + ","
        if hop_by_hop:
            named = named_by_connection((hop_by_hop,)) - {"content-type"}
            out = [field for field in out if field[0] not in named]
        return out, media

    def _learn(self, raw: bytes) -> str | None:
        name = raw.decode("latin-1").lower()
        known: str | None
        if name == "connection":
            known = ""  # not sent on, but its value is looked at
        elif name.isascii() and name not in NOT_DOWNSTREAM and not name.startswith("x-penstock-"):
            known = name
        else:
            known = None
        if len(self._names) < self._REMEMBERED:
            self._names[raw] = known
        return known


def is_event_stream(content_type: str) -> bool:
    """Whether a Content-Type is that of server-sent events, whatever its case and parameters."""
    return content_type[:17].lower() == "text/event-stream"


def named_by_connection(values: Sequence[str]) -> frozenset[str]:
    """The fields that a ``Connection`` header declares hop-by-hop."""
    return frozenset(token.strip().lower() for value in values for token in value.split(","))
