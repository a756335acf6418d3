"""Which header fields of a backend reach a client, and which media types are event streams."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.gateway.respond import (
    CREDENTIALS,
    HOP_BY_HOP,
    NOT_UPSTREAM,
    HeaderTable,
    is_event_stream,
    named_by_connection,
)


def test_names_come_in_lower_case_and_in_order_with_the_media_type() -> None:
    fields = [(b"X-One", b"1"), (b"Content-Type", b"application/json"), (b"x-one", b"2")]
    assert HeaderTable().downstream(fields) == (
        [("x-one", "1"), ("content-type", "application/json"), ("x-one", "2")],
        "application/json",
    )


@pytest.mark.parametrize("name", sorted(HOP_BY_HOP))
def test_no_hop_by_hop_field_reaches_a_client_in_any_spelling(name: str) -> None:
    table = HeaderTable()
    for spelling in (name, name.title(), name.upper()):
        for _ in range(2):  # learnt, then remembered
            assert table.downstream([(spelling.encode(), b"x")])[0] == []


@pytest.mark.parametrize(
    "name", [b"Content-Length", b"X-Request-Id", b"Set-Cookie", b"Date", b"Server", b"X-Penstock-Cache"]
)
def test_what_is_ours_or_one_clients_alone_is_not_taken_from_a_backend(name: bytes) -> None:
    assert HeaderTable().downstream([(name, b"x")]) == ([], "")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "Authorization",
            "X-Api-Key",
            "Api-Key",
            "X-Goog-Api-Key",
            "X-LiteLLM-Api-Key",
            "Anthropic-Api-Key",
        ),
        "Ocp-Apim-Subscription-Key",
    ],
)
def test_nobodys_credentials_pass_in_either_direction(name: str) -> None:
    assert HeaderTable().downstream([(name.encode(), b"secret")]) == ([], "")
    assert name.lower() in CREDENTIALS
    assert name.lower() in NOT_UPSTREAM


def test_values_that_are_not_ascii_are_dropped() -> None:
    assert HeaderTable().downstream([(b"x-name", "Zoë".encode()), (b"x-other", b"fine")])[0] == [
        ("x-other", "fine")
    ]


def test_a_flood_of_names_is_not_remembered_for_ever() -> None:
    table = HeaderTable()
    for number in range(5000):
        name = b"x-%d" % number
        assert table.downstream([(name, b"1")])[0] == [(name.decode(), "1")]
    assert len(table._names) <= table._REMEMBERED


@given(st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20)), max_size=8))
def test_whatever_a_backend_sends_becomes_ascii_text(fields: list[tuple[bytes, bytes]]) -> None:
    out, media = HeaderTable().downstream(fields)
    assert all(name.isascii() and value.isascii() for name, value in [*out, ("", media)])


@pytest.mark.parametrize(
    ("media", "answer"),
    [
        ("text/event-stream", True),
        ("Text/Event-Stream; charset=utf-8", True),
        ("text/event-stream;charset=utf-8", True),
        ("text/plain", False),
        ("application/json", False),
        ("", False),
    ],
)
def test_event_streams_are_known_by_their_media_type(media: str, answer: bool) -> None:
    assert is_event_stream(media) is answer


def test_a_connection_header_names_further_hop_by_hop_fields() -> None:
    assert named_by_connection(["keep-alive, X-Mine", "x-other"]) == {"keep-alive", "x-mine", "x-other"}
