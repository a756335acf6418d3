"""What the tasks of a process wait for, and where its threads stand: told from another thread, without the loop's help.

Tasks that stand at the same place are told once, with their number: 5,000 streams are a few lines. Names of functions
and kinds of objects are told, never a value: those are bodies and keys.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any

_DEEPEST = 64
_NAMES = 3


def told(loop: asyncio.AbstractEventLoop) -> Iterator[dict[str, Any]]:
    """One mapping with `tasks` (most first), `total` and `threads`; stacks from the outside in."""
    groups: dict[tuple[str, ...], dict[str, Any]] = {}
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        stack = awaited(task)
        waits = _waits_for(task)
        found = groups.setdefault(
            (waits, *stack), {"count": 0, "waits_for": waits, "stack": stack, "names": []}
        )
        found["count"] += 1
        if len(found["names"]) < _NAMES:
            found["names"].append(task.get_name())
    yield {
        "total": len(tasks),
        "tasks": sorted(groups.values(), key=lambda one: -one["count"]),
        "threads": _threads(),
    }


def awaited(task: asyncio.Task[Any]) -> list[str]:
    """The coroutines of a task, each awaited by the one before it, and where each stands."""
    stack: list[str] = []
    one: Any = task.get_coro()
    while one is not None and len(stack) < _DEEPEST:
        code: CodeType | None = getattr(one, "cr_code", None) or getattr(one, "gi_code", None)
        if code is None:
            break
        frame = getattr(one, "cr_frame", None) or getattr(one, "gi_frame", None)
        stack.append(_place(code, frame.f_lineno if frame is not None else code.co_firstlineno))
        one = getattr(one, "cr_await", None) or getattr(one, "gi_yieldfrom", None)
    return stack


def _waits_for(task: asyncio.Task[Any]) -> str:
    future = getattr(task, "_fut_waiter", None)
    if future is None:
        return "nothing: it runs, or is about to"
    if isinstance(future, asyncio.Task):
        return f"task {future.get_name()}"
    kind = type(future).__name__
    return f"{kind}, {'done' if future.done() else 'pending'}"


def _threads() -> list[dict[str, Any]]:
    names = {one.ident: one.name for one in threading.enumerate()}
    found = []
    for ident, top in sys._current_frames().items():
        if ident == threading.get_ident():
            continue
        stack: list[str] = []
        frame: FrameType | None = top
        while frame is not None and len(stack) < _DEEPEST:
            stack.append(_place(frame.f_code, frame.f_lineno))
            frame = frame.f_back
        found.append({"name": names.get(ident, "the server host's"), "stack": stack[::-1]})
    return found


def _place(code: CodeType, line: int | None) -> str:
    return f"{code.co_qualname} ({code.co_filename}:{line})"
