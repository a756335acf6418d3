"""What trust costs: API keys, limits, admission, breakers and least connections over four backends, all on."""

from __future__ import annotations

import hashlib
import json
import secrets
from pathlib import Path

from ..context import Rig
from ..rig import payload
from ..subjects import Echo, Gateway
from .cached import KEYS, L1_SIZE, all_were, body_of_keys, fill_with

_BACKENDS = 4
#: Limits that are counted on every request and met by none.
_LIMITS = {"rpm": 100_000_000, "tpm": 1_000_000_000, "concurrent": 10_000}


def governed(rig: Rig) -> None:
    """Cacheable misses and hits of clients with an API key that has every kind of limit."""
    key, file = a_key(rig.folder)
    port = rig.backends[payload.MODEL]
    backends = [{"url": f"http://127.0.0.1:{port}/{number}"} for number in range(_BACKENDS)]
    more: dict[str, object] = {
        "cache": {"l1": {"size": L1_SIZE}},
        "keys": {"file": str(file)},
        "models": {payload.MODEL: {"max_concurrent": 1100, "backends": backends}},
    }
    body = body_of_keys(payload.MODEL)
    gateway = Gateway(rig.folder, {}, cores=[rig.core], machine=rig.machine, more=more)
    echo = Echo(rig.folder, rig.core)
    try:
        rig.alternate("governed miss", [echo, gateway], body, payload.MODEL, keys=0, bearer=key)
        all_were(rig, gateway, "MISS", "governed miss")
        before = gateway.metrics()
        fill_with(gateway, payload.MODEL, bearer=key)
        rig.alternate("governed hit", [echo, gateway], body, payload.MODEL, keys=KEYS, bearer=key)
        all_were(rig, gateway, "HIT-L1", "governed hit", since=before)
    finally:
        echo.stop()
        gateway.stop()
    book = rig.book
    book.at_least("cacheable miss with all on / echo", book.ratio("governed miss", "gateway", "echo"), 0.40)
    book.at_least("hit with all on / echo", book.ratio("governed hit", "gateway", "echo"), 0.65)


def a_key(folder: Path) -> tuple[str, Path]:
    """Return a key that has every kind of limit, and the file that has its hash."""
    key = f"sk-{secrets.token_urlsafe(32)}"
    file = folder / "keys.yaml"
    digest = hashlib.sha256(key.encode()).hexdigest()
    file.write_text(
        json.dumps({"keys": {"bench": {"hash": f"sha256:{digest}", "tenant": "bench", **_LIMITS}}})
    )
    file.chmod(0o600)
    return key, file
