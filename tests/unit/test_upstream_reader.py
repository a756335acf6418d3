"""The response reader: what it accepts, what it refuses, and that the split of the bytes changes nothing."""

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.gateway.upstream.fault import FaultKind
from penstock.gateway.upstream.h1 import (
    FIELD_LIMIT,
    HEAD_LIMIT_BYTES,
    INTERIM_LIMIT,
    MAX_CUTS,
    Refused,
    ResponseReader,
)

OK = b"HTTP/1.1 200 OK\r\n"


@dataclass(frozen=True)
class Result:
    """What a whole conversation came to. ``refused`` wins over everything that was read before."""

    refused: FaultKind | None = None
    complete: bool = False
    status: int = 0
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""


def read(*parts: bytes, eof: bool = False) -> tuple[Result, ResponseReader]:
    """Feed the parts as a connection would: nothing more once the response is complete."""
    reader = ResponseReader()
    reader.begin()
    try:
        for part in parts:
            if reader.done:
                break
            reader.feed(part)
    except Refused as refused:
        reader.close()
        return Result(refused.kind), reader
    if eof:
        reader.eof()
    reader.close()
    return (
        Result(
            None,
            reader.done,
            reader.status,
            tuple(reader.headers) if reader.head_done else (),
            b"".join(reader.pieces),
        ),
        reader,
    )


def every_byte(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def both_ways(data: bytes, eof: bool = False) -> tuple[Result, ResponseReader]:
    whole, reader = read(data, eof=eof)
    split, _ = read(*every_byte(data), eof=eof)
    assert whole == split
    return whole, reader


def test_a_response_with_a_length_ends_with_its_last_byte() -> None:
    result, reader = both_ways(OK + b"Content-Length: 2\r\nX-A: b\r\n\r\nhi")
    assert result == Result(None, True, 200, ((b"Content-Length", b"2"), (b"X-A", b"b")), b"hi")
    assert reader.content_length == 2
    assert reader.reusable


def test_a_chunked_response_ends_with_its_last_chunk_and_loses_extensions_and_trailers() -> None:
    data = (
        OK
        + b"Transfer-Encoding: Chunked\r\n\r\n2;a=b\r\nhi\r\n3\r\n ho\r\n0\r\nX-Late: 1\r\nServer-Timing: x\r\n\r\n"
    )
    result, reader = both_ways(data)
    assert result == Result(None, True, 200, ((b"Transfer-Encoding", b"Chunked"),), b"hi ho")
    assert reader.chunked
    assert reader.reusable


def test_a_body_without_framing_ends_with_the_connection() -> None:
    data = OK + b"X: y\r\n\r\nall of it"
    result, _ = both_ways(data)
    assert not result.complete
    result, reader = both_ways(data, eof=True)
    assert (result.complete, result.body) == (True, b"all of it")
    assert not reader.reusable


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 9\r\n\r\nhi", b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n", b"X: "]
)
def test_the_end_of_the_connection_completes_no_other_response(framing: bytes) -> None:
    result, _ = both_ways(OK + framing, eof=True)
    assert not result.complete


@pytest.mark.parametrize("status", [204, 304])
def test_no_content_and_not_modified_have_no_body_whatever_their_fields_say(status: int) -> None:
    result, reader = both_ways(b"HTTP/1.1 %d X\r\nContent-Length: 5\r\n\r\n" % status)
    assert (result.complete, result.status, result.body) == (True, status, b"")
    assert reader.reusable


def test_informational_responses_are_dropped() -> None:
    data = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    result, _ = both_ways(data + OK + b"Content-Length: 2\r\n\r\nhi")
    assert result == Result(None, True, 200, ((b"Content-Length", b"2"),), b"hi")


def test_endless_informational_responses_are_refused() -> None:
    result, _ = both_ways(b"HTTP/1.1 100 Continue\r\n\r\n" * (INTERIM_LIMIT + 1))
    assert result.refused is FaultKind.PROTOCOL


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 099 Low\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 000 Zero\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 600 High\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 999 High\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 2000 Long\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 20 Short\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 abc X\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 -20 X\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_a_status_nobody_may_relay_is_a_protocol_error(head: bytes) -> None:
    result, _ = both_ways(head)
    assert result.refused is FaultKind.PROTOCOL


SMUGGLING = {
    "length and chunked": b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and length": b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi",
    "a list of lengths": b"Content-Length: 2, 3\r\n\r\nhi",
    "a signed length": b"Content-Length: +2\r\n\r\nhi",
    "a negative length": b"Content-Length: -2\r\n\r\nhi",
    "a hexadecimal length": b"Content-Length: 0x2\r\n\r\nhi",
    "an empty length": b"Content-Length: \r\n\r\nhi",
    "a length with a space in it": b"Content-Length: 1 2\r\n\r\nhi",
    "a length beyond 64 bits": b"Content-Length: 99999999999999999999999\r\n\r\nhi",
    "a space before the colon": b"Content-Length : 2\r\n\r\nhi",
    "another coding before chunked": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked before another coding": b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunked twice in one field": b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "identity, then chunked": b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked, then identity": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "a coding that only looks like chunked": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a quoted coding": b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "a vertical tab in the coding": b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "an unreadable chunk size": b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhi\r\n0\r\n\r\n",
    "a prefixed chunk size": b"Transfer-Encoding: chunked\r\n\r\n0x2\r\nhi\r\n0\r\n\r\n",
    "a signed chunk size": b"Transfer-Encoding: chunked\r\n\r\n+2\r\nhi\r\n0\r\n\r\n",
    "an empty chunk size": b"Transfer-Encoding: chunked\r\n\r\n\r\nhi\r\n0\r\n\r\n",
    "a chunk size beyond 64 bits": b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nhi\r\n0\r\n\r\n",
    "a chunk longer than it said": b"Transfer-Encoding: chunked\r\n\r\n1\r\nhi\r\n0\r\n\r\n",
    "a chunk size ended by a bare LF": b"Transfer-Encoding: chunked\r\n\r\n2\nhi\r\n0\r\n\r\n",
    "a chunk ended by a bare LF": b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\n0\r\n\r\n",
    "a space after a chunk size": b"Transfer-Encoding: chunked\r\n\r\n2 \r\nhi\r\n0\r\n\r\n",
    "a length among the trailers": b"Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n",
    "a folded field": b"X: a\r\n b\r\nContent-Length: 2\r\n\r\nhi",
    "a folded first field": b" X: a\r\nContent-Length: 2\r\n\r\nhi",
    "a bare LF after a field": b"X: a\nContent-Length: 2\r\n\r\nhi",
    "a bare LF instead of the empty line": b"Content-Length: 2\r\n\nhi",
    "a bare CR in a value": b"X: a\rContent-Length: 9\r\nContent-Length: 2\r\n\r\nhi",
    "a NUL in a value": b"X: a\0b\r\nContent-Length: 2\r\n\r\nhi",
    "a NUL in a name": b"X\0: a\r\nContent-Length: 2\r\n\r\nhi",
    "no name": b": a\r\nContent-Length: 2\r\n\r\nhi",
    "no colon": b"Nonsense\r\nContent-Length: 2\r\n\r\nhi",
}


@pytest.mark.parametrize("shape", SMUGGLING)
def test_framing_that_two_readers_could_understand_differently_is_refused(shape: str) -> None:
    result, _ = both_ways(OK + SMUGGLING[shape])
    assert result.refused is FaultKind.PROTOCOL


def test_a_transfer_coding_from_an_old_sender_is_refused() -> None:
    result, _ = both_ways(b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert result.refused is FaultKind.PROTOCOL


@pytest.mark.parametrize(
    "line", [b"HTTP/1.1 200 OK\n", b"ICY 200 OK\r\n", b"http/1.1 200 OK\r\n", b"hello\r\n"]
)
def test_what_is_no_status_line_is_refused(line: bytes) -> None:
    result, _ = both_ways(line + b"Content-Length: 2\r\n\r\nhi")
    assert result.refused is FaultKind.PROTOCOL


@pytest.mark.parametrize(
    "data",
    [
        OK + b"X: " + b"a" * HEAD_LIMIT_BYTES + b"\r\nContent-Length: 0\r\n\r\n",
        OK + b"X: " + b"a" * (2 * HEAD_LIMIT_BYTES),
        b"HTTP/1.1 200 " + b"a" * (2 * HEAD_LIMIT_BYTES),
        OK + b"X: y\r\n" * (FIELD_LIMIT + 1) + b"\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * (FIELD_LIMIT + 1) + b"\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"a" * (2 * HEAD_LIMIT_BYTES),
        OK + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"a" * (2 * HEAD_LIMIT_BYTES),
        b"\r\n" * HEAD_LIMIT_BYTES,
    ],
    ids=[
        "long field",
        "endless field",
        "endless reason",
        "fields",
        "trailers",
        "trailer",
        "extension",
        "lines",
    ],
)
def test_a_head_or_framing_without_end_is_too_large(data: bytes) -> None:
    assert read(data)[0].refused is FaultKind.TOO_LARGE
    pieces = [data[at : at + 1000] for at in range(0, len(data), 1000)]
    assert read(*pieces)[0].refused is FaultKind.TOO_LARGE


def test_a_head_of_the_greatest_size_is_accepted() -> None:
    fields = b"".join(b"X-%03d: %s\r\n" % (number, b"a" * 490) for number in range(FIELD_LIMIT - 1))
    result, _ = read(OK + fields + b"Content-Length: 2\r\n\r\nhi")
    assert (result.complete, len(result.headers)) == (True, FIELD_LIMIT)


@pytest.mark.parametrize(
    "garbage", [b"H", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad", b"\0", b"0\r\n\r\n"]
)
@pytest.mark.parametrize(
    "response",
    [
        OK + b"Content-Length: 2\r\n\r\nhi",
        OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nhi",
    ],
)
def test_bytes_after_the_response_leave_it_as_it_is_and_end_the_connection(
    response: bytes, garbage: bytes
) -> None:
    clean, _ = both_ways(response)
    result, reader = read(response + garbage)
    assert result == clean
    assert result.complete
    assert not reader.reusable


@pytest.mark.parametrize(
    ("head", "reusable"),
    [
        (b"HTTP/1.1 200 OK\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n", False),
        (b"HTTP/1.1 200 OK\r\nConnection: Keep-Alive, Close\r\n", False),
        (b"HTTP/1.0 200 OK\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n", True),
    ],
)
def test_a_connection_is_kept_when_the_server_says_so(head: bytes, reusable: bool) -> None:
    _, reader = both_ways(head + b"Content-Length: 2\r\n\r\nhi")
    assert reader.reusable is reusable


@pytest.mark.parametrize(
    ("value", "expected"),
    [(b"timeout=5", 5.0), (b"max=3, timeout= 75", 75.0), (b"timeout=x", None), (b"max=3", None), (b"", None)],
)
def test_the_servers_keep_alive_time_is_read(value: bytes, expected: float | None) -> None:
    _, reader = both_ways(OK + b"Keep-Alive: " + value + b"\r\nContent-Length: 0\r\n\r\n")
    assert reader.keep_alive_s == expected


def test_one_reader_reads_one_response_after_another() -> None:
    reader = ResponseReader()
    for number in range(3):
        reader.begin()
        reader.feed(OK + b"X: %d\r\nContent-Length: 1\r\n\r\n%d" % (number, number))
        assert reader.done
        assert reader.headers[0] == (b"X", b"%d" % number)
        assert reader.pieces == [b"%d" % number]
    reader.close()


# -- hypothesis ------------------------------------------------------------------------------------

_token = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789-_", min_size=1, max_size=20).map(str.encode)
_value = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=30).map(str.encode)
_field = st.tuples(_token, _value).filter(
    lambda field: field[0].lower() not in (b"content-length", b"transfer-encoding", b"connection", b"upgrade")
)


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    """A response as a server may send it, most of the time a good one."""
    interim = b"HTTP/1.1 100 Continue\r\n\r\n" * draw(st.integers(0, 2))
    status = draw(
        st.one_of(
            st.sampled_from([200, 200, 200, 201, 204, 304, 404, 500, 503, 101, 600]), st.integers(0, 999)
        )
    )
    version = draw(st.sampled_from([b"1.1", b"1.1", b"1.1", b"1.0"]))
    fields = [name + b": " + value for name, value in draw(st.lists(_field, max_size=5))]
    body = draw(st.binary(max_size=200))
    framing = draw(st.sampled_from(["length", "chunked", "close", "both"]))
    if framing in ("length", "both"):
        fields.append(b"Content-Length: %d" % len(body))
    if framing in ("chunked", "both"):
        fields.append(b"Transfer-Encoding: chunked")
        cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=4)))
        pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True) if b > a]
        trailers = b"".join(n + b": " + v + b"\r\n" for n, v in draw(st.lists(_field, max_size=2)))
        body = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces) + b"0\r\n" + trailers + b"\r\n"
    if draw(st.booleans()):
        fields.append(b"Connection: " + draw(st.sampled_from([b"close", b"keep-alive", b"upgrade"])))
    fields = draw(st.permutations(fields))
    head = b"HTTP/%s %03d X\r\n%s" % (version, status, b"".join(field + b"\r\n" for field in fields))
    return interim + head + b"\r\n" + body


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A response with a few bytes replaced, inserted or missing."""
    data = bytearray(draw(responses()))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        with_what = draw(
            st.one_of(st.binary(max_size=3), st.sampled_from([b"\r", b"\n", b"\r\n", b" ", b":", b"0"]))
        )
        data[at : at + draw(st.integers(0, 3))] = with_what
    return bytes(data)


def split_at(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted(cut % (len(data) + 1) for cut in cuts)
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True) if b > a]


_cuts = st.lists(st.integers(0, 4096), max_size=8)


@given(data=st.one_of(responses(), damaged(), st.binary(max_size=300)), cuts=_cuts, eof=st.booleans())
def test_the_split_of_the_bytes_changes_nothing(data: bytes, cuts: list[int], eof: bool) -> None:
    whole, _ = read(data, eof=eof)
    assert read(*every_byte(data), eof=eof)[0] == whole
    assert read(*split_at(data, cuts), eof=eof)[0] == whole


@given(data=responses(), garbage=st.binary(min_size=1, max_size=60), cuts=_cuts)
def test_trailing_garbage_never_changes_a_complete_response(
    data: bytes, garbage: bytes, cuts: list[int]
) -> None:
    clean, _ = read(data)
    dirty, reader = read(data + garbage)
    split, _ = read(*split_at(data + garbage, cuts))
    assert dirty == split
    if clean.complete:
        assert dirty == clean
        # the grammar skips empty lines between messages; anything else is somebody's invention
        assert not reader.reusable or not garbage.strip(b"\r\n")


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=40), max_size=20),
    edges=st.lists(st.integers(0, 2000), max_size=12),
)
def test_chunk_ends_are_noted_however_the_bytes_are_split(chunks: list[bytes], edges: list[int]) -> None:
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    data = OK + b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"
    at = sorted({0, len(data), *(edge for edge in edges if edge < len(data))})
    reader = ResponseReader()
    for _ in range(2):  # the second response of a connection begins at 0 again
        cuts: list[int] = []
        reader.begin(cuts)
        body = b""
        for start, end in itertools.pairwise(at):
            reader.feed(data[start:end])
            body += reader.take()
        assert reader.done
        assert body == b"".join(chunks)
        assert cuts == list(itertools.accumulate(map(len, chunks)))


def test_only_so_many_chunk_ends_are_noted() -> None:
    reader = ResponseReader()
    cuts: list[int] = []
    reader.begin(cuts)
    reader.feed(OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * (MAX_CUTS + 5) + b"0\r\n\r\n")
    assert reader.done
    assert len(reader.take()) == MAX_CUTS + 5
    assert len(cuts) == MAX_CUTS
