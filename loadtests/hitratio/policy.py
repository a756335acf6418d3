"""What every cache in the lab is to whoever replays a trace."""

from __future__ import annotations

from typing import Protocol


class Policy(Protocol):
    """A cache of so many bytes. It is asked for a key, and keeps the answer after a miss, or does not."""

    def request(self, key: int, size: int) -> bool:
        """Ask for `key`, whose packed entry would take `size` bytes if stored now; whether it was there.

        A hit leaves the entry's size as it was stored. An entry larger than the cache is never kept.
        """
        ...
