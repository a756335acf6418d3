"""What the second tier says about itself in the log: one line for each change of state, and nothing else.

    up      everything is asked, everything is stored
    full    look-ups go on, Redis refuses to store: memory is full and its policy is noeviction
    down    a part of Redis, or all of it, is not asked

It refuses to decide anything: breakers and the outbox do, and tell it.
"""

from __future__ import annotations

import enum
import logging

_LINES = {"up": logging.INFO, "full": logging.WARNING, "down": logging.WARNING}


class State(enum.Enum):
    """See above; the values are the end of the log line's event, ``l2_up`` for example."""

    UP = "up"
    FULL = "full"
    DOWN = "down"


class Watch:
    """Puts together what the parts say and logs when the sum changes. ``secret`` is kept out of every line."""

    __slots__ = ("_full", "_log", "_secret", "_where", "parts_down", "state")

    def __init__(self, log: logging.Logger, where: str, secret: str | None) -> None:
        self.state = State.UP
        self._log = log
        self._where = where
        self._secret = secret
        self.parts_down = 0
        self._full = 0

    def went_down(self, error: BaseException | None) -> None:
        """One part is not asked any more; error is the last one, None when a deadline passed."""
        self.parts_down += 1
        self._changed(
            "no answer in time" if error is None else f"{type(error).__name__}: {error}".rstrip(": ")
        )

    def came_up(self) -> None:
        """One part is asked again."""
        self.parts_down -= 1
        self._changed("answers again, and its memory is full" if self._full else "answers again")

    def filled(self) -> None:
        """One part refuses to store for want of memory."""
        self._full += 1
        self._changed("its memory is full: maxmemory is reached")

    def emptied(self) -> None:
        """One part stores again."""
        self._full -= 1
        self._changed("stores again")

    def _changed(self, why: str) -> None:
        state = State.DOWN if self.parts_down else State.FULL if self._full else State.UP
        if state is self.state:
            return
        self.state = state
        if self._secret:
            why = why.replace(self._secret, "***")
        self._log.log(_LINES[state.value], "l2_%s redis=%s reason=%s", state.value, self._where, why)
