"""What engines, receivers and servers say, quoted: one line, whatever they send."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.workers.pools.providers.docker_words import image_query, last_line
from penstock.workers.pools.quote import one_line, said


@given(st.text())
def test_a_quoted_text_is_one_printable_line_and_not_long(text: str):
    line = one_line(text)
    assert line.isprintable()
    assert len(line) <= 200
    assert line == line.strip()


@given(st.binary())
def test_of_any_body_and_any_log_something_or_nothing_is_quoted(body: bytes):
    assert said(body) == "" or said(body).startswith(": ")
    assert last_line(body).isprintable()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": {"message": "no room", "code": 500}}', ": no room"),
        (b'{"error": "Unauthorized"}', ": Unauthorized"),
        (b'{"detail": "Not Found"}', ": Not Found"),
        (b'{"message": "No such image: x"}', ": No such image: x"),
        (b"<h1>Bad Gateway</h1>", ": <h1>Bad Gateway</h1>"),
        (b'{"detail": [1]}', ': {"detail": [1]}'),
        (b"", ""),
    ],
    ids=["vllm", "key", "fastapi", "docker", "html", "other", "nothing"],
)
def test_what_is_said_is_found_in_the_shapes_that_are_known(body: bytes, words: str):
    assert said(body) == words


def _frame(text: bytes, stream: int = 1) -> bytes:
    return bytes((stream, 0, 0, 0)) + len(text).to_bytes(4, "big") + text


def test_the_last_line_of_a_log_is_put_together_from_its_frames():
    assert last_line(_frame(b"one\ntw") + _frame(b"o\n") + _frame(b"three\n\n", 2)) == "three"
    assert last_line(_frame(b"one\ntw") + _frame(b"o\n")) == "two"
    assert last_line(_frame(b"cut off")[:-4]) == "cut"
    assert last_line(b"from a\nterminal\r\n") == "terminal"
    assert last_line(b"") == ""


@pytest.mark.parametrize(
    ("image", "query"),
    [
        ("vllm", {"fromImage": "vllm", "tag": "latest"}),
        ("vllm:v1", {"fromImage": "vllm:v1"}),
        ("host:5000/a/vllm", {"fromImage": "host:5000/a/vllm", "tag": "latest"}),
        ("a/vllm@sha256:0f", {"fromImage": "a/vllm@sha256:0f"}),
    ],
    ids=["bare", "tag", "registry", "digest"],
)
def test_an_image_without_a_tag_is_the_latest_and_not_all_of_them(image: str, query: dict[str, str]):
    assert image_query(image) == query
