"""Make a client's answer of a backend's: header fields, the watch on a stream's end, an error's body."""

from pytest_benchmark.fixture import BenchmarkFixture

from penstock.gateway.dialects import WORDS
from penstock.gateway.errors import Fault, Kind
from penstock.gateway.respond import HeaderTable

from .material import CHAT

_FIELDS = [
    (b"date", b"Mon, 01 Jan 2024 00:00:00 GMT"),
    (b"server", b"uvicorn"),
    (b"content-length", b"640"),
    (b"content-type", b"application/json"),
    (b"x-request-id", b"0123456789abcdef"),
]
_EVENT = (
    b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}\n\n'
)


def test_respond_header_fields(benchmark: BenchmarkFixture) -> None:
    fields, media = benchmark(HeaderTable().downstream, _FIELDS)
    assert fields == [("content-type", "application/json")]
    assert media == "application/json"


def test_respond_stream_event(benchmark: BenchmarkFixture) -> None:
    end = WORDS[CHAT.dialect].stream_end()
    benchmark(end.feed, _EVENT)
    assert not end.terminal()


def test_respond_with_an_error(benchmark: BenchmarkFixture) -> None:
    words = WORDS[CHAT.dialect]
    fault = Fault(Kind.MODEL_NOT_FOUND, "the model 'x' does not exist", param="model")
    assert b"model" in benchmark(words.error_body, fault)
