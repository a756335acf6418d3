"""An answer as the cache keeps it: status, fields, body, and where the body's pieces end.

The value of an entry (:mod:`penstock.cache.entry` packs what is around it), integers little-endian:

    [0:4]  length of the head in bytes     [4:8]  number of pieces; 0: the body is whole, no stream
    head:  2 bytes status, then name NUL value NUL … in ASCII
    pieces: 4 bytes each, their lengths    body

What differs from request to request is not kept: request id, backend, age. Knows nothing of where entries lie.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from ..cache.entry import VALUE_AT, Entry

_LENGTHS = struct.Struct("<II")
_STATUS = struct.Struct("<H")

#: Fields of an answer that are about one exchange, not about the answer.
_NOT_KEPT = frozenset({"x-request-id", "age", "connection"})

#: Heads remembered by their bytes; a model has few.
_REMEMBERED = 512

_Fields = list[tuple[str, str]]


class Record:
    """A kept answer. ``fields`` is shared: copy it before adding to it. ``cuts`` are the pieces' lengths, or none."""

    __slots__ = ("body", "cuts", "fields", "status")

    def __init__(self, status: int, fields: _Fields, cuts: Sequence[int], body: bytes) -> None:
        self.status = status
        self.fields = fields
        self.cuts = cuts
        self.body = body

    def pieces(self) -> Iterator[bytes]:
        """The body cut as its server had cut it; each piece is cut when it is wanted."""
        body, at = self.body, 0
        for length in self.cuts:
            yield body[at : at + length]
            at += length


def cut(head: bytes, body: bytes, lengths: Sequence[int]) -> tuple[bytes, ...]:
    """The parts of the value of a stream whose pieces have these lengths; they add up to the body's."""
    count = len(lengths)
    head = head[_LENGTHS.size :]
    return _LENGTHS.pack(len(head), count), head, struct.pack(f"<{count}I", *lengths), body


class Writer:
    """Makes heads; remembers them, so that a usual one costs one look-up."""

    __slots__ = ("_heads",)

    def __init__(self) -> None:
        self._heads: dict[tuple[object, ...], bytes | None] = {}

    def head(self, status: int, fields: _Fields) -> bytes | None:
        """The head of an answer with these fields, which are ASCII, behind the two lengths as they are where the body
        is whole; then the body is all that follows. None when the fields say that it is not to be kept.
        """
        named = (status, *fields)
        try:
            return self._heads[named]
        except KeyError:
            pass
        made: bytes | None = None
        if not any(name == "cache-control" and _forbids(value) for name, value in fields):
            text = "".join([f"{name}\0{value}\0" for name, value in fields if name not in _NOT_KEPT])
            head = _STATUS.pack(status) + text.encode("ascii")
            made = _LENGTHS.pack(len(head), 0) + head
        if len(self._heads) < _REMEMBERED:
            self._heads[named] = made
        return made


def _forbids(cache_control: str) -> bool:
    """Whether a shared cache must not keep the answer (RFC 9111 §5.2.2)."""
    said = {part.strip().partition("=")[0].lower() for part in cache_control.split(",")}
    return "no-store" in said or "private" in said


class Reader:
    """Takes entries apart; remembers heads, so that a usual one costs one look-up."""

    __slots__ = ("_heads",)

    def __init__(self) -> None:
        self._heads: dict[bytes, tuple[int, _Fields]] = {}

    def read(self, entry: Entry) -> Record:
        """The answer in an entry that was verified. Raises ValueError for a value that no :func:`pack` made."""
        data, end = entry.data, entry.end
        at = VALUE_AT + 8
        try:
            length, count = _LENGTHS.unpack_from(data, VALUE_AT)
            if at + length + 4 * count > end:
                raise ValueError("the entry is too short for its head")
            raw = data[at : at + length]
            known = self._heads.get(raw)
            if known is None:
                known = self._learn(raw)
            at += length
            if not count:
                return Record(known[0], known[1], (), data[at:end])
            cuts = struct.unpack_from(f"<{count}I", data, at)
        except struct.error:
            raise ValueError("the entry is too short for its head") from None
        body = data[at + 4 * count : end]
        if sum(cuts) != len(body):
            raise ValueError("the pieces do not add up to the body")
        return Record(known[0], known[1], cuts, body)

    def _learn(self, raw: bytes) -> tuple[int, _Fields]:
        (status,) = _STATUS.unpack_from(raw)
        words = raw[2:].decode("ascii").split("\0")
        if not 200 <= status <= 599 or len(words) % 2 == 0:
            raise ValueError("not the head of an answer")
        known = status, list(zip(words[::2], words[1::2], strict=False))
        if len(self._heads) < _REMEMBERED:
            self._heads[raw] = known
        return known
