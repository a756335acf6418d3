"""`penstock corpus` and `penstock loadtest`: their options, and what they print.

Exit statuses: 0 done and every SLO met, 1 an SLO was missed or the load broke, 2 it cannot be done as asked; 128 and
the signal's number where one ended it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from ..bench.rig.process import children
from . import report
from .plain import PLAIN
from .questions import CorpusError, Terms, make
from .run import Order, RunError, run
from .scenario import scenarios
from .slo import Limits
from .stand import HAPROXY

CANNOT = 2
#: What is started has sessions of its own and hears none of them: a terminal's end must not leave it behind.
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(CANNOT, f"{self.prog}: {message}\n")


def corpus(argv: Sequence[str]) -> int:
    """`penstock corpus`."""
    usual = Terms()
    parser = _Parser(
        prog="penstock corpus", description="Questions for a load, made from a seed, as JSON lines."
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="where to; - prints it")
    parser.add_argument(
        "--bodies", type=Path, metavar="FILE", help="one lap's bodies as well, a line each, for wrk"
    )
    parser.add_argument(
        "--prompts", type=int, default=usual.prompts, metavar="N", help="different ones (10,000)"
    )
    parser.add_argument(
        "--draws", type=int, default=usual.draws, metavar="N", help="requests in a lap (10,000)"
    )
    parser.add_argument(
        "--hits", type=float, default=usual.hits, metavar="SHARE", help="of draws that come again (0.45)"
    )
    parser.add_argument(
        "--streams",
        type=float,
        default=usual.streams,
        metavar="SHARE",
        help="of questions that ask for a stream (0.2)",
    )
    parser.add_argument(
        "--model",
        action="append",
        type=_model,
        metavar="NAME=WEIGHT",
        help="repeatable (chat-large=0.7 chat-small=0.3)",
    )
    parser.add_argument(
        "--least-bytes", type=int, default=usual.least_bytes, metavar="N", help="of a prompt (100)"
    )
    parser.add_argument(
        "--most-bytes", type=int, default=usual.most_bytes, metavar="N", help="of a prompt (10,000)"
    )
    parser.add_argument(
        "--seed", type=int, default=usual.seed, metavar="N", help="another one, other questions (1)"
    )
    args = parser.parse_args(argv)
    if args.bodies and args.bodies.absolute() == args.file.absolute():
        parser.error(f"{args.file}: FILE and --bodies are the same")
    terms = Terms(
        args.prompts,
        args.draws,
        args.hits,
        args.streams,
        tuple(args.model or usual.models),
        args.least_bytes,
        args.most_bytes,
        args.seed,
    )
    try:
        made = make(terms)
        if str(args.file) == "-":
            for line in made.lines():
                print(line)
        else:
            args.file.write_text("\n".join(made.lines()) + "\n")
        if args.bodies:
            args.bodies.write_text("\n".join(made.questions[n].body for n in made.draws) + "\n")
    except CorpusError as fault:
        return _cannot("corpus", fault)
    except BrokenPipeError:
        raise  # whoever reads has had enough
    except OSError as fault:
        return _cannot("corpus", _what(fault))
    print(
        f"{len(made.questions):,} prompts, {len(made.draws):,} draws, {made.repeats:.1%} come again "
        f"(Zipf {made.alpha:.3f}), seed {made.seed}",
        file=sys.stderr,
    )
    return 0


def loadtest(argv: Sequence[str]) -> int:
    """`penstock loadtest`."""
    known = {
        **{name: one.about for name, one in scenarios().items()},
        **{n: p.about for n, p in PLAIN.items()},
    }
    parser = _Parser(
        prog="penstock loadtest",
        description="Start simulators and gateways on this machine, load them, and judge what came of it.",
        epilog="\n".join(f"  {name:<10} {about}" for name, about in known.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", choices=sorted(known), help="see below")
    parser.add_argument("--rate", type=_factor, default=1.0, metavar="X", help="factor of the full rate (1)")
    parser.add_argument(
        "--time", type=_factor, default=1.0, metavar="X", help="factor of the full length (1)"
    )
    parser.add_argument(
        "--locust", type=_few, default=0, metavar="N", help="by N processes of Locust instead of k6"
    )
    parser.add_argument("--workers", type=_few, default=1, metavar="N", help="of each gateway (1)")
    parser.add_argument(
        "--haproxy",
        nargs="?",
        type=Path,
        const=HAPROXY,
        metavar="FILE",
        help="two gateways behind HAProxy with this configuration (deploy/haproxy/haproxy.cfg)",
    )
    parser.add_argument("--p95-ms", type=_factor, default=5.0, metavar="MS", help="the SLO on latency (5)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the corpus (1)")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where report.html and report.json go (var/loadtest/…)"
    )
    args = parser.parse_args(argv)
    if args.locust and args.name in PLAIN:
        parser.error(f"{args.name} has a generator of its own: no --locust")
    order = Order(
        args.name,
        args.rate,
        args.time,
        args.locust,
        gateways=2 if args.haproxy else 1,
        workers=args.workers,
        haproxy=args.haproxy,
        limits=Limits(p95_ms=args.p95_ms),
        seed=args.seed,
    )
    out = args.out or Path("var/loadtest") / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{args.name}"
    for number in _ENDING:
        signal.signal(number, _ended)
    folder = Path(tempfile.mkdtemp(prefix="penstock-loadtest-"))
    try:
        out.mkdir(parents=True, exist_ok=True)
        result = run(order, folder)
        print(report.text(result), flush=True)  # first: it may be of 24 hours, and the disk be full by now
        (out / "report.json").write_text(report.as_json(result))
        (out / "report.html").write_text(report.as_html(result))
    except (RunError, CorpusError) as fault:
        print(f"penstock loadtest: {fault}", file=sys.stderr)
        return 1
    except OSError as fault:
        return _cannot("loadtest", f"{out}: {fault.strerror}")
    except SystemExit:
        _end_children()
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"report: {out / 'report.html'}")
    return 0 if result.met else 1


def _ended(number: int, frame: Any) -> NoReturn:
    for one in _ENDING:
        signal.signal(one, signal.SIG_IGN)
    print(f"penstock loadtest: ended by {signal.Signals(number).name}", file=sys.stderr)
    raise SystemExit(128 + number)


def _end_children() -> None:
    """One that was being started as the signal came, and is known to nobody yet."""
    for pid in children(os.getpid()):
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)


def _what(fault: OSError) -> str:
    return f"{fault.filename}: {fault.strerror}" if fault.filename else str(fault.strerror)


def _cannot(verb: str, why: object) -> int:
    print(f"penstock {verb}: {why}", file=sys.stderr)
    return CANNOT


def _model(text: str) -> tuple[str, float]:
    name, _, weight = text.partition("=")
    try:
        return name, float(weight or 1)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=WEIGHT") from None


def _bounded(kind: Callable[[str], float], least: float, most: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = -1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {least:g} to {most:g}")
        return value

    return read


_factor = _bounded(float, 1e-6, 1e6)
_few = _bounded(int, 1, 64)


VERBS = {"corpus": corpus, "loadtest": loadtest}
