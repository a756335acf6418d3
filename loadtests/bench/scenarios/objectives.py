"""What is promised of one worker on one core: each objective with its bound, and how a run's figures stand to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..context import Book

RATE = 10_000
#: Connections that are open all the time.
CONNECTIONS = 5000
#: What deploy/kubernetes/gateway.yaml gives a gateway.
GIVEN_MIB = 4096


@dataclass(frozen=True, slots=True)
class Objective:
    """One line: a figure of a run and its bound."""

    name: str
    figure: str
    bound: float
    least: bool = False

    def met(self, found: float) -> bool:
        """Whether a figure is on the right side."""
        return found >= self.bound if self.least else found <= self.bound


OBJECTIVES = (
    *(Objective(f"hit, p{p} ms", f"hit_p{p}_ms", bound) for p, bound in ((50, 0.5), (95, 1.5), (99, 3.0))),
    *(
        Objective(f"miss, added, from outside, p{p} ms", f"added_p{p}_ms", bound)
        for p, bound in ((50, 2.0), (95, 4.0), (99, 8.0))
    ),
    *(
        Objective(f"miss, added, by its own histogram, p{p} ms", f"own_p{p}_ms", bound)
        for p, bound in ((50, 2.0), (95, 4.0), (99, 8.0))
    ),
    Objective("answers a second", "per_s", RATE, least=True),
    Objective("errors, %", "errors_percent", 0.1),
    *(
        Objective(f"connect to a backend, p{p} ms", f"connect_p{p}_ms", bound)
        for p, bound in ((50, 20.0), (95, 80.0), (99, 150.0))
    ),
    Objective("hit rate, %", "hit_percent", 40.0, least=True),
    Objective("processor of the worker's core, %", "cpu_percent", 75.0),
    Objective(f"memory, % of {GIVEN_MIB >> 10} GiB", "memory_percent", 80.0),
    Objective("connections at once", "clients", CONNECTIONS, least=True),
)
#: The objectives that end the climb to the knee: those on time and errors.
OF_THE_KNEE = ("hit_p99_ms", "added_p99_ms", "errors_percent")


def objectives(rate: float) -> list[Objective]:
    """Those of a run: at another rate than the objective's, as many answers as were asked for."""
    return [
        one if one.figure != "per_s" else Objective(one.name, one.figure, round(rate), least=True)
        for one in OBJECTIVES
    ]


def missed(figures: Mapping[str, float]) -> str:
    """Which of those that end the climb a run has missed; empty where none."""
    return ", ".join(o.name for o in OBJECTIVES if o.figure in OF_THE_KNEE and not o.met(figures[o.figure]))


def page(book: Book, labels: Sequence[str]) -> str:
    """The objectives of each run as a table in Markdown, for docs/benchmarks.md."""
    lines = ["| objective | bound | " + " | ".join(labels) + " |", "|---|---|" + "---|" * len(labels)]
    columns = [(label, objectives(book.median("slo", label, "rate"))) for label in labels]
    for number, one in enumerate(OBJECTIVES):
        cells = []
        for label, of_run in columns:
            found = book.median("slo", label, one.figure)
            met = of_run[number].met(found)
            cells.append(
                f"{found:,.4g}" if met and found < 1000 else f"{found:,.0f}" if met else f"**{found:,.4g}**"
            )
        lines.append(
            f"| {one.name} | {'≥' if one.least else '≤'} {one.bound:,g} | " + " | ".join(cells) + " |"
        )
    beside = {
        "requests a second": "rate",
        "processor of the worker for a request, µs": "cpu_us",
        "connections opened to backends": "connects",
        "generator: of its core, %": "generator_cpu_percent",
        "generator: late, p99 ms": "lag_p99_ms",
        "requests that waited for a free connection": "waited",
        "answers shared by several that asked (COALESCED)": "coalesced",
        "stream, whole, p99 ms": "stream_p99_ms",
    }
    for name, figure in beside.items():
        cells = [f"{book.median('slo', label, figure):,.4g}" for label in labels]
        lines.append(f"| {name} | | " + " | ".join(cells) + " |")
    return "\n".join(lines)
