"""Decode and validate a body."""

from pytest_benchmark.fixture import BenchmarkFixture

from penstock.gateway.parse import Parser

from .material import CHAT, chat


def test_parse_700_bytes(benchmark: BenchmarkFixture) -> None:
    request = benchmark(Parser().parse, CHAT, chat(2))
    assert request.fields is not None


def test_parse_13_kib(benchmark: BenchmarkFixture) -> None:
    request = benchmark(Parser().parse, CHAT, chat(40))
    assert request.fields is not None
