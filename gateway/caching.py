"""What a request says about caching itself, and whether the cache has anything to do with it.

The sources are `Cache-Control` (RFC 9111 §5.2.1: no-cache, no-store, max-age), `x-penstock-cache-ttl` (seconds) and
LiteLLM's body object `cache` (docs.litellm.ai, "Caching": ttl, s-maxage, no-cache, no-store, namespace, use-cache).
no-cache skips the look-up and still stores, no-store skips the storing, max-age is the greatest age that is accepted.
Pure; the key itself is :mod:`penstock.gateway.fingerprint`'s.
"""

from __future__ import annotations

import math
from typing import Any

from ..cache.outcome import NoCache
from .config import CacheMode
from .endpoints import RESPONSES
from .errors import Fault, Kind
from .parse import Request
from .raw import RawRequest

#: The longest life a request may ask for (30 days).
MAX_TTL_S = 30 * 86_400

_NAMESPACE_CHARS = 128
_HEADER = "x-penstock-cache-ttl"
_NONDETERMINISTIC = NoCache.NONDETERMINISTIC  # looked up once: an enum's members are slow in Python 3.11


class Directives:
    """What one request asks of the cache. ``ttl_ms`` and ``max_age_ms``: None where it does not say."""

    __slots__ = ("max_age_ms", "namespace", "opted_in", "read", "shared", "ttl_ms", "write")

    def __init__(self) -> None:
        self.read = True
        self.write = True
        #: whether an answer that somebody else is waiting for already would do
        self.shared = True
        self.ttl_ms: int | None = None
        self.max_age_ms: int | None = None
        self.namespace = ""
        self.opted_in = False


#: A request that says nothing.
PLAIN = Directives()


def directives(raw: RawRequest, fields: dict[str, Any] | None) -> Directives:
    """What the request asks for; raises :class:`Fault` 400 for what cannot be understood."""
    wish = fields.get("cache") if fields is not None else None
    if wish is None and not raw.cache_control and not raw.cache_ttl:
        return PLAIN
    made = Directives()
    if raw.cache_control:
        _header(made, raw.cache_control)
    if raw.cache_ttl:
        text = raw.cache_ttl.strip()
        if not (text.isascii() and text.isdigit() and len(text) < 9 and int(text) <= MAX_TTL_S):
            raise Fault(
                Kind.INVALID_REQUEST, f"{_HEADER} must be whole seconds, {MAX_TTL_S} at most", param=_HEADER
            )
        _ttl(made, int(text))
    if wish is not None:
        _body(made, wish)
    if made.ttl_ms == 0:
        made.write = False
    made.shared = made.read and made.write
    return made


def veto(request: Request, mode: CacheMode, wanted: Directives) -> NoCache | None:
    """Why the cache has nothing to do with a request; None where it has."""
    if mode == "off":
        return NoCache.OFF
    fields = request.fields
    if fields is None:
        return NoCache.MULTIPART if request.form_model is not None else NoCache.BODY_TOO_LARGE
    endpoint = request.endpoint
    if endpoint is RESPONSES and (
        fields.get("store") or fields.get("background") or fields.get("previous_response_id") is not None
    ):
        return NoCache.STATEFUL
    if mode == "deterministic":
        if not (endpoint.deterministic or fields.get("temperature") == 0 or fields.get("seed") is not None):
            return _NONDETERMINISTIC
    elif mode == "opt_in" and not wanted.opted_in:
        return NoCache.NOT_OPTED_IN
    return None if wanted.read or wanted.write else NoCache.NO_STORE


def _header(made: Directives, value: str) -> None:
    for part in value.split(","):
        name, _, argument = part.strip().partition("=")
        name = name.lower()
        if name == "no-cache":
            made.read = False
        elif name == "no-store":
            made.write = False
        elif name == "max-age":
            argument = argument.strip('"')
            if argument.isascii() and argument.isdigit():  # else it is ignored (RFC 9111 §4.2.1)
                _max_age(made, int(argument[:12]))


def _body(made: Directives, wish: Any) -> None:
    if not isinstance(wish, dict):
        raise Fault(Kind.INVALID_REQUEST, "'cache': Expected `object`", param="cache")
    for name, value in wish.items():
        if name in ("no-cache", "no-store", "use-cache"):
            if not isinstance(value, bool):
                raise _wrong(name, "bool")
            if name == "use-cache":
                made.opted_in = made.opted_in or value
            elif value and name == "no-cache":
                made.read = False
            elif value:
                made.write = False
        elif name in ("ttl", "s-maxage", "s-max-age"):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_TTL_S:
                raise _wrong(name, f"number of seconds, {MAX_TTL_S} at most")
            if name == "ttl":
                _ttl(made, value)
            else:
                _max_age(made, value)
                made.opted_in = True
        elif name == "namespace":
            if not isinstance(value, str) or not 0 < len(value) <= _NAMESPACE_CHARS:
                raise _wrong(name, f"str of 1 to {_NAMESPACE_CHARS} characters")
            made.namespace = value
            made.opted_in = True


def _wrong(name: str, expected: str) -> Fault:
    return Fault(Kind.INVALID_REQUEST, f"'cache.{name}': Expected `{expected}`", param=f"cache.{name}")


def _ttl(made: Directives, seconds: float) -> None:
    """The last word counts; a life of 0 is none."""
    made.opted_in = True
    made.ttl_ms = math.ceil(seconds * 1000)


def _max_age(made: Directives, seconds: float) -> None:
    age_ms = math.floor(seconds * 1000)
    made.max_age_ms = age_ms if made.max_age_ms is None else min(made.max_age_ms, age_ms)
