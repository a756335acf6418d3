"""Secrets do not belong into a document that every node reads and whose versions are kept.

Keys that end in `_env` name variables, so there is no place meant for a secret; what is looked for is one in a place
that was meant for something else. What is found is never quoted. No pattern goes over a line again and again: it may be
as long as the document, and the controllers of all nodes wait for it.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .faults import ConfigError

_SHAPES = re.compile(
    r"""\bsk-[A-Za-z0-9_-]{12,} | \bhf_[A-Za-z0-9]{12,} | \bAKIA[0-9A-Z]{16}\b | \bgh[opsur]_[A-Za-z0-9]{20,}
    | \bxox[abp]-[A-Za-z0-9-]{10,} | \beyJ[\w-]{10,200}+\.[\w-]{10} | -----BEGIN\ [A-Z ]*PRIVATE\ KEY
    | (?i:\bbearer\s+[A-Za-z0-9._~+/-]{12,}) | ://[^/\s@:]*+:[^/\s@]++@""",
    re.VERBOSE,
)
_NAMES = re.compile(r"(?i)(^|[-_])(keys?|token|secrets?|passwords?|passwd|credentials?)$")


def refuse_secrets(name: str, text: str, raw: Mapping[str, Any]) -> None:
    """Raise ConfigError where `text`, which parses to `raw`, has what looks like one; its comments count."""
    for number, line in enumerate(text.splitlines(), 1):
        if _SHAPES.search(line):
            raise _fault(name, f"line {number}")
    for path in _told(raw):
        raise _fault(name, path)


def _fault(name: str, place: str) -> ConfigError:
    return ConfigError(
        name,
        place,
        "this looks like a secret",
        "set a variable where the gateway runs, and name it in an `_env` key",
    )


def _told(raw: Mapping[str, Any]) -> Iterator[str]:
    """Where the environment or the command line of a pool has the value of something that is called a secret."""
    models = raw.get("models")
    for model, told in models.items() if isinstance(models, dict) else ():
        pool = told.get("pool") if isinstance(told, dict) else None
        if not isinstance(pool, dict):
            continue
        environ, words = pool.get("env"), pool.get("command")
        for variable, value in environ.items() if isinstance(environ, dict) else ():
            if value and _NAMES.search(str(variable)):
                yield f"$.models.{model}.pool.env.{variable}"
        argv = [str(word) for word in words] if isinstance(words, list) else []
        for index, word in enumerate(argv):
            option, equals, value = word.partition("=")
            if not option.startswith("-") or not _NAMES.search(option):
                continue
            following = argv[index + 1] if index + 1 < len(argv) else ""
            if value if equals else following and not following.startswith("-"):
                yield f"$.models.{model}.pool.command[{index}]"
