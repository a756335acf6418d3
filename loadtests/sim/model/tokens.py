"""A reversible toy tokenizer: two UTF-8 bytes make one token.

About as many tokens per word as a real vocabulary gives, no table, no state, and `decode(encode(x)) == x`.
Ids: 0–255 a single trailing byte, 256–65,791 a pair. Refuses to know what the tokens are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

PAIR_BASE = 256
VOCABULARY = PAIR_BASE + 65_536
BLOCK_TOKENS = 16
"""Tokens in one KV block, vLLM's default."""
_BLOCK_BYTES = 2 * BLOCK_TOKENS
_HASHED_BLOCKS = 4096


def count(text: bytes) -> int:
    """Number of tokens in `text`."""
    return (len(text) + 1) // 2


def encode(text: bytes) -> list[int]:
    """Token ids of `text`."""
    ids = [PAIR_BASE + (text[i] << 8) + text[i + 1] for i in range(0, len(text) - 1, 2)]
    if len(text) % 2:
        ids.append(text[-1])
    return ids


def decode(ids: Sequence[int]) -> bytes:
    """The bytes behind `ids`; an id outside the vocabulary raises ValueError."""
    out = bytearray()
    for token in ids:
        if 0 <= token < PAIR_BASE:
            out.append(token)
        elif token < VOCABULARY and token >= PAIR_BASE:
            out += (token - PAIR_BASE).to_bytes(2, "big")
        else:
            raise ValueError(f"token id {token} is out of vocabulary")
    return bytes(out)


def block_hashes(text: bytes) -> tuple[bytes, ...]:
    """Chained hashes of the full KV blocks of `text`, as vLLM's prefix cache names them.

    Only the first 4,096 blocks are hashed: longer prompts count as misses beyond that, which bounds the work.
    """
    hashes: list[bytes] = []
    parent = b""
    for start in range(0, min(len(text) // _BLOCK_BYTES, _HASHED_BLOCKS) * _BLOCK_BYTES, _BLOCK_BYTES):
        parent = blake2b(parent + text[start : start + _BLOCK_BYTES], digest_size=8).digest()
        hashes.append(parent)
    return tuple(hashes)
