"""Reads a trace from a file: CSV with a header, or the same gzipped.

The header names the columns, in any order; `timestamp` (seconds, not falling), `key` (1 to 256 characters, no comma)
and `size` (bytes of the answer, 1 to 1 GiB) must be among them, others are passed over. There is no quoting. Empty
lines and lines that begin with # are comments. Lines are bounded in length and number, so that a file that is no
trace, or a gzip that swells, ends in one line that says where.
"""

from __future__ import annotations

import gzip
import math
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..corpus import Trace

COLUMNS = ("timestamp", "key", "size")
LINE_BYTES = 4096
KEY_CHARACTERS = 256
SIZE_BYTES = 1 << 30
#: Lines read at most unless told otherwise.
LINES = 20_000_000


class TraceError(Exception):
    """The file is no trace. The message is one line and names the file and the line."""


def read(path: Path, lines: int = LINES) -> Trace:
    """The whole file as a trace named like it. Raises TraceError, OSError."""
    numbers: dict[str, int] = {}
    keys, sizes = array("Q"), array("Q")
    columns: tuple[int, int, int, int] | None = None
    newest = -math.inf
    with path.open("rb") as file:
        for number, line in _lines(file, path, lines):
            try:
                if columns is None:
                    columns = _columns(line)
                    continue
                newest, key, size = _record(line, columns, newest)
            except ValueError as error:
                raise TraceError(f"{path} line {number}: {error}") from None
            keys.append(numbers.setdefault(key, len(numbers)))
            sizes.append(size)
    if not keys:
        raise TraceError(f"{path}: no requests in it")
    return Trace(path.name, keys, sizes)


def _lines(file: BinaryIO, path: Path, most: int) -> Iterator[tuple[int, str]]:
    """Numbered lines that are no comments."""
    zipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    number = 0
    with gzip.GzipFile(fileobj=file) if zipped else file as source:
        while True:
            number += 1
            try:
                raw = source.readline(LINE_BYTES + 1)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise TraceError(f"{path} line {number}: the gzip is damaged: {error}") from None
            if not raw:
                return
            if number > most:
                raise TraceError(f"{path} line {number}: more than {most} lines")
            if len(raw) > LINE_BYTES:
                raise TraceError(f"{path} line {number}: longer than {LINE_BYTES} bytes")
            try:
                line = raw.decode().strip()
            except UnicodeDecodeError:
                raise TraceError(f"{path} line {number}: not UTF-8") from None
            if line and not line.startswith("#"):
                yield number, line


def _columns(header: str) -> tuple[int, int, int, int]:
    """Where timestamp, key and size are, and how many columns there are."""
    names = [name.strip().lower() for name in header.split(",")]
    for name in COLUMNS:
        if names.count(name) != 1:
            raise ValueError(f"the header must name the column {name!r} once: {_short(header)}")
    timestamp, key, size = (names.index(name) for name in COLUMNS)
    return timestamp, key, size, len(names)


def _record(line: str, columns: tuple[int, int, int, int], newest: float) -> tuple[float, str, int]:
    fields = line.split(",")
    at_timestamp, at_key, at_size, count = columns
    if len(fields) != count:
        raise ValueError(f"{len(fields)} fields where the header has {count}: {_short(line)}")
    try:
        timestamp = float(fields[at_timestamp])
    except ValueError:
        timestamp = math.nan
    if not math.isfinite(timestamp):
        raise ValueError(f"the timestamp is no number of seconds: {_short(fields[at_timestamp])}")
    if timestamp < newest:
        raise ValueError(f"the timestamp falls: {_short(fields[at_timestamp])} behind {newest:g}")
    key = fields[at_key].strip()
    if not 1 <= len(key) <= KEY_CHARACTERS:
        raise ValueError(f"a key has 1 to {KEY_CHARACTERS} characters: {_short(key)}")
    size = fields[at_size].strip()
    # isdecimal and no int() of what is long: digits without end would cost time without end
    if not (size.isascii() and size.isdecimal() and len(size) <= 10 and 1 <= int(size) <= SIZE_BYTES):
        raise ValueError(f"the size is no number of bytes from 1 to {SIZE_BYTES}: {_short(size)}")
    return timestamp, key, int(size)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
