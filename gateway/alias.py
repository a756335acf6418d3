"""Puts the model's own name where a request used an alias, and touches no other byte of the body.

The value is spliced at its place in the original bytes. Its place is certain when exactly one ``"model": "<alias>"``
stands in the body in any JSON spelling (letters may be ``\\uXXXX``); where a nested object repeats it, the decoded
fields are encoded anew, and over 1 MiB, where there are none, the client is asked to name the model itself.
"""

from __future__ import annotations

import re

import msgspec

from .errors import Fault, Kind
from .parse import Request


class Alias:
    """One alias of one model; ``rewrite`` gives the body to send upstream."""

    __slots__ = ("_pattern", "_value", "alias", "model")

    def __init__(self, alias: str, model: str) -> None:
        self.alias = alias
        self.model = model
        self._value = msgspec.json.encode(model)
        self._pattern = re.compile(rb'"%b"\s*:\s*("%b")' % (_spellings("model"), _spellings(alias)))

    def rewrite(self, request: Request) -> bytes:
        """The request's body with the alias replaced; raises :class:`Fault` when the place is ambiguous."""
        body = request.body
        if request.form_model is not None:
            field = request.form_model
            return body[: field.start] + self.model.encode() + body[field.end :]
        places = [match.span(1) for match in self._pattern.finditer(body)]
        if len(places) == 1:
            start, end = places[0]
            return body[:start] + self._value + body[end:]
        if request.fields is not None:
            return msgspec.json.encode({**request.fields, "model": self.model})
        raise Fault(
            Kind.INVALID_REQUEST,
            f"a body over 1 MiB that repeats its model must name '{self.model}' itself, not an alias",
            param="model",
        )


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
