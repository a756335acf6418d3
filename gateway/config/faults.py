"""The one way a configuration is refused: a line with the place, what is wrong there, and the likely fix."""

from collections.abc import Iterable
from difflib import get_close_matches

Fault = tuple[str, str, str]
"""The place, what is wrong there, the likely fix."""


class ConfigError(Exception):
    """A configuration that cannot be used, as one line: `file: $.place: what is wrong; likely fix`.

    path: empty where it is the file itself that cannot be read.
    """

    def __init__(self, name: str, path: str, what: str, fix: str) -> None:
        place = f"{path}: " if path else ""
        line = f"{name}: {place}{what}; {fix}"
        super().__init__("".join(c if c.isprintable() else "?" for c in line))
        self.name = name
        self.path = path
        self.what = what
        self.fix = fix


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The known word nearest to `word`, or None when none is near."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.7)
    return near[0] if near else None


def show(value: object) -> str:
    """A value as an error may quote it: short, on one line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
