"""Kill points: every boundary between two bytecode instructions at which a process can be ended.

Strategy: what there is comes from the code (`listed` disassembles all functions that the given ones can reach by
name), what happens comes from running it (`Tracer` follows a call instruction by instruction). A boundary is the
instant before an instruction. CPython looks at signals nowhere inside one, but a kill -9 may come there as well:
that is what random instants are for (`storm.py`).

A function's first boundary is its RESUME: tracing reports it as the call.
"""

from __future__ import annotations

import dis
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

_ENDS = frozenset({"RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE"})
_ALWAYS = frozenset({"JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT"})
_PREFIX = "EXTENDED_ARG"


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """One boundary: before the instruction at `offset` (bytes) of `function` in `file`."""

    file: str
    function: str
    offset: int

    def __str__(self) -> str:
        return f"{self.file}:{self.function}+{self.offset}"


@dataclass(frozen=True, slots=True)
class Listed:
    """A point as the disassembler has it. needs: what must happen for it to be reached, "" if it is every day's."""

    opcode: str
    line: int
    needs: str


def point_of(code: CodeType, offset: int) -> Point:
    return Point(os.path.basename(code.co_filename), code.co_qualname, offset)


def codes_of(modules: Iterable[ModuleType]) -> list[CodeType]:
    """All functions and methods that the modules themselves define, nested ones included."""
    found: dict[CodeType, None] = {}
    for module in modules:
        for thing in list(vars(module).values()):
            for code in _codes_in(thing, module):
                found[code] = None
    return list(found)


def _codes_in(thing: object, module: ModuleType) -> Iterator[CodeType]:
    if isinstance(thing, property):
        for accessor in (thing.fget, thing.fset):
            yield from _codes_in(accessor, module)
    elif isinstance(thing, (staticmethod, classmethod)):
        yield from _codes_in(thing.__func__, module)
    elif isinstance(thing, FunctionType) and thing.__code__.co_filename == module.__file__:
        yield from _with_nested(thing.__code__)
    elif isinstance(thing, type) and thing.__module__ == module.__name__:
        for member in list(vars(thing).values()):
            yield from _codes_in(member, module)


def _with_nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_nested(constant)


def reachable_codes(
    modules: Iterable[ModuleType], starts: Iterable[CodeType], entered: Iterable[CodeType] = ()
) -> list[CodeType]:
    """The functions of `modules` that `starts` can get to by the names they use, and those seen `entered`.

    By name alone, so there may be too many: a method counts as called when anything of its name is.
    """
    everything = codes_of(modules)
    by_name: dict[str, list[CodeType]] = {}
    for code in everything:
        by_name.setdefault(code.co_name, []).append(code)
    known = set(everything)
    found: dict[CodeType, None] = {}
    todo = [*starts, *(code for code in entered if code in known)]
    while todo:
        code = todo.pop()
        if code in found:
            continue
        found[code] = None
        todo += (inner for inner in code.co_consts if isinstance(inner, CodeType))
        for name in code.co_names:
            todo += by_name.get(name, ())
    return list(found)


def listed(codes: Iterable[CodeType]) -> dict[Point, Listed]:
    """Every boundary of the functions, from the code alone. An instruction begins with its prefixes."""
    points = {}
    for code in codes:
        plain, raising = _paths(code)
        line = code.co_firstlineno
        first: int | None = None
        begun = False  # what stands before the first RESUME is the caller's step
        for instruction in dis.get_instructions(code):
            line = instruction.starts_line or line
            if instruction.opname == _PREFIX:
                first = instruction.offset if first is None else first
                continue
            offset, first = instruction.offset if first is None else first, None
            begun = begun or instruction.opname == "RESUME"
            if not begun:
                continue
            if instruction.offset not in plain:
                needs = "an exception to be handled"
            else:
                needs = "an exception to be raised" if instruction.offset in raising else ""
            points[point_of(code, offset)] = Listed(instruction.opname, line, needs)
    return points


def _paths(code: CodeType) -> tuple[set[int], set[int]]:
    """Offsets that can be reached when nothing is raised, and those of them from which a raise is sure."""
    instructions = list(dis.get_instructions(code))
    jumps = set(dis.hasjrel) | set(dis.hasjabs)
    after: dict[int, list[int]] = {}
    for i, instruction in enumerate(instructions):
        targets = [int(instruction.argval)] if instruction.opcode in jumps else []
        if instruction.opname not in _ENDS and instruction.opname not in _ALWAYS:
            targets += [following.offset for following in instructions[i + 1 : i + 2]]
        after[instruction.offset] = targets
    plain: set[int] = set()
    todo = [0]
    while todo:
        at = todo.pop()
        if at not in plain:
            plain.add(at)
            todo += after[at]
    returning = {i.offset for i in instructions if i.opname.startswith("RETURN") and i.offset in plain}
    grown = True
    while grown:
        more = {at for at in plain - returning if returning.intersection(after[at])}
        returning |= more
        grown = bool(more)
    return plain, plain - returning


class Tracer:
    """Calls `look(code, offset)` at every boundary inside the files of `folder`, while `with` lasts.

    Only of this thread, not in functions that were running before, and not in those of `skip`.
    """

    def __init__(
        self, folder: str, look: Callable[[CodeType, int], object], skip: Iterable[CodeType] = ()
    ) -> None:
        self._ours = dict.fromkeys(skip, False)
        self._folder = os.path.realpath(folder) + os.sep
        self._look = look

    def __enter__(self) -> Tracer:
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _called(self, frame: FrameType, event: str, _: Any) -> Callable[[FrameType, str, Any], Any] | None:
        code = frame.f_code
        ours = self._ours.get(code)
        if ours is None:
            ours = self._ours[code] = os.path.realpath(code.co_filename).startswith(self._folder)
        if not ours:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        self._look(code, frame.f_lasti)
        return self._stepped

    def _stepped(self, frame: FrameType, event: str, _: Any) -> Callable[[FrameType, str, Any], Any]:
        if event == "opcode":
            self._look(frame.f_code, frame.f_lasti)
        return self._stepped
