"""Heads between HTTP/1.1 and HTTP/2 (RFC 9113 section 8): ours as a field list, theirs as status and fields.

Pure. What a gateway must refuse of a response is decided here, per stream: the h2 library would end the whole
connection, and a hundred answers with it, for one bad field.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hpack import HeaderTuple, NeverIndexedHeaderTuple

from .fault import FaultKind
from .h1 import FIELD_LIMIT, HEAD_LIMIT_BYTES, Refused

_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+").fullmatch
_VALUE = re.compile(rb"(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?").fullmatch
#: fields that speak of an HTTP/1.1 connection and have no place in HTTP/2
_OF_CONNECTIONS = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
#: secrets, which compression must not give away, and values that never come again
_NOT_INDEXED = frozenset(
    {b"authorization", b"proxy-authorization", b"cookie", b"x-request-id", b"content-length", b"x-api-key"}
)


def request_fields(head: bytes, scheme: bytes) -> list[HeaderTuple]:
    """The field list of an HTTP/1.1 request head: pseudo-header fields first, names in lower case.

    ``Host`` becomes ``:authority``; fields about the connection are left out, and those that it names.
    """
    lines = head.split(b"\r\n")
    method, _, rest = lines[0].partition(b" ")
    authority, named = b"", frozenset[bytes]()
    fields: list[HeaderTuple] = []
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon:
            break  # the empty line
        name, value = name.lower(), value.strip(b" \t")
        if name == b"host":
            authority = value
        elif name == b"connection":
            named |= {option.strip().lower() for option in value.split(b",")}
        elif name in _OF_CONNECTIONS or (name == b"te" and value.lower() != b"trailers"):
            continue
        elif name in _NOT_INDEXED:
            fields.append(NeverIndexedHeaderTuple(name, value))
        else:
            fields.append(HeaderTuple(name, value))
    if named:
        fields = [field for field in fields if field[0] not in named]
    return [
        HeaderTuple(b":method", method),
        HeaderTuple(b":scheme", scheme),
        HeaderTuple(b":authority", authority),
        HeaderTuple(b":path", rest.rpartition(b" ")[0]),
        *fields,
    ]


def response_head(fields: Sequence[tuple[bytes, bytes]]) -> tuple[int, list[tuple[bytes, bytes]], int | None]:
    """Status, fields and Content-Length of a response; raises :class:`Refused` for what must not be relayed."""
    if not fields or fields[0][0] != b":status":
        raise Refused(FaultKind.PROTOCOL, "a response without a status")
    word = fields[0][1]
    if len(word) != 3 or not word.isdigit():
        raise Refused(FaultKind.PROTOCOL, "a status that is no number")
    status = int(word)
    if not 100 <= status <= 599 or status == 101:
        raise Refused(FaultKind.PROTOCOL, f"status {status}")
    if len(fields) > FIELD_LIMIT + 1:
        raise Refused(FaultKind.TOO_LARGE, f"over {FIELD_LIMIT} header fields")
    headers: list[tuple[bytes, bytes]] = []
    length: int | None = None
    size = 0
    for name, value in fields[1:]:
        if not _NAME(name) or not _VALUE(value):
            raise Refused(FaultKind.PROTOCOL, "a header field that HTTP/2 does not allow")
        if name in _OF_CONNECTIONS:
            raise Refused(FaultKind.PROTOCOL, "a field about the connection, which HTTP/2 does not allow")
        if name == b"content-length":
            if not value.isdigit() or len(value) > 18 or (length is not None and int(value) != length):
                raise Refused(FaultKind.PROTOCOL, "a Content-Length that is no number, or two that differ")
            length = int(value)
        size += len(name) + len(value) + 4
        headers.append((name, value))
    if size > HEAD_LIMIT_BYTES:
        raise Refused(FaultKind.TOO_LARGE, f"a head over {HEAD_LIMIT_BYTES} bytes")
    if status in (204, 304):
        length = 0  # neither has a body, whatever its fields say
    return status, headers, length
