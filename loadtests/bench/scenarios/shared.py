"""The shared memory cache against py-lmdb (tests/bench_micro/bench_l1.py): get and put with 1, 2 and 4 processes."""

from __future__ import annotations

import json
import subprocess
import sys

from ..context import Rig, Sample

_LIMIT_S = 600


def l1(rig: Rig) -> None:
    """Look up and store 700 bytes in L1 and in lmdb, in the same processes at the same time, on all cores."""
    module = rig.repository / "tests" / "bench_micro" / "bench_l1.py"
    if not module.exists():
        rig.book.notes.append("l1: no tests/bench_micro/bench_l1.py here")
        return
    out = rig.folder / "l1.json"
    argv = [
        "taskset",
        "-c",
        ",".join(map(str, rig.machine)),
        sys.executable,
        "-m",
        "tests.bench_micro.bench_l1",
    ]
    done = subprocess.run(
        [*argv, "--json", str(out)],
        capture_output=True,
        text=True,
        cwd=rig.repository,
        check=False,
        timeout=_LIMIT_S,
    )
    if not out.exists():
        said = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        rig.book.faults.append(f"l1: {said[-1]}")
        return
    for row in json.loads(out.read_text()):
        name = f"{row['operation']}, {row['processes']} at once"
        for whose in ("l1", "lmdb"):
            figures = {"p50_us": round(row[f"{whose}_ns"] / 1e3, 2)}
            rig.book.samples.append(Sample("l1", f"{whose}: {name}", 0, figures))
        rig.book.at_most(f"l1 / lmdb: {name}", row["ratio"], row["bound"])
