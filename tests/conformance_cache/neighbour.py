"""Another process with its own L1 on the suite's arena: it does what it is told over a pipe."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, Self

from penstock.cache.arena import Arena
from penstock.cache.digest import Key
from penstock.cache.l1 import L1

from .target import Found


class _Server:
    """What runs in the other process."""

    def __init__(self) -> None:
        self._arena: Arena | None = None
        self._l1: L1 | None = None
        self._me = (0, 0)

    def open(self, path: str, slot: int, generation: int) -> None:
        self._arena = Arena.open(path)
        self.again(slot, generation)

    def again(self, slot: int, generation: int) -> None:
        """A new life in the same slot; the old one leaves without a word."""
        assert self._arena is not None
        self._me = (slot, generation)
        # Of the others, all that ever own something live on as long as this one can tell: it asks nobody.
        self._l1 = L1(self._arena, self._me, lambda slot, generation: slot != self._me[0])

    def forget(self) -> None:
        self._l1 = None
        if self._arena is not None:
            self._arena.close()
            self._arena = None

    def stamp(self, model: str, tenant: str, key: Key) -> int:
        assert self._arena is not None
        epochs = self._arena.epochs
        return epochs.stamp(epochs.scope(model, tenant), key)

    def put(self, key: Key, packed: bytes, now_ms: int) -> bool:
        assert self._l1 is not None
        return self._l1.put(key, packed, now_ms)

    def get(self, key: Key, stamp: int, now_ms: int) -> Found | None:
        assert self._l1 is not None
        entry = self._l1.get(key, stamp, now_ms)
        return None if entry is None else Found(entry.value, entry.created_ms, entry.expires_ms)

    def remove(self, key: Key) -> None:
        assert self._l1 is not None
        self._l1.remove(key)


class Neighbour:
    """The other process; one for many runs, each of which opens its own arena. A context: it ends with it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=-1
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # at its end the other ends
        self._process.stdout.close()
        try:
            self._process.wait(20)
        finally:
            self._process.kill()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *words: self._call(name, *words)

    def _call(self, name: str, *words: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump((name, words), self._process.stdin)
        self._process.stdin.flush()
        result, error = pickle.load(self._process.stdout)
        if error is not None:
            raise AssertionError(f"in the other process: {error}")
        return result


def _serve(asked: BinaryIO, said: BinaryIO) -> None:
    server = _Server()
    while True:
        try:
            name, words = pickle.load(asked)
        except EOFError:
            return
        try:
            answer = getattr(server, name)(*words), None
        except Exception as error:
            answer = None, repr(error)
        pickle.dump(answer, said)
        said.flush()


if __name__ == "__main__":
    # What is printed by mistake must not end up in between.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _serve(sys.stdin.buffer, out)
