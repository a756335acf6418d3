"""Asking a gateway that runs on this machine, for commands: which one, with what key, over which socket.

Strategy: the run directories of this user say what runs, as for `penstock restart`. The question goes to the
controller's Unix socket in there, which serves what the admin port does and is there whatever was done to the
configuration file meanwhile. The admin key is found by its name in what the gateway was told and, by that name, in
the environment it was started with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import msgspec

from . import rundir, store
from .foundation import CONTROL
from .restart import CannotRestart, choose, environ_of

TIMEOUT_S = 15.0
"""A flush waits up to a second for Redis, a scrape of a busy node may take as long."""


class CannotReach(Exception):
    """There is no such gateway, or it cannot be asked; the text is one line for the operator."""


class Refusal(Exception):
    """The gateway answered with an error; the text is its message, `status` its HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else "?" for c in message[:500]))
        self.status = status


def ask(
    file: Path | None,
    port: int | None,
    method: str,
    path: str,
    body: object = None,
    timeout_s: float = TIMEOUT_S,
) -> bytes:
    """The body of the answer to one request. Raises CannotReach, Refusal."""
    found = {owner: folder for folder, owner in rundir.running(rundir.base())}
    try:
        owner = choose(list(found), file, port)
        headers = _key(found[owner], owner.pid)
        if body is not None:
            headers["content-type"] = "application/json"
        transport = httpx.HTTPTransport(uds=str(found[owner] / CONTROL))
        with httpx.Client(transport=transport, timeout=timeout_s, trust_env=False) as client:
            answer = client.request(
                method,
                f"http://controller{path}",
                headers=headers,
                content=msgspec.json.encode(body) if body is not None else None,
            )
    except CannotRestart as fault:
        raise CannotReach(str(fault)) from None
    except OSError as fault:
        raise CannotReach(f"cannot look into the gateway's process: {fault.strerror}") from None
    except httpx.TimeoutException:
        raise CannotReach(
            f"the gateway on port {owner.port} has not answered within {timeout_s:g} s"
        ) from None
    except httpx.TransportError as fault:
        raise CannotReach(f"the gateway on port {owner.port} does not answer: {fault}") from None
    if not answer.is_success:
        raise Refusal(answer.status_code, _message(answer))
    return answer.content


def _key(folder: Path, pid: int) -> dict[str, str]:
    published = store.newest(folder)
    name = published.config.admin.key_env if published is not None else None
    key = environ_of(pid).get(name) if name else None
    return {"authorization": f"Bearer {key}"} if key else {}


def _message(answer: httpx.Response) -> str:
    try:
        said: Any = answer.json()["error"]["message"]
    except (ValueError, LookupError, TypeError):
        said = None
    return said if isinstance(said, str) else f"the gateway answered {answer.status_code}"
