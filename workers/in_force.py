"""The configuration that is in force, as it may be shown: without what might be a secret.

Secrets do not stand in a configuration, but may in what is passed on for others: the environment and the command line
of a server, and the path of a webhook's URL. Of those the names are shown and not the values.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

import msgspec

from ..gateway.config import Config

HIDDEN = "***"
_TELLING = re.compile(r"(?i)(key|token|secret|password|credential|authorization)")


def in_force(config: Config) -> dict[str, Any]:
    """`config` as plain values."""
    shown: dict[str, Any] = msgspec.to_builtins(config)
    for model in shown["models"].values():
        pool = model["pool"]
        if pool is None:
            continue
        if "env" in pool:
            pool["env"] = dict.fromkeys(pool["env"], HIDDEN)
        if "command" in pool:
            pool["command"] = _words(pool["command"])
        if "url" in pool:
            parts = urlsplit(pool["url"])
            host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
            pool["url"] = f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}/{HIDDEN}"
    return shown


def _words(argv: list[str]) -> list[str]:
    """A command line without the values of options whose names tell of a secret."""
    shown: list[str] = []
    hide = False
    for word in argv:
        name, equals, _ = word.partition("=")
        if hide and not word.startswith("--"):
            shown.append(HIDDEN)
        elif equals and _TELLING.search(name):
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(word)
        hide = not equals and word.startswith("-") and bool(_TELLING.search(name))
    return shown
