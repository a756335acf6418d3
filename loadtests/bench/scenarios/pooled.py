"""What a pool of servers that sleep costs a request while its servers are awake."""

from __future__ import annotations

import os

from ..context import Rig
from ..rig import payload
from ..subjects import Gateway

_SECRET = "PENSTOCK_BENCH_SECRET"


def pooled(rig: Rig) -> None:
    """Misses of a model whose pool is ready, beside one without a pool before the same backend."""
    url = f"http://127.0.0.1:{rig.backends[payload.MODEL]}"
    model: dict[str, object] = {"max_concurrent": 1100, "backends": [{"url": url}]}
    # the backend takes any POST, so it is told of its own wake
    pool = {"provider": "webhook", "url": f"{url}/v1/wake", "secret_env": _SECRET, "preload": True, "gpus": 0}
    os.environ.setdefault(_SECRET, "bench")
    subjects = [
        Gateway(
            rig.folder,
            {},
            cores=[rig.core],
            machine=rig.machine,
            name=name,
            more={"models": {payload.MODEL: {**model, **more}}, "pools": {"state": str(rig.folder / name)}},
        )
        for name, more in (("always on", {}), ("pool", {"pool": pool}))
    ]
    body = payload.chat_body()
    try:
        for subject in subjects:
            rig.check_replies("pooled", subject, body, payload.MODEL)
        rig.alternate("pooled", list(subjects), body, payload.MODEL)
    finally:
        for subject in subjects:
            subject.stop()
    rig.book.at_least("a ready pool / none", rig.book.ratio("pooled", "pool", "always on"), 0.98)
