"""The terminal while frames are shown: its second screen, keys as they are pressed, and all as it was in the end.

Strategy: rich draws, and keeps the second screen and the cursor; here the line discipline is changed and put back, and
what comes first is waited for: a key, a sample, another size.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from types import FrameType

from rich.console import Console
from rich.live import Live

from .change import Change
from .frame import frame
from .sample import Sample

_LOOK_S = 0.1
"""How long a new sample or another size of the window may go unnoticed; a key does not."""


class View:
    """What is to be shown after each sample. now_s: when the first one was asked for."""

    def __init__(self, now_s: float) -> None:
        self._change: Change | None = None
        self._trouble = ""
        self._heard_s = now_s

    def take(self, found: Sample | str, now_s: float) -> None:
        """A sample, or why there is none."""
        if isinstance(found, str):
            self._trouble = found
            return
        self._trouble, self._heard_s = "", now_s
        self._change = Change(found, self._change.now if self._change is not None else None)

    def draw(self, now_s: float, lines: int | None = None) -> object:
        """The frame for this moment."""
        trouble = ""
        if self._trouble:
            trouble = f"no answer for {now_s - self._heard_s:.0f} s, still trying: {self._trouble}"
        return frame(self._change, time.strftime("%H:%M:%S"), trouble, lines)


def show(found: SimpleQueue[Sample | str], console: Console) -> None:
    """Frames until `q`, Ctrl-C or SIGTERM."""
    view = View(time.monotonic())
    with _keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        drawn: object = None
        while True:
            fresh = False
            while not found.empty():
                view.take(found.get(), time.monotonic())
                fresh = True
            size = console.size
            if fresh or drawn != (size, int(time.monotonic())):
                drawn = (size, int(time.monotonic()))
                live.update(view.draw(time.monotonic(), size.height), refresh=True)  # type: ignore[arg-type]
            if keys is None:
                time.sleep(_LOOK_S)
            elif select.select([keys], [], [], _LOOK_S)[0]:
                pressed = os.read(keys, 64)
                if not pressed or b"q" in pressed.lower():
                    return


def write(found: SimpleQueue[Sample | str], console: Console) -> None:
    """Where there is no terminal: each frame below the last one."""
    view = View(time.monotonic())
    while True:
        try:
            view.take(found.get(timeout=1.0), time.monotonic())
        except Empty:
            continue
        console.print(view.draw(time.monotonic()), "")


@contextmanager
def _keys() -> Iterator[int | None]:
    """Keys come without Return, and are not shown; None where standard input is no terminal."""

    def told(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)  # so that what was changed is put back

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, told)
    if not sys.stdin.isatty():
        yield None
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored; here it is a key
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    now = termios.tcgetattr(fd)
    now[3] &= ~(termios.ICANON | termios.ECHO)
    now[6][termios.VSUSP] = b"\0"  # a stop would leave the second screen behind
    termios.tcsetattr(fd, termios.TCSADRAIN, now)
    try:
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
