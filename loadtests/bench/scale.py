"""``make bench-scale``: requests a second over 1 … N workers, on a machine with cores enough.

Strategy: workers take the first cores, load generator and backends the rest; one backend process for each worker's
share, so that neither is the limit before the workers are. On few cores the curve is short: the last point leaves at
least a quarter of the cores to the load.
"""

from __future__ import annotations

import statistics
from math import ceil
from pathlib import Path

from .context import Book, Sample
from .rig import payload
from .rig.nginx import Nginx
from .rig.wrk import Wrk
from .subjects import Gateway

_WORKERS_PER_BACKEND = 3


def curve(folder: Path, cores: list[int], book: Book, *, rounds: int, seconds: float) -> None:
    """Measure each number of workers in turn, ``rounds`` times over, and enter rate and efficiency."""
    most = max(1, len(cores) - ceil(len(cores) / 4))
    body = payload.chat_body()
    for number in range(rounds):
        for count in range(1, most + 1):
            rest = cores[count:] or cores
            backends = min(len(rest), ceil(count / _WORKERS_PER_BACKEND))
            nginxes = [Nginx(folder / f"nginx{n}", [rest[-1 - n]]) for n in range(backends)]
            load_cores = rest[: len(rest) - backends] or rest
            gateway = None
            try:
                gateway = _gateway(folder, nginxes, cores, count)
                wrk = Wrk(folder / "wrk", load_cores)
                url = gateway.url(payload.MODEL)
                wrk.run(url, body, connections=64 * count, seconds=1)
                counted = gateway.settled()
                load = wrk.run(url, body, connections=64 * count, seconds=seconds)
                counted = gateway.settled() - counted
                if not load.requests <= counted <= load.requests + 64 * count:
                    book.faults.append(f"{count} workers counted {counted}, wrk saw {load.requests}")
                if load.status_errors or load.socket_errors:
                    book.faults.append(f"{count} workers: {load.status_errors} + {load.socket_errors} errors")
                name = f"{count} workers"
                book.samples.append(Sample("scale", name, number, load.as_dict()))
            finally:
                if gateway is not None:
                    gateway.stop()
                for nginx in nginxes:
                    nginx.stop()
    one = book.median("scale", "1 workers", "per_s")
    for count in range(2, most + 1):
        rates = book.of("scale", f"{count} workers", "per_s")
        if rates and one:
            share = statistics.median(rates) / one / count
            book.notes.append(f"{count} workers carry {share:.0%} of {count} times what one carries")
    if most == 1:
        book.notes.append(f"{len(cores)} cores are too few for a curve: one point")


def _gateway(folder: Path, nginxes: list[Nginx], cores: list[int], count: int) -> Gateway:
    backends = [{"url": f"http://127.0.0.1:{nginx.plain_port}"} for nginx in nginxes]
    models = {payload.MODEL: {"max_concurrent": 2000, "backends": backends}}
    return Gateway(
        folder, {}, cores=cores[:count], machine=cores, name=f"scale-{count}", more={"models": models}
    )
