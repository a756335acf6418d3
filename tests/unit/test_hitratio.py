"""The lab itself, and the bound it is there for: L1 hits as much as exact LRU, less one point at most.

Nothing in here depends on time: sequences come from a seed, and L1's clock is the lab's.
"""

from __future__ import annotations

import gzip
import os
import sys
from array import array
from pathlib import Path
from xml.etree import ElementTree

import pytest

from penstock.loadtests.corpus import Trace
from penstock.loadtests.hitratio import tracefile
from penstock.loadtests.hitratio.corpora import corpora
from penstock.loadtests.hitratio.lab import BOUND, LRU, REACHED, l1_name, measure, working_set_bytes
from penstock.loadtests.hitratio.lru import Lru
from penstock.loadtests.hitratio.shared import HEAD_BYTES, SharedL1, largest_entry

from ..support.procs import run

MADE = corpora(0.04, 3)
SAMPLE = Path(tracefile.__file__).parent / "sample.csv"


@pytest.mark.parametrize("fraction", [0.05, 0.25])
@pytest.mark.parametrize("name", ["zipf-0.7", "zipf-1.1", "scans", "drift", "drift-equal", "loop"])
def test_l1_hits_as_much_as_exact_lru_less_one_point_at_most(name: str, fraction: float) -> None:
    row = measure(MADE[name](), fraction, offline=False)
    assert not row.faults
    points = row.points(l1_name(1))
    assert points is not None
    assert points >= -1.0, row


def test_four_workers_in_turn_hit_as_much_as_one() -> None:
    row = measure(MADE["zipf-0.9"](), 0.1, workers=(1, 4), offline=False)
    assert row.ratios[l1_name(4)] == pytest.approx(row.ratios[l1_name(1)], abs=0.01)


def test_no_policy_is_above_the_bound_and_offline_is_above_lru() -> None:
    for name in ("zipf-0.9", "zipf-0.9-equal"):
        row = measure(MADE[name](), 0.1)
        assert max(row.ratios.values()) == row.ratios[BOUND] >= row.ratios[REACHED] > row.ratios[LRU] + 0.1
        assert row.exact == (name == "zipf-0.9-equal")
        assert row.exact == (row.ratios[BOUND] == row.ratios[REACHED])


def test_l1_has_no_byte_more_than_lru_is_given() -> None:
    for capacity in (1 << 20, 5_000_000, (64 << 20) + 1):
        with SharedL1(capacity, largest_entry(capacity), 1) as l1:
            assert 0.9 * capacity < l1.geometry.total_bytes <= capacity


def test_l1_and_lru_hit_alike_where_everything_fits() -> None:
    trace = Trace("fits", array("Q", [1, 2, 3, 1, 2, 3, 4, 1]), array("Q", [100] * 8))
    lru = Lru(1 << 20)
    with SharedL1(1 << 20, largest_entry(1 << 20), 2) as l1:
        for key, size in zip(trace.keys, trace.sizes, strict=True):
            assert l1.request(key, size + HEAD_BYTES) == lru.request(key, size + HEAD_BYTES)
    assert working_set_bytes(trace) == 4 * (100 + HEAD_BYTES)


def test_a_cache_that_is_too_small_for_l1_says_so_and_the_others_go_on() -> None:
    row = measure(MADE["zipf-0.9-equal"](), 0.0002)
    assert "MiB" in row.faults[l1_name(1)]
    assert row.points(l1_name(1)) is None
    assert LRU in row.ratios


def test_the_command_prints_the_table_and_draws_the_plot(tmp_path: Path) -> None:
    zipped = tmp_path / "sample.csv.gz"
    zipped.write_bytes(gzip.compress(SAMPLE.read_bytes()))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "penstock.loadtests.hitratio", "--workers", "1", "--out", str(out)]
    status, output = run([*command, "--sizes", "0.4", "0.6", "--jobs", "1", str(zipped)], timeout_s=100)
    assert status in (0, 1), output
    table = (out / "table.txt").read_text()
    assert "sample.csv.gz" in table
    assert "40.0%" in table
    assert table in output
    drawing = ElementTree.fromstring((out / "hitratio.svg").read_text())
    words = ["".join(text.itertext()) for text in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert {"lru", "sieve", "s3-fifo", "l1", "offline", "bound", "sample.csv.gz", "40 %", "60 %"} <= set(
        words
    )


def test_a_bad_trace_file_ends_the_command_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "bad.csv"
    file.write_text("timestamp,key,size\n1,k,none\n")
    status, output = run(
        [sys.executable, "-m", "penstock.loadtests.hitratio", os.fspath(file)], timeout_s=100
    )
    assert status == 2
    assert output.splitlines() == [
        f"{file} line 2: the size is no number of bytes from 1 to 1073741824: 'none'"
    ]
