"""Sequences of cacheable questions, made from a seed: who is asked how often, and how large the answers are.

Strategy: plain generators over `random.Random`, so that one seed gives one sequence on every machine. A question is
a number, an answer is a size; who replays them makes bytes of both. Refuses to know what a cache is.

Sizes like those of LLM answers (`answer_bytes`): output lengths are log-normal with a median of 129 tokens and a mean
of about 211, as in the conversation trace of Azure's LLM service (Patel et al., "Splitwise", ISCA 2024), cut at 4,096
tokens. Half of the answers are plain (600 bytes of JSON around 4.3 bytes a token), four in ten are raw event streams
(240 bytes a token), one in ten is an embedding of 1,536 floats in base64. These three shares are an assumption.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from random import Random

#: Draws the size of one answer in bytes.
Sizes = Callable[[Random], int]

_TOKENS_MU = 4.86  # ln 129
_TOKENS_SIGMA = 0.99  # gives a mean of 211
_TOKENS_MOST = 4096
_EMBEDDING_BYTES = 8_500


@dataclass(frozen=True, slots=True)
class Trace:
    """One sequence: the i-th request asks for `keys[i]`, whose answer would have `sizes[i]` bytes if made then.

    keys: dense numbers, from 0 in the order of their first request where the sequence was read from a file.
    """

    name: str
    keys: array[int]
    sizes: array[int]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def objects(self) -> int:
        """How many different keys are asked for."""
        return len(set(self.keys))

    @property
    def equal_sizes(self) -> bool:
        """Whether all answers have one size."""
        return len(set(self.sizes)) <= 1


def answer_bytes(random: Random) -> int:
    """A size in bytes as LLM answers have it; see the head of this module."""
    kind = random.random()
    if kind < 0.1:
        return _EMBEDDING_BYTES
    tokens = min(int(random.lognormvariate(_TOKENS_MU, _TOKENS_SIGMA)) + 1, _TOKENS_MOST)
    return 240 * (tokens + 3) if kind < 0.5 else 600 + 43 * tokens // 10


def equal_bytes(size_bytes: int) -> Sizes:
    """One and the same size for every answer."""
    return partial(_always, size_bytes)


def zipf(name: str, *, objects: int, requests: int, alpha: float, sizes: Sizes, seed: int) -> Trace:
    """Independent requests; the k-th most popular key is asked for in proportion to k ** -alpha."""
    random = Random(seed)
    return _trace(name, _ranks(random, objects, requests, alpha), sizes, seed)


def scans(
    name: str,
    *,
    objects: int,
    requests: int,
    alpha: float,
    every: int,
    length: int,
    sizes: Sizes,
    seed: int,
) -> Trace:
    """Zipf, and behind each `every` requests a run of `length` keys that never come again, as an evaluation has."""
    random = Random(seed)
    keys: list[int] = []
    fresh = objects
    while len(keys) < requests:
        keys += _ranks(random, objects, every, alpha)
        keys += range(fresh, fresh + length)
        fresh += length
    return _trace(name, keys[:requests], sizes, seed)


def drift(
    name: str,
    *,
    objects: int,
    requests: int,
    alpha: float,
    every: int,
    shift: int,
    sizes: Sizes,
    seed: int,
) -> Trace:
    """Zipf whose popularity moves on: behind each `every` requests the `shift` most popular keys become the least
    popular, and all others rise by as many ranks."""
    ranks = _ranks(Random(seed), objects, requests, alpha)
    keys = [(rank + i // every * shift) % objects for i, rank in enumerate(ranks)]
    return _trace(name, keys, sizes, seed)


def loop(name: str, *, objects: int, requests: int, sizes: Sizes, seed: int) -> Trace:
    """Every key in turn, over and over: the worst that can happen to LRU."""
    return _trace(name, [i % objects for i in range(requests)], sizes, seed)


def _always(size_bytes: int, random: Random) -> int:
    return size_bytes


def _ranks(random: Random, objects: int, requests: int, alpha: float) -> list[int]:
    weights = list(accumulate((k + 1) ** -alpha for k in range(objects)))
    return random.choices(range(objects), cum_weights=weights, k=requests)


def _trace(name: str, keys: list[int], sizes: Sizes, seed: int) -> Trace:
    """Give each key one size, drawn apart from popularity."""
    random = Random(seed ^ 0x5EED)
    of_key = [sizes(random) for _ in range(max(keys) + 1)]
    return Trace(name, array("Q", keys), array("Q", (of_key[key] for key in keys)))
