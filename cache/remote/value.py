"""What stands under a key in Redis: an entry, plain or compressed, or the lease of whoever makes it.

    entry, plain   "ps1P"  the packed entry
    entry, zstd    "ps1Z"  one zstd frame with its content size (RFC 8878), the packed entry in it
    lease          "ps1L"  16 bytes: the node that asked upstream and will store the entry

The number is the version of this layout. Anything else is foreign, and so a miss. Whether the entry is what it says is
its own checksum's business.
"""

from __future__ import annotations

import zstandard

NODE_BYTES = 16

_PLAIN = b"ps1P"
_ZSTD = b"ps1Z"
_LEASE = b"ps1L"
_HEAD = len(_PLAIN)
_LEVEL = 1  # fast; levels above save little on JSON

OVERHEAD_BYTES = _HEAD
"""By how much a stored value may be longer than its entry."""


def lease_of(node: bytes) -> bytes:
    """The lease of a node. Raises ValueError unless its name has 16 bytes."""
    if len(node) != NODE_BYTES:
        raise ValueError(f"a node's name has {NODE_BYTES} bytes, not {len(node)}")
    return _LEASE + node


def is_lease(value: bytes) -> bool:
    """Whether this is anybody's lease."""
    return len(value) == _HEAD + NODE_BYTES and value.startswith(_LEASE)


class Values:
    """Wraps and unwraps entries of at most ``max_bytes``; those longer than ``compress_above`` are compressed.

    One object a thread: zstd contexts are kept.
    """

    __slots__ = ("_above", "_compress", "_decompress", "_max")

    def __init__(self, compress_above: int, max_bytes: int) -> None:
        self._above = compress_above
        self._max = max_bytes
        self._compress = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True)
        self._decompress = zstandard.ZstdDecompressor()

    def wrap(self, packed: bytes) -> bytes:
        """The value for an entry; compressed only when that makes it shorter."""
        if len(packed) > self._above:
            frame = self._compress.compress(packed)
            if len(frame) < len(packed):
                return _ZSTD + frame
        return _PLAIN + packed

    def unwrap(self, value: bytes) -> bytes | None:
        """The entry in a value; None when it is none, broken, or longer than allowed once it is unpacked.

        A frame must say how long its content is, and that is believed only up to ``max_bytes``: no value can make us
        take more memory.
        """
        head = value[:_HEAD]
        if head == _PLAIN:
            return value[_HEAD:] if len(value) - _HEAD <= self._max else None
        if head != _ZSTD:
            return None
        frame = memoryview(value)[_HEAD:]
        try:
            size = zstandard.frame_content_size(frame)
            if not 0 < size <= self._max:  # -1: it does not say
                return None
            return self._decompress.decompress(frame, max_output_size=size, allow_extra_data=False)
        except zstandard.ZstdError:
            return None
