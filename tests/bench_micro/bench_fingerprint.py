"""Canonical encoding and digest of a parsed body."""

from pytest_benchmark.fixture import BenchmarkFixture

from penstock.cache.digest import prefix
from penstock.gateway.fingerprint import fingerprint
from penstock.gateway.parse import Parser

from .material import CHAT, MODEL, chat

_HEAD = prefix(b"1", b"default", MODEL.encode(), b"1", CHAT.path.encode())


def test_fingerprint_700_bytes(benchmark: BenchmarkFixture) -> None:
    key = benchmark(fingerprint, Parser().parse(CHAT, chat(2)), _HEAD, MODEL, "")
    assert isinstance(key, bytes)


def test_fingerprint_13_kib(benchmark: BenchmarkFixture) -> None:
    key = benchmark(fingerprint, Parser().parse(CHAT, chat(40)), _HEAD, MODEL, "")
    assert isinstance(key, bytes)


def test_fingerprint_that_ends_in_a_veto(benchmark: BenchmarkFixture) -> None:
    benchmark(fingerprint, Parser().parse(CHAT, chat(2, temperature=0.7)), _HEAD, MODEL, "")
