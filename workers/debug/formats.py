"""Stacks and events in the formats of others: speedscope, pprof, Chrome's trace events, pyinstrument's page. Pure."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

Frame = tuple[str, str, int]
"""Name, file, line."""


@dataclass(frozen=True, slots=True)
class Stacks:
    """Of one process, or of several: stacks from the root, each with its first value (ns or bytes) and its number."""

    name: str
    found: Sequence[tuple[tuple[Frame, ...], int, int]]

    @classmethod
    def of(cls, name: str, lines: Iterable[dict[str, Any]]) -> Stacks:
        """From what a hatch said."""
        frames: list[Frame] = []
        found = []
        for line in lines:
            if "frames" in line:
                frames = [(str(one[0]), str(one[1]), int(one[2])) for one in line["frames"]]
            elif "stack" in line:
                ids, value, number = line["stack"]
                found.append((tuple(frames[one] for one in ids), int(value), int(number)))
        return cls(name, found)

    @property
    def total(self) -> int:
        """The sum of the first values."""
        return sum(value for _, value, _ in self.found)


def merged(name: str, each: Sequence[Stacks], rooted: bool) -> Stacks:
    """All of them as one; rooted: below a frame for each."""
    sums: dict[tuple[Frame, ...], list[int]] = {}
    for one in each:
        root: tuple[Frame, ...] = ((one.name, "", 0),) if rooted else ()
        for frames, value, number in one.found:
            found = sums.setdefault(root + frames, [0, 0])
            found[0] += value
            found[1] += number
    return Stacks(name, [(frames, value, number) for frames, (value, number) in sums.items()])


def speedscope(name: str, profiles: Sequence[Stacks], exporter: str) -> bytes:
    """https://www.speedscope.app/file-format-schema.json; ns as seconds. Stacks are sums, in the order of names."""
    frames: dict[Frame, int] = {}
    told = []
    for one in profiles:
        found = sorted(one.found)
        samples = [[frames.setdefault(frame, len(frames)) for frame in stack] for stack, _, _ in found]
        told.append(
            {
                "type": "sampled",
                "name": one.name,
                "unit": "seconds",
                "startValue": 0,
                "endValue": one.total / 1e9,
                "samples": samples,
                "weights": [value / 1e9 for _, value, _ in found],
            }
        )
    return msgspec.json.encode(
        {
            "$schema": "https://www.speedscope.app/file-format-schema.json",
            "shared": {
                "frames": [
                    {"name": name, **({"file": file, "line": line} if file else {})}
                    for name, file, line in frames
                ]
            },
            "profiles": told,
            "name": name,
            "activeProfileIndex": 0,
            "exporter": exporter,
        }
    )


def html(stacks: Stacks, seconds: float, began_s: float) -> bytes:
    """A page of its own, by pyinstrument: the tree of calls, and as a flame graph. began_s: since 1970."""
    from pyinstrument.renderers import HTMLRenderer
    from pyinstrument.session import Session

    root = f"{stacks.name}\0\0000"
    records = [
        # one without a file would be hidden
        ([root, *(f"{name}\0{file or '-'}\0{line}" for name, file, line in frames)], value / 1e9)
        for frames, value, _ in stacks.found
    ]
    session = Session(
        frame_records=records,
        start_time=began_s,
        duration=stacks.total / 1e9,
        min_interval=0.001,
        max_interval=0.01,
        sample_count=sum(number for _, _, number in stacks.found),
        start_call_stack=[root],
        target_description=f"{stacks.name}, {seconds:g} s",
        cpu_time=stacks.total / 1e9,
        sys_path=[],
        sys_prefixes=[],
    )
    return bytes(HTMLRenderer().render(session), "utf-8")


def chrome(each: Iterable[tuple[str, int, Iterable[dict[str, Any]]]]) -> bytes:
    """Trace events of processes (name, pid, what its hatch said), as Perfetto, chrome://tracing and speedscope read
    them (the "Trace Event Format"). Requests lie beside the loop: many go at once.
    """
    told: list[dict[str, Any]] = []
    spans: list[tuple[tuple[int, int, int], dict[str, Any]]] = []
    dropped = number = 0
    for name, pid, lines in each:
        at = {"pid": pid, "tid": pid}
        told.append({"ph": "M", "name": "process_name", **at, "args": {"name": name}})
        told.append({"ph": "M", "name": "thread_name", **at, "args": {"name": "loop"}})
        for line in lines:
            dropped += line.get("dropped", 0)
            for phase, event, category, began, took, more in line.get("events", ()):
                one = {"name": event, "cat": category, **at, "ts": began / 1e3}
                begin = {**one, "args": more} if more else one
                # of two that begin together the longer is the outer one, of two that end together too
                if phase == "X":
                    spans.append(((began, 1, -took), {"ph": "X", "dur": took / 1e3, **begin}))
                    continue
                number += phase == "R"
                id = hex(number)
                spans.append(((began, 1, -took), {"ph": "b", "id": id, **begin}))
                end = began + took
                spans.append(((end, 0, took), {"ph": "e", "id": id, **one, "ts": end / 1e3}))
    spans.sort(key=lambda span: span[0])
    told += (event for _, event in spans)
    return msgspec.json.encode(
        {"traceEvents": told, "displayTimeUnit": "ms", "otherData": {"events left out": dropped}}
    )


def pprof(each: Sequence[Stacks], kinds: Sequence[tuple[str, str]], seconds: float, wall_ns: int) -> bytes:
    """https://github.com/google/pprof/blob/main/proto/profile.proto, gzipped; a label `process` says whose a stack is.

    kinds: type and unit of the number and of the value, in this order.
    """
    strings: dict[str, int] = {"": 0}
    frames: dict[Frame, int] = {}

    def text(word: str) -> int:
        return strings.setdefault(word, len(strings))

    out = bytearray()
    for kind, unit in kinds:
        out += _bytes(1, _int(1, text(kind)) + _int(2, text(unit)))
    for one in each:
        label = _bytes(3, _int(1, text("process")) + _int(2, text(one.name)))
        for stack, value, number in one.found:
            ids = [frames.setdefault(frame, len(frames) + 1) for frame in reversed(stack)]
            out += _bytes(2, _packed(1, ids) + _packed(2, (number, value)) + label)
    for (_, _, line), id in frames.items():
        out += _bytes(4, _int(1, id) + _bytes(4, _int(1, id) + _int(2, line)))
    for (name, file, line), id in frames.items():
        spelled = text(name)
        out += _bytes(
            5, _int(1, id) + _int(2, spelled) + _int(3, spelled) + _int(4, text(file)) + _int(5, line)
        )
    kind, unit = kinds[-1]
    out += _int(9, wall_ns) + _int(10, int(seconds * 1e9))
    out += _bytes(11, _int(1, text(kind)) + _int(2, text(unit))) + _int(12, 1)
    for word in strings:
        out += _bytes(6, word.encode())
    return gzip.compress(bytes(out), 6)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _packed(field: int, values: Iterable[int]) -> bytes:
    return _bytes(field, b"".join(map(_varint, values)))
