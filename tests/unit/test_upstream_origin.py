"""Backend URLs."""

import pytest

from penstock.gateway.upstream.origin import Origin


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://10.0.0.1:8000", ("http", "10.0.0.1", 8000, None, "10.0.0.1:8000", "")),
        ("http://vllm", ("http", "vllm", 80, None, "vllm", "")),
        ("http://vllm:80/", ("http", "vllm", 80, None, "vllm", "")),
        ("https://vllm/base/", ("https", "vllm", 443, None, "vllm", "/base")),
        ("https://[::1]:8443/a/b", ("https", "::1", 8443, None, "[::1]:8443", "/a/b")),
        ("http://[::1]", ("http", "::1", 80, None, "[::1]", "")),
        ("unix:///run/vllm.sock", ("http", "localhost", 0, "/run/vllm.sock", "localhost", "")),
        ("unix:///run/a%20b.sock", ("http", "localhost", 0, "/run/a b.sock", "localhost", "")),
    ],
)
def test_a_backend_url_is_taken_apart(url: str, expected: tuple[str, str, int, str | None, str, str]) -> None:
    origin = Origin.parse(url)
    assert (
        origin.scheme,
        origin.host,
        origin.port,
        origin.uds,
        origin.host_header,
        origin.base_path,
    ) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "vllm:8000",
        "ftp://vllm",
        "http://",
        "http:///path",
        "http://vllm:0",
        "http://vllm:65536",
        "http://vllm:",
        "http://vllm:x",
        "http://user:secret@vllm",
        "http://vllm/?q=1",
        "http://vllm/#f",
        "http://vllm?",
        "http://vllm/a b",
        "http://vllm/a\r\nX: y",
        "http://vllm/\x00",
        "http://vll\u00e9",
        "http://.vllm",
        "http://a..b",
        "http://" + "a" * 64,
        "http://[::1",
        "unix://run/vllm.sock",
        "unix:///",
        "unix:///a%00b",
    ],
)
def test_anything_else_is_refused_in_words(url: str) -> None:
    with pytest.raises(ValueError, match=r"a backend URL|a Unix socket|the port of"):
        Origin.parse(url)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://vllm/base", "vllm:443"),
        ("http://[::1]:8000", "[::1]:8000"),
        ("unix:///run/vllm.sock", "/run/vllm.sock"),
    ],
)
def test_a_backend_is_called_by_its_address(url: str, name: str) -> None:
    assert Origin.parse(url).name == name
