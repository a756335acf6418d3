"""The lab's policies against references too simple to be wrong, and the bounds against every choice there is."""

from __future__ import annotations

from functools import cache
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.loadtests.hitratio.belady import Belady
from penstock.loadtests.hitratio.beladysize import BeladySize
from penstock.loadtests.hitratio.lru import Lru
from penstock.loadtests.hitratio.nextuse import NEVER, next_uses
from penstock.loadtests.hitratio.pfoo import most_hits
from penstock.loadtests.hitratio.policy import Policy
from penstock.loadtests.hitratio.s3fifo import S3Fifo
from penstock.loadtests.hitratio.sieve import Sieve

Requests = list[tuple[int, int]]

requests = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 9)), max_size=150)
few_requests = st.lists(st.integers(0, 5), max_size=14)


def hits(policy: Policy, asked: Requests) -> list[bool]:
    return [policy.request(key, size) for key, size in asked]


class NaiveLru:
    """A list, the newest last."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.kept = capacity, list[tuple[int, int]]()

    def request(self, key: int, size: int) -> bool:
        for entry in self.kept:
            if entry[0] == key:
                self.kept.remove(entry)
                self.kept.append(entry)
                return True
        if size <= self.capacity:
            while sum(s for _, s in self.kept) + size > self.capacity:
                del self.kept[0]
            self.kept.append((key, size))
        return False


class NaiveSieve:
    """A list, the newest first, and a hand that is a place in it, as the paper's figure draws it."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.kept, self.hand = capacity, list[list[int]](), -1

    def request(self, key: int, size: int) -> bool:
        for entry in self.kept:
            if entry[0] == key:
                entry[2] = 1
                return True
        if size <= self.capacity:
            while sum(entry[1] for entry in self.kept) + size > self.capacity:
                self.evict()
            self.kept.insert(0, [key, size, 0])
            if self.hand >= 0:
                self.hand += 1
        return False

    def evict(self) -> None:
        at = self.hand if self.hand >= 0 else len(self.kept) - 1
        while self.kept[at][2]:
            self.kept[at][2] = 0
            at = at - 1 if at > 0 else len(self.kept) - 1
        del self.kept[at]
        self.hand = at - 1


class NaiveS3Fifo:
    """Lists of [key, size, freq], the newest first; the words of the paper's algorithm 1."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.small, self.main = list[list[int]](), list[list[int]]()
        self.ghost = list[list[int]]()

    @staticmethod
    def bytes_of(queue: list[list[int]]) -> int:
        return sum(entry[1] for entry in queue)

    def request(self, key: int, size: int) -> bool:
        for entry in self.small + self.main:
            if entry[0] == key:
                entry[2] = min(entry[2] + 1, 3)
                return True
        if size > self.capacity:
            return False
        while self.bytes_of(self.small) + self.bytes_of(self.main) + size > self.capacity:
            self.evict()
        if any(entry[0] == key for entry in self.ghost):
            self.ghost = [entry for entry in self.ghost if entry[0] != key]
            self.main.insert(0, [key, size, 0])
        else:
            self.small.insert(0, [key, size, 0])
        return False

    def evict(self) -> None:
        if self.small and (not self.main or self.bytes_of(self.small) >= self.capacity // 10):
            self.evict_small()
        else:
            self.evict_main()

    def evict_small(self) -> None:
        evicted = False
        while not evicted and self.small:
            key, size, freq = self.small.pop()
            if freq > 1:
                self.main.insert(0, [key, size, 0])
            else:
                self.ghost.insert(0, [key, size, 0])
                while self.bytes_of(self.ghost) > self.capacity - self.capacity // 10:
                    self.ghost.pop()
                evicted = True

    def evict_main(self) -> None:
        evicted = False
        while not evicted and self.main:
            key, size, freq = self.main.pop()
            if freq > 0:
                self.main.insert(0, [key, size, freq - 1])
            else:
                evicted = True


@given(requests, st.integers(1, 40))
def test_lru_drops_what_was_asked_for_longest_ago(asked: Requests, capacity: int) -> None:
    assert hits(Lru(capacity), asked) == hits(NaiveLru(capacity), asked)


@given(requests, st.integers(1, 40))
def test_sieve_does_what_the_paper_draws(asked: Requests, capacity: int) -> None:
    assert hits(Sieve(capacity), asked) == hits(NaiveSieve(capacity), asked)


@given(requests, st.integers(1, 40))
def test_s3_fifo_does_what_the_paper_lists(asked: Requests, capacity: int) -> None:
    assert hits(S3Fifo(capacity), asked) == hits(NaiveS3Fifo(capacity), asked)


def test_s3_fifo_keeps_its_main_queue_through_a_scan_that_lru_does_not_survive() -> None:
    favourites = [(key, 1) for key in range(50)] * 4
    asked = favourites + [(key, 1) for key in range(1000, 1500)] + favourites[:50]
    assert sum(hits(S3Fifo(100), asked)[-50:]) == 50
    assert sum(hits(Lru(100), asked)[-50:]) == 0


def test_the_next_use_is_the_place_of_the_next_request_for_the_key() -> None:
    assert list(next_uses([7, 8, 7, 7, 8])) == [2, 4, 3, NEVER, NEVER]


def most_by_trying(asked: Requests, capacity: int) -> int:
    """The most hits that any choice of what to keep can have: all choices tried."""
    sizes = [size for _, size in asked]

    @cache
    def best(at: int, kept: frozenset[tuple[int, int]]) -> int:
        if at == len(asked):
            return 0
        key = asked[at][0]
        hit = any(k == key for k, _ in kept)
        here = kept if hit else kept | {(key, sizes[at])}
        return hit + max(best(at + 1, after) for after in subsets(here) if fits(after, capacity))

    return best(0, frozenset())


def subsets(kept: frozenset[tuple[int, int]]) -> set[frozenset[tuple[int, int]]]:
    """What may be left: everything, or everything less one, two, … entries."""
    found, edge = {kept}, {kept}
    while edge:
        edge = {less - {entry} for less in edge for entry in less} - found
        found |= edge
    return found


def fits(kept: frozenset[tuple[int, int]], capacity: int) -> bool:
    return sum(size for _, size in kept) <= capacity


@settings(max_examples=60)
@given(few_requests, st.integers(1, 4))
def test_belady_is_the_optimum_where_sizes_are_equal(keys: list[int], capacity: int) -> None:
    asked = [(key, 1) for key in keys]
    assert sum(hits(Belady(capacity, next_uses(keys)), asked)) == most_by_trying(asked, capacity)


@settings(max_examples=60)
@given(few_requests, st.lists(st.integers(1, 4), min_size=14, max_size=14), st.integers(1, 8))
def test_the_optimum_lies_between_what_belady_size_reaches_and_what_pfoo_allows(
    keys: list[int], sizes: list[int], capacity: int
) -> None:
    asked = list(zip(keys, sizes, strict=False))
    later = next_uses(keys)
    optimum = most_by_trying(asked, capacity)
    assert sum(hits(BeladySize(capacity, later, Random(1)), asked)) <= optimum
    assert optimum <= most_hits([size for _, size in asked], later, capacity)


@given(requests, st.integers(1, 40))
def test_no_policy_exceeds_the_bound(asked: Requests, capacity: int) -> None:
    later = next_uses([key for key, _ in asked])
    bound = most_hits([size for _, size in asked], later, capacity)
    for policy in (Lru(capacity), Sieve(capacity), S3Fifo(capacity), BeladySize(capacity, later, Random(1))):
        assert sum(hits(policy, asked)) <= bound


@given(requests, st.integers(1, 40))
def test_belady_size_holds_no_more_than_its_capacity(asked: Requests, capacity: int) -> None:
    policy = BeladySize(capacity, next_uses([key for key, _ in asked]), Random(1))
    for key, size in asked:
        policy.request(key, size)
        assert policy._used == sum(size for _, size in policy._kept.values()) <= capacity
        assert sorted(policy._keys) == sorted(policy._kept)


def test_belady_size_is_far_above_lru_where_the_future_matters() -> None:
    random = Random(3)
    keys = [min(int(random.paretovariate(0.6)), 3000) for _ in range(20_000)]
    asked = [(key, 50 + key * 37 % 400) for key in keys]
    capacity = 20_000
    later = next_uses(keys)
    reached = sum(hits(BeladySize(capacity, later, Random(1)), asked))
    bound = most_hits([size for _, size in asked], later, capacity)
    assert sum(hits(Lru(capacity), asked)) + 500 < reached <= bound
