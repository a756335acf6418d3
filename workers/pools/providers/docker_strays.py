"""Containers of models that are no longer configured, or at another engine: nobody else would end them.

Strategy: a note in the state folder for each engine at which containers were made; at the start of a controller each
of those is asked for this gateway's, and those that no pool wants are stopped, with the time that each was made with.
An engine that is away is asked again, less and less often; a note goes when nothing of the gateway is left there.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec

from .base import ProviderFault
from .docker_engine import DockerEngine, segment
from .docker_words import GATEWAY, gateway_label, pools_of

log = logging.getLogger(__name__)

_FOLDER = "docker"
_FIRST_PAUSE_S, _MOST_PAUSE_S = 0.5, 60.0
_STOP_S = 600.0
_MOST_NOTE_BYTES = 4096


def note_engine(state: Path, socket: str) -> None:
    """Remember, for later controllers, that there may be containers at this engine. Raises ProviderFault."""
    path = _note(state, socket)
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_text(socket)
    except OSError as fault:
        raise ProviderFault(f"docker: cannot write to the state folder: {fault.strerror}") from None


async def end_strays(state: Path, wanted: Mapping[str, str]) -> None:
    """End this gateway's containers of pools that are not in `wanted`, each with its engine's socket."""
    notes = await asyncio.to_thread(_notes, state)
    await asyncio.gather(*(_end_at(state, socket, wanted) for socket in notes))


async def _end_at(state: Path, socket: str, wanted: Mapping[str, str]) -> None:
    engine = DockerEngine(socket)
    pause = _FIRST_PAUSE_S
    said = False
    try:
        while True:
            try:
                if not await _ended(engine, socket, gateway_label(state), wanted):
                    _note(state, socket).unlink(missing_ok=True)
                return
            except (ProviderFault, OSError) as fault:
                if not said:
                    log.warning("docker_strays_unknown socket=%s: %s", socket, fault)
                    said = True
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MOST_PAUSE_S)
    finally:
        await engine.close()


async def _ended(engine: DockerEngine, socket: str, gateway: str, wanted: Mapping[str, str]) -> bool:
    """End what nobody wants; whether anything may be there that somebody wants."""
    await engine.negotiate()
    filters = msgspec.json.encode({"label": [f"{GATEWAY}={gateway}"]}).decode()
    query = {"all": "true", "filters": filters}
    answer = await engine.call("GET", "/containers/json", query, what="list containers")
    found = pools_of(answer.json())
    for name, ident in found:
        if wanted.get(name) == socket:
            continue
        log.info("docker_stray_ended pool=%s container=%s", name, ident[:12])
        path = f"/containers/{segment(ident)}"
        await engine.call(
            "POST", f"{path}/stop", accept=(204, 304, 404), timeout_s=_STOP_S, what=f"stop {ident[:12]}"
        )
        await engine.call(
            "DELETE",
            path,
            {"force": "true", "v": "true"},
            accept=(204, 404, 409),
            what=f"remove {ident[:12]}",
        )
    return socket in wanted.values()


def _notes(state: Path) -> list[str]:
    try:
        return [
            path.read_bytes()[:_MOST_NOTE_BYTES].decode("utf-8", "replace")
            for path in sorted((state / _FOLDER).iterdir())
        ]
    except OSError:
        return []


def _note(state: Path, socket: str) -> Path:
    return state / _FOLDER / hashlib.sha256(socket.encode()).hexdigest()[:16]
