"""The frames between two workers: read the same however they are cut, and refused when they are none."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.cache.digest import Key
from penstock.gateway.errors import Fault, Kind
from penstock.gateway.flight_frames import (
    DATA_LIMIT_BYTES,
    WISH_BYTES,
    BadFrame,
    FrameKind,
    Frames,
    data_frames,
    fault_frame,
    frame,
    head_frame,
    read_fault,
    read_head,
    read_wish,
    wish,
)
from penstock.gateway.ticket import Head

HEAD = Head(200, [("content-type", "text/event-stream"), ("x", "ä")], "text/event-stream", None)
SPOKEN = b"".join(
    [
        head_frame(HEAD),
        *data_frames(b"data: 1\n\n"),
        *data_frames(b""),
        *data_frames(bytes(DATA_LIMIT_BYTES)),
        frame(FrameKind.END),
    ]
)
MEANT = [
    (FrameKind.HEAD, head_frame(HEAD)[5:]),
    (FrameKind.DATA, b"data: 1\n\n"),
    (FrameKind.DATA, b""),
    (FrameKind.DATA, bytes(DATA_LIMIT_BYTES)),
    (FrameKind.END, b""),
]


def taken(frames: Frames) -> list[tuple[FrameKind, bytes]]:
    found = []
    while (one := frames.next()) is not None:
        found.append(one)
    return found


def test_frames_come_out_of_one_read() -> None:
    frames = Frames()
    frames.feed(SPOKEN)
    assert taken(frames) == MEANT
    assert frames.rest_bytes == 0


def test_frames_come_out_of_single_bytes() -> None:
    frames, found = Frames(), []
    spoken = b"".join([head_frame(HEAD), *data_frames(b"abc"), frame(FrameKind.END)])
    for i in range(len(spoken)):
        frames.feed(spoken[i : i + 1])
        found += taken(frames)
    assert found == [MEANT[0], (FrameKind.DATA, b"abc"), (FrameKind.END, b"")]


@given(st.lists(st.integers(1, len(SPOKEN) - 1), max_size=6))
def test_frames_come_out_of_any_cuts(cuts: list[int]) -> None:
    frames, found = Frames(), []
    edges = [0, *sorted(cuts), len(SPOKEN)]
    for start, end in pairwise(edges):
        frames.feed(SPOKEN[start:end])
        found += taken(frames)
    assert found == MEANT


def test_what_follows_a_whole_frame_stays_for_the_next() -> None:
    frames = Frames()
    frames.feed(frame(FrameKind.GONE) + frame(FrameKind.DATA, b"abc")[:6])
    assert taken(frames) == [(FrameKind.GONE, b"")]
    assert frames.rest_bytes == 6
    frames.feed(b"bc")
    assert taken(frames) == [(FrameKind.DATA, b"abc")]


@given(st.binary(max_size=40))
def test_garbage_is_refused_or_waited_for_and_never_kept_beyond_a_frame(garbage: bytes) -> None:
    frames = Frames()
    frames.feed(garbage)
    try:
        found = taken(frames)
    except BadFrame:
        return
    assert b"".join(frame(kind, payload) for kind, payload in found) == garbage[: -frames.rest_bytes or None]


@pytest.mark.parametrize("first", [0, 6, 255])
def test_a_kind_that_is_none_is_refused_at_its_first_byte(first: int) -> None:
    frames = Frames()
    frames.feed(bytes([first]))
    with pytest.raises(BadFrame, match=f"kind {first}"):
        frames.next()


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (FrameKind.HEAD, (256 << 10) + 1),
        (FrameKind.DATA, DATA_LIMIT_BYTES + 1),
        (FrameKind.END, 1),
        (FrameKind.FAULT, (64 << 10) + 1),
        (FrameKind.GONE, 0xFFFF_FFFF),
    ],
)
def test_a_length_over_its_bound_is_refused_before_the_payload_comes(kind: FrameKind, size: int) -> None:
    frames = Frames()
    frames.feed(bytes([kind]) + (size - 1).to_bytes(4, "big"))
    if size - 1 < 1 << 20:
        frames.next()
    frames = Frames()
    frames.feed(bytes([kind]) + size.to_bytes(4, "big"))
    with pytest.raises(BadFrame, match="announced"):
        frames.next()


def test_no_frame_is_made_that_a_reader_would_refuse() -> None:
    with pytest.raises(ValueError, match="DATA"):
        frame(FrameKind.DATA, bytes(DATA_LIMIT_BYTES + 1))
    with pytest.raises(ValueError, match="HEAD"):
        head_frame(Head(200, [("x", "y" * (300 << 10))], "", None))


@given(st.integers(0, 3 * DATA_LIMIT_BYTES))
def test_a_long_piece_is_several_frames_with_the_same_bytes(size: int) -> None:
    data = (bytes(range(256)) * (size // 256 + 1))[:size]
    frames = Frames()
    frames.feed(b"".join(data_frames(data)))
    found = taken(frames)
    assert b"".join(payload for _, payload in found) == data
    assert len(found) == max(1, -(-size // DATA_LIMIT_BYTES))


def test_a_head_comes_back_as_it_was() -> None:
    for body, whole in ((None, False), (b"", True), (b"x", True)):
        said = Head(404, HEAD.headers, "a/b", body)
        back, found = read_head(head_frame(said)[5:])
        assert (back.status, back.headers, back.media, back.body) == (404, HEAD.headers, "a/b", None)
        assert found is whole


@pytest.mark.parametrize("kind", list(Kind))
def test_a_fault_comes_back_as_it_was(kind: Kind) -> None:
    for fault in (
        Fault(kind, "why", param="messages[2]", retry_after_s=1.5, headers=(("X-Queue-Depth", "7"),)),
        Fault(kind, ""),
    ):
        back = read_fault(fault_frame(fault)[5:])
        assert (back.kind, back.message, back.param, back.retry_after_s, back.headers) == (
            *(fault.kind, fault.message, fault.param, fault.retry_after_s, fault.headers),
        )


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode([200, [], "a"]),
        msgspec.msgpack.encode(["200", [], "a", False]),
        msgspec.msgpack.encode([99, [], "a", False]),
        msgspec.msgpack.encode([600, [], "a", False]),
        msgspec.msgpack.encode([200, [["a"]], "a", False]),
    ],
)
def test_a_head_that_is_none_is_refused(payload: bytes) -> None:
    with pytest.raises(BadFrame):
        read_head(payload)


@pytest.mark.parametrize(
    "payload", [b"", b"\x00", msgspec.msgpack.encode(["no such kind", "", None, None, []])]
)
def test_a_fault_that_is_none_is_refused(payload: bytes) -> None:
    with pytest.raises(BadFrame):
        read_fault(payload)


def test_a_wish_is_forty_bytes_and_comes_back() -> None:
    key = Key(bytes(range(32)))
    said = wish(key, 7, (1 << 32) + 9)
    assert len(said) == WISH_BYTES
    assert read_wish(said) == (key, 7, 9)
