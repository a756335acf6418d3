"""Corpora: the same for one seed, and shaped as their names say."""

from __future__ import annotations

from collections import Counter
from random import Random
from statistics import mean, median

import pytest

from penstock.loadtests.corpus import answer_bytes, drift, equal_bytes, loop, scans, zipf
from penstock.loadtests.hitratio.corpora import corpora


@pytest.mark.parametrize("name", list(corpora(1, 1)))
def test_one_seed_gives_one_sequence_and_another_seed_another(name: str) -> None:
    first, again, other = (corpora(0.02, seed)[name]() for seed in (1, 1, 2))
    assert first == again
    assert (first.keys, first.sizes) != (other.keys, other.sizes) or name == "loop"
    assert len(first) == len(first.sizes) in (16_000, 24_000)
    assert first.name == name


@pytest.mark.parametrize("name", list(corpora(1, 1)))
def test_a_key_has_one_size(name: str) -> None:
    trace = corpora(0.01, 1)[name]()
    assert len(set(zip(trace.keys, trace.sizes, strict=True))) == trace.objects


@pytest.mark.parametrize("alpha", [0.7, 1.1])
def test_zipf_asks_for_the_tenth_key_as_often_as_alpha_says(alpha: float) -> None:
    trace = zipf("z", objects=1000, requests=200_000, alpha=alpha, sizes=equal_bytes(1), seed=4)
    asked = Counter(trace.keys)
    assert asked[0] / asked[9] == pytest.approx(10**alpha, rel=0.15)
    assert trace.equal_sizes


def test_a_scan_is_a_run_of_keys_that_never_come_again() -> None:
    trace = scans("s", objects=50, requests=3000, alpha=1, every=100, length=20, sizes=equal_bytes(1), seed=4)
    asked = Counter(trace.keys)
    once = [key for key in asked if key >= 50]
    assert len(once) == 3000 // 120 * 20
    assert all(asked[key] == 1 for key in once)
    assert list(trace.keys[100:120]) == list(range(50, 70))


def test_drift_makes_the_most_popular_keys_the_least_popular() -> None:
    trace = drift(
        "d", objects=100, requests=40_000, alpha=1, every=10_000, shift=3, sizes=equal_bytes(1), seed=4
    )
    favourites = [
        Counter(trace.keys[at : at + 10_000]).most_common(1)[0][0] for at in range(0, 40_000, 10_000)
    ]
    assert favourites == [0, 3, 6, 9]


def test_a_loop_asks_for_each_key_in_turn() -> None:
    assert list(loop("l", objects=3, requests=7, sizes=equal_bytes(1), seed=4).keys) == [0, 1, 2, 0, 1, 2, 0]


def test_answers_are_small_mostly_and_large_at_times() -> None:
    random = Random(5)
    sizes = [answer_bytes(random) for _ in range(20_000)]
    assert 4_000 < median(sizes) < 12_000
    assert 20_000 < mean(sizes) < 30_000
    assert max(sizes) <= 240 * 4099
    assert min(sizes) >= 600
