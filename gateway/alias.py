"""Puts the model's own name where a request used an alias, and touches no other byte of the body.

The value is spliced at its place in the original bytes. Its place is certain when exactly one ``"model": "<alias>"``
stands in the body (the alias in any JSON spelling, characters may be ``\\uXXXX``). Where a nested object repeats it, or
a key may be spelled with escapes, the decoded fields are encoded anew, and over 1 MiB, where there are none, the client
is asked to name the model itself. The key is looked for by ``bytes.find``: a regular expression over 10 MiB of quotes
held the loop for 300 ms.
"""

from __future__ import annotations

import re

import msgspec

from .errors import Fault, Kind
from .parse import Request

_KEY = b'"model"'
#: Begins every escape of a letter of "model" (U+0064 to U+006F).
_ESCAPED_KEY = b"\\u006"
#: Places looked at before a body counts as ambiguous.
_MAX_KEYS = 256


class Alias:
    """One alias of one model; ``rewrite`` gives the body to send upstream."""

    __slots__ = ("_pattern", "_value", "alias", "model")

    def __init__(self, alias: str, model: str) -> None:
        self.alias = alias
        self.model = model
        self._value = msgspec.json.encode(model)
        self._pattern = re.compile(rb'[ \t\r\n]*:[ \t\r\n]*("%b")' % _spellings(alias))

    def rewrite(self, request: Request) -> bytes:
        """The request's body with the alias replaced; raises :class:`Fault` when the place is ambiguous."""
        body = request.body
        if request.form_model is not None:
            field = request.form_model
            return _splice(body, field.start, self.model.encode(), field.end)
        place = self._place(body)
        if place is not None:
            return _splice(body, place[0], self._value, place[1])
        if request.fields is not None:
            return msgspec.json.encode({**request.fields, "model": self.model})
        raise Fault(
            Kind.INVALID_REQUEST,
            f"a body over 1 MiB that repeats its model or escapes letters must name '{self.model}', not an alias",
            param="model",
        )

    def _place(self, body: bytes) -> tuple[int, int] | None:
        """Where the alias stands as the value of a key "model"; None unless that is exactly once, for certain."""
        if _ESCAPED_KEY in body:
            return None
        found: tuple[int, int] | None = None
        at = body.find(_KEY)
        for _ in range(_MAX_KEYS):
            if at < 0:
                return found
            match = self._pattern.match(body, at + len(_KEY))
            if match is not None:
                if found is not None:
                    return None
                found = match.span(1)
            at = body.find(_KEY, at + len(_KEY))
        return None


def _splice(body: bytes, start: int, value: bytes, end: int) -> bytes:
    """``value`` in place of body[start:end]; one copy, where slices would make three."""
    view = memoryview(body)
    return b"".join((view[:start], value, view[end:]))


def _spellings(text: str) -> bytes:
    """A pattern for every way JSON may spell ``text`` inside a string."""
    out = []
    for char in text:
        plain = re.escape(msgspec.json.encode(char)[1:-1])
        units = char.encode("utf-16-be")
        escaped = b"".join(
            rb"\\u" + b"".join(_digit(d) for d in units[i : i + 2].hex()) for i in range(0, len(units), 2)
        )
        slash = rb"|\\/" if char == "/" else b""
        out.append(b"(?:%b|%b%b)" % (plain, escaped, slash))
    return b"".join(out)


def _digit(digit: str) -> bytes:
    return f"[{digit}{digit.upper()}]".encode() if digit.isalpha() else digit.encode()
