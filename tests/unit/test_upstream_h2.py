"""The HTTP/2 session byte by byte: however the reads are cut, the exchanges come out the same."""

import itertools

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.gateway.upstream.h1 import Refused
from penstock.gateway.upstream.h2 import Session
from penstock.gateway.upstream.h2_head import request_fields

HEAD = b"POST /v1/x HTTP/1.1\r\nHost: backend\r\nContent-Length: 2\r\nConnection: x-a\r\nX-A: 1\r\nTE: gzip\r\n\r\n"


def spoken() -> tuple[Session, list[object], bytes]:
    """A session with three exchanges, and all that a server says to them."""
    session = Session("http", 100)
    exchanges = [session.start(HEAD, b"ab") for _ in range(3)]
    session.upload(1 << 20)
    server = H2Connection(H2Configuration(client_side=False, header_encoding=None))
    server.initiate_connection()
    server.receive_data(session.outgoing())
    for number, size in ((1, 10), (3, 20_000), (5, 0)):
        server.send_headers(number, [(b":status", b"200"), (b"x", b"y" * 300)], end_stream=not size)
        for at in range(0, size, 9000):
            last = at + 9000 >= size
            server.send_data(number, b"z" * min(9000, size - at), end_stream=last, pad_length=7)
    server.ping(b"12345678")
    return session, list(exchanges), server.data_to_send()


@given(st.lists(st.integers(0, 21_000), max_size=40))
@settings(max_examples=60, deadline=None)
def test_how_the_reads_are_cut_changes_nothing(cuts: list[int]) -> None:
    session, exchanges, data = spoken()
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        session.receive(data[start:end])
    bodies = [exchange.take() for exchange in exchanges]  # type: ignore[attr-defined]
    assert bodies == [b"z" * 10, b"z" * 20_000, b""]
    assert all(exchange.done and exchange.status == 200 for exchange in exchanges)  # type: ignore[attr-defined]
    assert not session.exchanges
    assert session.outgoing()  # the acknowledgements and the answer to the ping


@given(st.integers(0, 20_000), st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_any_byte_may_be_wrong_and_nothing_but_a_refusal_comes_of_it(place: int, value: int) -> None:
    session, _, data = spoken()
    wrong = bytearray(data)
    wrong[place % len(data)] = value
    try:
        session.receive(bytes(wrong))
    except Refused:
        session.outgoing()


def test_a_request_head_becomes_a_field_list() -> None:
    assert [tuple(field) for field in request_fields(HEAD, b"https")] == [
        *((b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"backend"), (b":path", b"/v1/x")),
        (b"content-length", b"2"),
    ]
    secret = request_fields(b"GET / HTTP/1.1\r\nAuthorization: Bearer x\r\nA: b\r\n\r\n", b"http")
    assert [field.indexable for field in secret[4:]] == [False, True]


def test_one_frame_at_a_time_is_gathered_and_none_is_over_16_kib() -> None:
    session, _, data = spoken()
    session.receive(data[:9])
    with pytest.raises(Refused):
        Session("http", 1).receive(b"\x00\x40\x01\x04\0\0\0\0\0")
