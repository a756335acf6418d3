"""Responses that are no responses: bytes that break HTTP/1.1 in one way each."""

from __future__ import annotations

_OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
_BODY = b"hello"


def garbage(variant: str) -> tuple[bytes, bool]:
    """The bytes, and whether the connection closes after them."""
    if variant == "trailing":
        return _OK + b"content-length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison", False
    if variant == "early_100s":
        return b"HTTP/1.1 100 Continue\r\n\r\n" * 1000 + _OK + b"content-length: 2\r\n\r\n{}", False
    if variant.startswith("status_"):
        code = variant.removeprefix("status_").encode()
        return b"HTTP/1.1 %b Odd\r\ncontent-length: 5\r\n\r\n%b" % (code, _BODY), True
    return _VARIANTS[variant], True


_VARIANTS = {
    "not_http": b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n\x00\x00\x01\xff\xfe garbage\r\n\r\n",
    "bad_chunk_size": _OK + b"transfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
    "bad_chunk_end": _OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n",
    "bad_content_length": _OK + b"content-length: abc\r\n\r\nhello",
    "negative_content_length": _OK + b"content-length: -5\r\n\r\nhello",
    "two_content_lengths": _OK + b"content-length: 5\r\ncontent-length: 7\r\n\r\nhello",
    "length_and_chunked": _OK
    + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "header_flood": _OK
    + b"".join(b"x-flood-%d: y\r\n" % i for i in range(2000))
    + b"content-length: 5\r\n\r\nhello",
    "long_header": _OK + b"x-long: " + b"y" * 262_144 + b"\r\ncontent-length: 5\r\n\r\nhello",
    "bad_header": _OK + b"bad header\x00name: 1\r\ncontent-length: 5\r\n\r\nhello",
}
