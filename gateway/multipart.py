"""The ``model`` field of a multipart body (RFC 7578), found without copying the files beside it."""

from __future__ import annotations

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from .errors import Fault, Kind

_MAX_VALUE_BYTES = 256


class FormField:
    """One small form field: its text and where its bytes stand in the body (start, end)."""

    __slots__ = ("end", "start", "value")

    def __init__(self, value: str, start: int, end: int) -> None:
        self.value = value
        self.start = start
        self.end = end


def read_fields(body: bytes, content_type: str, wanted: frozenset[str]) -> dict[str, FormField]:
    """The wanted fields of a form, the last of each name; raises :class:`Fault` when the form is malformed."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary or len(boundary) > 200:
        raise Fault(Kind.INVALID_REQUEST, "Content-Type names no usable multipart boundary")
    found: dict[str, FormField] = {}
    header: list[bytes] = [b"", b""]
    part: dict[str, bytes] = {}
    span: list[int] = []

    def begin() -> None:
        part.clear()
        span.clear()

    def name(data: bytes, start: int, end: int) -> None:
        header[0] += data[start:end]

    def value(data: bytes, start: int, end: int) -> None:
        header[1] += data[start:end]

    def header_end() -> None:
        if header[0].lower() == b"content-disposition":
            _, disposition = parse_options_header(header[1])
            part["name"] = disposition.get(b"name", b"")
            if b"filename" in disposition:
                part["file"] = b""
        header[0] = header[1] = b""

    def data(_: bytes, start: int, end: int) -> None:
        if not span:
            span.extend((start, end))
        else:
            span[1] = end

    def part_end() -> None:
        key = part.get("name", b"").decode("utf-8", "replace")
        if key in wanted and "file" not in part:
            start, end = span or (0, 0)
            if end - start > _MAX_VALUE_BYTES:
                raise Fault(Kind.INVALID_REQUEST, f"'{key}' is longer than 256 bytes", param=key)
            found[key] = FormField(body[start:end].decode("utf-8", "replace").strip(), start, end)

    ended: list[bool] = []
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": begin,
            "on_header_field": name,
            "on_header_value": value,
            "on_header_end": header_end,
            "on_part_data": data,
            "on_part_end": part_end,
            "on_end": lambda: ended.append(True),
        },
    )
    try:
        parser.write(body)
    except FormParserError as error:
        raise Fault(Kind.INVALID_REQUEST, f"the multipart body is malformed: {error}") from None
    if not ended:
        raise Fault(Kind.INVALID_REQUEST, "the multipart body ends before its closing boundary")
    return found
