"""A document that gateways share, put into a real Redis by the command itself."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import httpx
import yaml

from penstock.workers.cli import main

from .gateway import Gateway
from .procs import wait_until
from .redis import RedisServer

KEY = "penstock:config"


class Documents:
    """Versions of the document, pushed with the file of a node; `now` is the last one."""

    def __init__(self, file: Path, folder: Path, now: dict[str, Any]) -> None:
        self.file = file
        self.now = now
        self._path = folder / "document.yaml"

    def verb(self, *words: str) -> int:
        """`penstock config …` with the node's file; its exit status."""
        return main(["config", *words, "-c", str(self.file)])

    def write(self, document: dict[str, Any] | str) -> Path:
        """A file with it."""
        text = document if isinstance(document, str) else yaml.safe_dump(document, sort_keys=False)
        self._path.write_text(text)
        return self._path

    def push(self, document: dict[str, Any] | str, *words: str) -> int:
        """`penstock config push`; its exit status."""
        return self.verb("push", str(self.write(document)), *words)

    def change(self, **sections: Any) -> None:
        """Push `now` with other sections; those of a model are put together with what it has."""
        new = copy.deepcopy(self.now)
        for name, value in sections.items():
            if name == "models":
                for model, keys in value.items():
                    new["models"][model] = {**new["models"].get(model, {}), **keys}
            else:
                new[name] = value
        assert self.push(new) == 0
        self.now = new


def told(gate: Gateway) -> dict[str, Any]:
    """What its admin port says of itself."""
    answer = httpx.get(f"{gate.admin_url}/gateway/status", timeout=20, trust_env=False)
    answer.raise_for_status()
    said: dict[str, Any] = answer.json()
    return said


def version(gate: Gateway) -> str | None:
    """The document's version in force there."""
    found: str | None = told(gate)["sources"]["store"]["version"]
    return found


def everywhere(number: int, *gates: Gateway, workers: int = 2) -> None:
    """Wait until this version is in force in every worker of each."""
    for gate in gates:
        wait_until(lambda gate=gate: version(gate) == str(number), what=f"version {number}")  # type: ignore[misc]
        # a worker may go on to the next generation at once
        wait_until(lambda gate=gate: _loaded(gate) == workers, what="every worker")  # type: ignore[misc]


def _loaded(gate: Gateway) -> int:
    """How many workers have said that they have the generation that is in force."""
    line = f"configuration_loaded generation={told(gate)['generation']}\n"
    return gate.log().count(line)


def raw(redis: RedisServer, text: str, number: int, *, bell: bool = True) -> None:
    """Put a text there as nobody who checks would."""
    document = json.dumps({"number": number, "text": text, "at": 0.0, "by": "", "note": ""})
    redis.command("HSET", KEY, "head", f"{number}-0123abcd", f"doc:{number}", document)
    if bell:
        redis.command("PUBLISH", KEY, "")


def loads_s(gate: Gateway) -> dict[int, list[float]]:
    """For each generation, when each worker had it, in seconds of the day."""
    found: dict[int, list[float]] = {}
    for hour, minute, second, generation in re.findall(
        r"T(\d\d):(\d\d):([\d.]+)Z \S+ worker-\S+ \S+ configuration_loaded generation=(\d+)", gate.log()
    ):
        found.setdefault(int(generation), []).append(int(hour) * 3600 + int(minute) * 60 + float(second))
    return found
