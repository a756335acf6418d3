"""Reads a trace of requests: CSV with a header, or the same gzipped.

The header names the columns, in any order and case; others than these are passed over. There is no quoting, and empty
lines and lines that begin with # are comments. Lines are bounded in length and number, so that a file that is no trace,
or a gzip that swells, ends in one line that says where.

    arrival_s, arrival or timestamp     seconds, or YYYY-MM-DD HH:MM:SS[.fraction]; needed
    duration_s or duration              seconds that a server works on it
    model                               which model it is for; without it all are for one
    ContextTokens, GeneratedTokens      from which a duration can be reckoned (Azure's traces of LLM inference)
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

LINE_BYTES = 4096
REQUESTS = 5_000_000
MODELS = 256
SPAN_S = 400 * 86_400.0
DURATION_S = 86_400.0
TOKENS = 10_000_000
NAME_CHARACTERS = 256

_COLUMNS = {
    "arrival_s": "arrival",
    "arrival": "arrival",
    "timestamp": "arrival",
    "duration_s": "duration",
    "duration": "duration",
    "model": "model",
    "contexttokens": "context",
    "generatedtokens": "generated",
}


class TraceError(Exception):
    """The file is no trace. The message is one line and names the file and the line."""


@dataclass(frozen=True, slots=True)
class Service:
    """How long a server works on a request of which the trace does not say it. fixed_s None: by its tokens."""

    fixed_s: float | None = None
    read_per_s: float = 8000.0
    write_per_s: float = 50.0


@dataclass(frozen=True, slots=True, order=True)
class Arrival:
    """One request. at_s: after the trace's first. duration_s: that a server works on it."""

    at_s: float
    model: str
    duration_s: float


def read(path: Path, service: Service, most: int = REQUESTS) -> list[Arrival]:
    """All requests, in the order of their arrival. Raises TraceError, OSError."""
    columns: dict[str, int] | None = None
    arrivals: list[Arrival] = []
    models: dict[str, str] = {}
    with path.open("rb") as file:
        for number, line in _lines(file, path):
            try:
                cells = [cell.strip() for cell in line.split(",")]
                if columns is None:
                    columns = _columns(cells, service)
                    continue
                if len(arrivals) >= most:
                    raise ValueError(f"more than {most} requests")
                arrivals.append(_arrival(cells, columns, service, models))
            except ValueError as error:
                raise TraceError(f"{path} line {number}: {error}") from None
    if not arrivals:
        raise TraceError(f"{path}: no requests in it")
    arrivals.sort()
    first = arrivals[0].at_s
    if arrivals[-1].at_s - first > SPAN_S:
        raise TraceError(f"{path}: longer than {SPAN_S / 86_400:.0f} days")
    return [Arrival(one.at_s - first, one.model, one.duration_s) for one in arrivals]


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, str]]:
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
            if number > 2 * REQUESTS:
                raise TraceError(f"{path} line {number}: more than {2 * REQUESTS} lines")
            if len(raw) > LINE_BYTES:
                raise TraceError(f"{path} line {number}: longer than {LINE_BYTES} bytes")
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError:
                raise TraceError(f"{path} line {number}: not UTF-8") from None
            if line and not line.startswith("#"):
                yield number, line


def _columns(cells: list[str], service: Service) -> dict[str, int]:
    columns: dict[str, int] = {}
    for at, cell in enumerate(cells):
        name = _COLUMNS.get(cell.lower())
        if name is not None and name in columns:
            raise ValueError(f"two columns for the {name}")
        if name is not None:
            columns[name] = at
    if "arrival" not in columns:
        raise ValueError("the header names no column arrival_s or timestamp")
    if "duration" not in columns and service.fixed_s is None and "generated" not in columns:
        raise ValueError(
            "the header names no column duration_s and no GeneratedTokens: say --service-s, how long each takes"
        )
    return columns


def _arrival(
    cells: list[str], columns: Mapping[str, int], service: Service, models: dict[str, str]
) -> Arrival:
    if len(cells) <= max(columns.values()):
        raise ValueError(f"{len(cells)} columns where the header has more")
    model = cells[columns["model"]] if "model" in columns else ""
    if model not in models:
        if len(models) >= MODELS:
            raise ValueError(f"more than {MODELS} models")
        if len(model) > NAME_CHARACTERS:
            raise ValueError(f"a model's name of more than {NAME_CHARACTERS} characters")
        models[model] = model
    if "duration" in columns:
        duration = _number(cells[columns["duration"]], "duration", DURATION_S)
    elif service.fixed_s is not None:
        duration = service.fixed_s
    else:
        context = _number(cells[columns["context"]], "ContextTokens", TOKENS) if "context" in columns else 0.0
        generated = _number(cells[columns["generated"]], "GeneratedTokens", TOKENS)
        duration = context / service.read_per_s + generated / service.write_per_s
    return Arrival(_moment(cells[columns["arrival"]]), models[model], duration)


def _number(text: str, what: str, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= most:
        raise ValueError(f"{what} {text[:40]!r} is no number from 0 to {most:.0f}")
    return value


def _moment(text: str) -> float:
    """Seconds: a number, or a date and time, which may have more digits than Python reads."""
    if ":" not in text:
        return _number(text, "arrival", 1e12)
    whole, _, fraction = text.partition(".")
    if fraction and not (fraction.isascii() and fraction.isdigit()):
        raise ValueError(f"arrival {text[:40]!r} is neither seconds nor YYYY-MM-DD HH:MM:SS")
    try:
        at = datetime.strptime(whole.replace("T", " "), "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        raise ValueError(f"arrival {text[:40]!r} is neither seconds nor YYYY-MM-DD HH:MM:SS") from None
    return at.timestamp() + float(f"0.{fraction[:12] or '0'}")
