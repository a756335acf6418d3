"""``make bench``: build the rig, ask the questions, print the table, write the file.

Exit status: 0, or 1 when something answered wrongly (with ``--strict`` also when a goal was missed), 2 when the rig
itself does not stand.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from contextlib import ExitStack
from pathlib import Path

from . import machine, report, scale
from .context import Book, Rig
from .rig import payload
from .rig.nginx import Nginx
from .rig.process import Child, RigError, answers, free_port, raise_file_limit
from .rig.wrk import Wrk
from .scenarios import SCENARIOS
from .subjects import Direct, install_router

_FILES = 65_536


def main() -> int:
    """Run the bench as the command line asks."""
    given = _arguments()
    book = Book()
    limit = raise_file_limit(_FILES)
    if limit < 2 * given.streams + 1000 or limit < given.idle_clients + 1000:
        book.notes.append(f"only {limit} file descriptors: raise the hard limit for the memory scenarios")
    repository = Path.cwd()
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-bench-")))
        if given.scale:
            scale.curve(folder, cores, book, rounds=given.rounds, seconds=given.seconds)
            router = None
        else:
            rig = _build(given, stack, folder, repository, cores, book)
            router = rig.router
            _ask(rig, given.only or list(SCENARIOS))
        file = repository / "var" / "bench" / f"{time.strftime('%Y%m%dT%H%M%S')}.json"
        os.sched_setaffinity(0, cores)
        report.write(book, file, machine.describe(repository, router), vars(given))
    print(report.table(book))
    print(f"\nwritten to {file.relative_to(repository)}")
    missed = given.strict and any(not goal.met for goal in book.goals)
    return 1 if book.faults or missed else 0


def _ask(rig: Rig, names: list[str]) -> None:
    for name in names:
        print(f"{name}: {(SCENARIOS[name].__doc__ or '').splitlines()[0]}", file=sys.stderr, flush=True)
        try:
            SCENARIOS[name](rig)
        except (RigError, OSError) as fault:
            traceback.print_exc()
            rig.book.faults.append(f"{name}: {fault}")


def _build(
    given: argparse.Namespace, stack: ExitStack, folder: Path, repository: Path, cores: list[int], book: Book
) -> Rig:
    core, load_cores = machine.split(cores)
    if core in load_cores:
        book.notes.append("one core: gateway, load and backend share it, the figures mean little")
    nginx = Nginx(folder / "nginx", load_cores)
    stack.callback(nginx.stop)
    paced_port = free_port()
    paced = Child(
        "paced",
        [sys.executable, "-m", f"{__package__}.rig.paced", "--port", str(paced_port)],
        folder / "paced.log",
        cores=load_cores,
    )
    stack.callback(paced.stop)
    paced.until(lambda: answers(paced_port), "listening")
    backends = {
        payload.MODEL: nginx.plain_port,
        payload.STREAM_MODEL: nginx.stream_port,
        payload.PACED_MODEL: paced_port,
    }
    os.sched_setaffinity(0, load_cores)  # the bench's own client is load
    return Rig(
        folder=folder,
        repository=repository,
        wrk=Wrk(folder / "wrk", load_cores),
        core=core,
        load_cores=load_cores,
        machine=cores,
        backends=backends,
        direct=Direct(backends, nginx.child),
        paced_direct=Direct(backends, paced),
        router=_router(given, repository, book),
        rounds=given.rounds,
        seconds=given.seconds,
        streams=given.streams,
        idle_clients=given.idle_clients,
        book=book,
    )


def _router(given: argparse.Namespace, repository: Path, book: Book) -> Path | None:
    if given.no_router or (given.only and not {"miss", "stream"} & set(given.only)):
        return None
    try:
        return install_router(repository / ".venv-router")
    except (RigError, OSError) as fault:
        book.notes.append(str(fault))
        return None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each comparison (5)")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="seconds of load per subject and round (5)"
    )
    parser.add_argument("--only", action="append", choices=list(SCENARIOS), help="just this; may be repeated")
    parser.add_argument("--streams", type=int, default=5000, help="slow streams at once (5000)")
    parser.add_argument("--idle-clients", type=int, default=10_000, help="idle keep-alive clients (10000)")
    parser.add_argument("--no-router", action="store_true", help="leave vllm-router out")
    parser.add_argument("--scale", action="store_true", help="the curve over workers instead")
    parser.add_argument("--strict", action="store_true", help="a missed goal fails the run too")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
