"""Single steps of a request, by pytest-benchmark (tests/bench_micro): each has a line of 100 microseconds."""

from __future__ import annotations

import json
import subprocess
import sys

from ..context import Rig, Sample

_BOUND_US = 100.0


def steps(rig: Rig) -> None:
    """Run tests/bench_micro on the core under test and enter each step's median and mean."""
    files = sorted(map(str, (rig.repository / "tests" / "bench_micro").glob("bench_*.py")))
    if not files:
        rig.book.notes.append("micro: no tests/bench_micro here")
        return
    out = rig.folder / "micro.json"
    argv = ["taskset", "-c", str(rig.core), sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    argv += ["--benchmark-only", "--benchmark-quiet", f"--benchmark-json={out}", *files]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=rig.repository, check=False)
    if done.returncode:
        said = done.stdout.strip().splitlines()
        why = next(
            (line for line in said if line.startswith("E  ")), said[-1] if said else done.stderr[-200:]
        )
        rig.book.faults.append(f"micro: {why.strip()}")
        return
    for found in json.loads(out.read_text())["benchmarks"]:
        name = found["name"].removeprefix("test_").replace("_", " ")
        mean_us, median_us = found["stats"]["mean"] * 1e6, found["stats"]["median"] * 1e6
        figures = {"mean_us": round(mean_us, 2), "p50_us": round(median_us, 2)}
        rig.book.samples.append(Sample("micro", name, 0, figures))
        rig.book.at_most(f"step: {name}, us", median_us, _BOUND_US)
