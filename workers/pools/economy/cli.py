"""`penstock pools simulate`: its options, and how it says what idle timeouts cost. It returns text; `cli` prints it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from ...table import table
from ...verbs import Failed, Parsers
from ..terms import Terms
from .plot import svg
from .simulate import Outcome, Plant, simulate
from .trace import Service, TraceError, read

IDLE_TIMEOUTS_S = (30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
MOST_TIMEOUTS = 32
DAY_S = 86_400.0


def add_verb(verbs: Parsers) -> None:
    """Put `simulate` among the verbs of `pools`."""
    verb = verbs.add_parser(
        "simulate", help="what idle timeouts would cost, by a trace of requests; asks no gateway"
    )
    verb.add_argument(
        "trace", type=Path, metavar="TRACE", help="CSV: arrival_s or timestamp, duration_s, model"
    )
    plant, terms = Plant(), Terms()
    for name, kind, default, help in (
        ("--start-s", _seconds, plant.start_s, "a cold start takes so long"),
        ("--stop-s", _seconds, plant.stop_s, "a stop"),
        ("--sleep-after-s", _seconds, None, "servers sleep after so long; absent: they do not"),
        ("--sleep-s", _seconds, plant.sleep_s, "to fall asleep takes so long"),
        ("--wake-s", _seconds, plant.wake_s, "to wake up from sleep"),
        ("--min", _count, terms.min, "servers that always run"),
        ("--max", _count, terms.max, "servers at most"),
        ("--max-concurrent", _count, plant.per_server, "requests that a server works on at a time"),
        (
            "--target",
            _count,
            None,
            "requests for each server, above it one more starts; absent: --max-concurrent",
        ),
        ("--gpus", _count, plant.gpus, "GPUs of each server"),
        ("--all-gpus", _count, None, "GPUs there are, for all models; absent: as many as are wanted"),
        ("--max-wait-s", _seconds, plant.max_wait_s, "`pools.max_wait_s`, where models take turns"),
        ("--service-s", _seconds, None, "a request takes so long, where the trace has no duration_s"),
        (
            "--read-per-s",
            _rate,
            Service().read_per_s,
            "prompt tokens a second, where the trace has tokens alone",
        ),
        ("--write-per-s", _rate, Service().write_per_s, "generated tokens a second, of one request"),
    ):
        said = "" if default is None else f" ({default:g})"
        verb.add_argument(name, type=kind, default=default, metavar="N", help=help + said)
    verb.add_argument(
        "--idle-timeouts",
        type=_timeouts,
        default=IDLE_TIMEOUTS_S,
        metavar="S,S,…",
        help=f"those to compare ({','.join(f'{one:g}' for one in IDLE_TIMEOUTS_S)})",
    )
    verb.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw it as well")


def run(args: argparse.Namespace) -> str:
    """The table. Raises Failed."""
    if args.plot is not None and args.plot.suffix != ".svg":
        raise Failed(f"{args.plot}: plots are drawn as SVG: name it FILE.svg")
    if args.max < 1 or args.min > args.max or args.max > 64:
        raise Failed("--max is from 1 to 64 and no less than --min")
    if min(args.max_concurrent, 1 if args.target is None else args.target) < 1:
        raise Failed("--max-concurrent and --target are 1 at least")
    if args.all_gpus is not None and args.gpus > args.all_gpus:
        raise Failed(f"a server of {args.gpus} GPUs has no room on {args.all_gpus}")
    try:
        arrivals = read(args.trace, Service(args.service_s, args.read_per_s, args.write_per_s))
    except TraceError as fault:
        raise Failed(fault) from None
    except OSError as fault:
        raise Failed(f"{args.trace}: {fault.strerror}") from None
    plant = Plant(
        start_s=args.start_s,
        stop_s=args.stop_s,
        wake_s=args.wake_s,
        sleep_s=args.sleep_s,
        per_server=args.max_concurrent,
        gpus=args.gpus,
        all_gpus=args.all_gpus,
        max_wait_s=args.max_wait_s,
    )
    outcomes = []
    for idle_timeout_s in args.idle_timeouts:
        terms = Terms(
            min=args.min,
            max=args.max,
            target=args.max_concurrent if args.target is None else args.target,
            idle_timeout_s=idle_timeout_s,
            sleep_after_s=args.sleep_after_s,
        )
        outcomes.append((idle_timeout_s, simulate(arrivals, terms, plant)))
    if args.plot is not None:
        try:
            args.plot.write_text(svg(args.trace.name, outcomes))
        except OSError as fault:
            raise Failed(f"{args.plot}: {fault.strerror}") from None
    models = len({one.model for one in arrivals})
    head = (
        f"{len(arrivals):,} requests for {models} model{'s' * (models > 1)} in {arrivals[-1].at_s / 3600:.2f} h; "
        f"always on: {outcomes[0][1].always_on_s / 3600:.3f} GPU-hours"
    )
    return f"{head}\n\n{_table(outcomes)}"


def _table(outcomes: Sequence[tuple[float, Outcome]]) -> str:
    rows: list[Sequence[str]] = [
        ("idle timeout", "GPU-hours", "saved", "", "cold starts", "wakes", "wait p50", "p95", "p99")
    ]
    for idle_timeout_s, one in outcomes:
        share = one.saved_s / one.always_on_s if one.always_on_s else 0.0
        rows.append(
            (
                f"{idle_timeout_s:g} s",
                f"{one.gpu_s / 3600:.3f}",
                f"{one.saved_s / 3600:.3f}",
                f"{100 * share:.0f} %",
                str(one.cold_starts),
                str(one.wakes),
                *(f"{one.wait_s(p):.2f} s" for p in (0.5, 0.95, 0.99)),
            )
        )
    return table(rows, right=True)


def _bounded(text: str, kind: Callable[[str], float], least: float, most: float) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from {least:g} to {most:g}")
    return value


def _seconds(text: str) -> float:
    return _bounded(text, float, 0.0, DAY_S)


def _rate(text: str) -> float:
    return _bounded(text, float, 0.001, 1e9)


def _count(text: str) -> int:
    return int(_bounded(text, int, 0, 1_000_000))


def _timeouts(text: str) -> tuple[float, ...]:
    parts = text.split(",")
    if len(parts) > MOST_TIMEOUTS:
        raise argparse.ArgumentTypeError(f"more than {MOST_TIMEOUTS} idle timeouts")
    return tuple(_bounded(part.strip(), float, 0.001, 30 * DAY_S) for part in parts)
