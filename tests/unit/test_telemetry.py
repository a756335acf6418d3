"""What stands between a loop and a slow writer, the file that is written to, and W3C Trace Context."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.gateway.telemetry.line_file import LineFile
from penstock.gateway.telemetry.outlet import Outlet
from penstock.gateway.telemetry.trace_context import parent_of, state_of

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


# ---- the line between loop and thread


def test_what_finds_the_line_full_is_counted_and_what_fits_arrives_in_order() -> None:
    got: list[str] = []
    stuck, taken = threading.Event(), threading.Event()

    def deliver(items: list[str]) -> int:
        taken.set()
        assert stuck.wait(20)
        got.extend(items)
        return 0

    outlet: Outlet[str] = Outlet("test", deliver, most=10, every_s=0.001, batch=2)
    outlet.offer("first", 6, 1)
    assert taken.wait(20)
    outlet.offer("second", 4, 1)  # what is being delivered still counts
    outlet.offer("third", 1, 7)
    stuck.set()
    outlet.close()
    outlet.join(20)
    assert (got, outlet.lost) == (["first", "second"], 7)
    outlet.offer("later", 10, 1)
    assert outlet.lost == 7, "its room is free again"


def test_what_a_delivery_loses_is_counted_however_it_fails() -> None:
    told: list[list[int]] = []

    def deliver(items: list[int]) -> int:
        told.append(items)
        if items == [1]:
            raise ValueError("broken")
        return 2

    outlet: Outlet[int] = Outlet("test", deliver, most=100, every_s=1000, batch=1)
    outlet.offer(1, 1, 5)
    outlet.offer(2, 1, 1)
    outlet.close()
    outlet.join(20)
    assert (told, outlet.lost) == ([[1], [2]], 7)


# ---- the file


def test_a_line_that_was_cut_is_not_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    file = LineFile(str(path))
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:7]))
    assert file.write(b"one 1\ntwo 2\nthree 3\n") == 2
    monkeypatch.setattr(os, "write", real)
    assert file.write(b"four 4\n") == 0
    assert path.read_bytes() == b"one 1\nt\nfour 4\n"
    file.close()


def test_a_pipe_gets_lines_in_pieces_that_nobody_writes_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    sizes: list[bytes] = []
    real = os.write

    def write(fd: int, data: bytes) -> int:
        sizes.append(data)
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    file = LineFile(str(path))
    text = b"".join(b"%d %s\n" % (n, b"x" * 900) for n in range(20)) + b"y" * 5000 + b"\n"
    assert file.write(text) == 0
    assert b"".join(sizes) == os.read(reader, 65536) == text
    assert all(one.endswith(b"\n") for one in sizes)
    assert all(len(one) <= 4096 for one in sizes[:-1])
    assert len(sizes) == 6
    file.close()
    os.close(reader)


def test_a_folder_that_is_gone_is_said_once_and_its_return_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "folder"
    file = LineFile(str(folder / "log"))
    assert [file.write(b"a\nb\n"), file.write(b"c\n")] == [2, 1]
    folder.mkdir()
    assert [file.write(b"d\n"), file.write(b"e\n")] == [0, 0]
    assert [record.getMessage().split()[0] for record in caplog.records] == [
        "access_log_lost",
        "access_log_written",
    ]
    assert (folder / "log").read_bytes() == b"d\ne\n"
    assert (folder / "log").stat().st_mode & 0o777 == 0o640
    file.close()


# ---- trace context


@pytest.mark.parametrize(
    ("value", "sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-03", True),
        (f"cc-{TRACE}-{SPAN}-01", True),
        (f"cc-{TRACE}-{SPAN}-01-what-comes-later", True),
    ],
    ids=["sampled", "not", "random", "newer", "longer"],
)
def test_a_parent_is_read(value: str, sampled: bool) -> None:
    parent = parent_of([value])
    assert parent is not None
    assert (parent.trace_id, parent.span_id, parent.sampled) == (TRACE, SPAN, sampled)


@pytest.mark.parametrize(
    "values",
    [
        [],
        [""],
        [f"00-{TRACE}-{SPAN}-01"] * 2,
        [f"ff-{TRACE}-{SPAN}-01"],
        [f"00-{TRACE}-{SPAN}-01-more"],
        [f"00-{'0' * 32}-{SPAN}-01"],
        [f"00-{TRACE}-{'0' * 16}-01"],
        [f"00-{TRACE.upper()}-{SPAN}-01"],
        [f"00-{TRACE}-{SPAN}-1"],
        [f"00-{TRACE}-{SPAN}"],
        [f"cc-{TRACE}-{SPAN}-01more"],
        [f"cc-{TRACE}-{SPAN}-01-{'x' * 300}"],
        [f"00-{TRACE}-{SPAN}-01\n"],
    ],
    ids=range(13),
)
def test_what_is_malformed_is_no_parent(values: list[str]) -> None:
    assert parent_of(values) is None


@given(st.text(max_size=80))
def test_whatever_comes_is_read_without_a_word(text: str) -> None:
    parent = parent_of([text])
    assert parent is None or text[3:35] == parent.trace_id


def test_a_state_is_passed_on_as_far_as_it_must_be() -> None:
    assert state_of(["a=1,b=2", "c=3"]) == "a=1,b=2,c=3"
    assert state_of([]) == ""
    assert state_of(["a=" + "x" * 600]) == ""
    assert state_of([",".join(f"k{n}=1" for n in range(33))]) == ""
    assert state_of([",".join(f"k{n}=1" for n in range(32))]) != ""
