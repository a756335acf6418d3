"""Trace files: what is read, and the one line that says which line is bad."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.loadtests.hitratio import tracefile
from penstock.loadtests.hitratio.tracefile import TraceError, read

SAMPLE = Path(tracefile.__file__).parent / "sample.csv"


def written(folder: Path, data: bytes) -> Path:
    file = folder / "trace.csv"
    file.write_bytes(data)
    return file


def test_the_sample_is_a_trace() -> None:
    trace = read(SAMPLE)
    assert len(trace) > 100
    assert trace.objects < len(trace)
    assert not trace.equal_sizes


def test_keys_are_numbered_in_the_order_of_their_first_request(tmp_path: Path) -> None:
    file = written(tmp_path, b"timestamp,key,size\n0,b,10\n0.5,a,20\n0.5,b,30\n")
    trace = read(file)
    assert list(trace.keys) == [0, 1, 0]
    assert list(trace.sizes) == [10, 20, 30]
    assert trace.name == "trace.csv"


def test_columns_may_be_in_any_order_and_others_are_passed_over(tmp_path: Path) -> None:
    file = written(tmp_path, b"# made by hand\n\nSize, client ,KEY,timestamp\n10,x,k,1\n\n# end\n11,y,k,2\n")
    assert list(read(file).sizes) == [10, 11]


def test_a_gzip_is_read_whatever_its_name(tmp_path: Path) -> None:
    file = written(tmp_path, gzip.compress(b"timestamp,key,size\n1,k,5\n", mtime=0))
    assert list(read(file).sizes) == [5]


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (b"", None, "no requests"),
        (b"timestamp,key,size\n", None, "no requests"),
        (b"time,key,size\n1,k,5\n", 1, "'timestamp' once"),
        (b"timestamp,key,size,key\n1,k,5,k\n", 1, "'key' once"),
        (b"timestamp,key,size\n1,k\n", 2, "2 fields where the header has 3: '1,k'"),
        (b"timestamp,key,size\n1,k,5\nsoon,k,5\n", 3, "the timestamp is no number of seconds: 'soon'"),
        (b"timestamp,key,size\nnan,k,5\n", 2, "no number of seconds"),
        (b"timestamp,key,size\ninf,k,5\n", 2, "no number of seconds"),
        (b"timestamp,key,size\n2,k,5\n1,k,5\n", 3, "the timestamp falls: '1' behind 2"),
        (b"timestamp,key,size\n1,,5\n", 2, "a key has 1 to 256 characters: ''"),
        (b"timestamp,key,size\n1," + b"k" * 257 + b",5\n", 2, "a key has 1 to 256 characters"),
        (b"timestamp,key,size\n1,k,0\n", 2, "no number of bytes from 1 to 1073741824: '0'"),
        (b"timestamp,key,size\n1,k,-5\n", 2, "no number of bytes"),
        (b"timestamp,key,size\n1,k,5.0\n", 2, "no number of bytes"),
        (b"timestamp,key,size\n1,k,1073741825\n", 2, "no number of bytes"),
        (b"timestamp,key,size\n1,k," + b"9" * 4000 + b"\n", 2, "no number of bytes"),
        (b"timestamp,key,size\n1,k,\xc2\xb2\n", 2, "no number of bytes"),
        (b"timestamp,key,size\n1,\xff,5\n", 2, "not UTF-8"),
        (b"timestamp,key,size\n1,k,5" + b" " * 4096 + b"\n", 2, "longer than 4096 bytes"),
        (gzip.compress(b"timestamp,key,size\n1,k,5\n", mtime=0)[:-6], 3, "the gzip is damaged"),
        (
            gzip.compress(b"timestamp,key,size\n1,k,5\n" * 99, mtime=0)[:20] + b"\xff" * 30,
            1,
            "the gzip is damaged",
        ),
        (b"\x1f\x8b\x08rubbish", 1, "the gzip is damaged"),
    ],
)
def test_a_bad_line_is_named_in_one_line(tmp_path: Path, text: bytes, line: int | None, says: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(TraceError) as caught:
        read(file)
    message = str(caught.value)
    assert message.startswith(f"{file} line {line}: " if line else f"{file}: ")
    assert says in message
    assert "\n" not in message
    assert len(message) < len(str(file)) + 200


def test_no_more_lines_are_read_than_asked_for(tmp_path: Path) -> None:
    file = written(tmp_path, gzip.compress(b"timestamp,key,size\n" + b"1,k,5\n" * 1000, mtime=0))
    assert len(read(file, lines=1001)) == 1000
    with pytest.raises(TraceError, match="line 1001: more than 1000 lines"):
        read(file, lines=1000)


@settings(max_examples=200)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_a_trace_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, headed: bool
) -> None:
    file = written(tmp_path_factory.getbasetemp(), (b"timestamp,key,size\n" if headed else b"") + data)
    try:
        assert len(read(file)) > 0
    except TraceError as error:
        assert "\n" not in str(error)
