"""Each policy against the distribution it promises: 10,000 draws with a fixed seed."""

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.gateway.policies.bounded_load import BOUND, bounded_load
from penstock.gateway.policies.eligible import eligible, rank
from penstock.gateway.policies.hint import hint
from penstock.gateway.policies.least_connections import least_connections
from penstock.gateway.policies.lightest import lightest
from penstock.gateway.policies.peak_ewma import DECAY_S, Ewma, peak_ewma
from penstock.gateway.policies.power_of_two import pair, power_of_two
from penstock.gateway.policies.rendezvous import rendezvous
from penstock.gateway.policies.weighted_round_robin import weighted_round_robin

DRAWS = 10_000
WEIGHTS = (1.0, 2.0, 3.0, 4.0)
SEEDS = (0x1111, 0x2222, 0x3333, 0x4444, 0x5555)


def chi_square(seen: Counter[int], shares: Sequence[float]) -> float:
    """How far 10,000 draws are from these shares; over 16.3 once in a thousand times for four of them."""
    whole = sum(shares)
    expected = [DRAWS * share / whole for share in shares]
    return sum((seen[i] - e) ** 2 / e for i, e in enumerate(expected))


# ---- least connections


def test_ties_rotate_evenly_wherever_the_equals_stand() -> None:
    seen = Counter(lightest([1, 1, 5, 9], turn) for turn in range(DRAWS))
    assert seen == {0: DRAWS // 2, 1: DRAWS // 2}
    assert Counter(lightest([5, 1, 9, 1, 1], turn) for turn in range(9_999)) == {1: 3333, 3: 3333, 4: 3333}


def test_least_connections_places_10_000_that_stay_by_weight_to_the_request() -> None:
    inflight = [0] * 4
    for turn in range(DRAWS):
        inflight[least_connections(inflight, WEIGHTS, turn)] += 1
    assert inflight == [1000, 2000, 3000, 4000]


# ---- weighted round robin


def test_round_robin_gives_each_its_share_exactly_and_smoothly() -> None:
    credits = [0.0] * 4
    order = []
    for _ in range(DRAWS):
        chosen, credits = weighted_round_robin(credits, WEIGHTS)
        order.append(chosen)
        assert abs(sum(credits)) < 1e-6
    assert Counter(order) == {0: 1000, 1: 2000, 2: 3000, 3: 4000}
    for start in range(0, DRAWS, 10):  # in each ten already
        assert Counter(order[start : start + 10]) == {0: 1, 1: 2, 2: 3, 3: 4}
    assert max(len(run) for run in "".join(map(str, order)).replace("0", " ").split(" ")) < 40
    assert "333" not in "".join(map(str, order))


def test_round_robin_goes_as_nginx_says() -> None:
    credits, order = [0.0, 0.0, 0.0], ""
    for _ in range(7):
        chosen, credits = weighted_round_robin(credits, [5, 1, 1])
        order += "abc"[chosen]
    assert order == "aabacaa"


# ---- power of two


def test_pairs_are_of_two_and_drawn_by_weight() -> None:
    draw = random.Random(1).random
    pairs = [pair(WEIGHTS, draw(), draw()) for _ in range(DRAWS)]
    assert all(one != other for one, other in pairs)
    assert chi_square(Counter(one for one, _ in pairs), WEIGHTS) < 16.3
    second = [sum(w / 10 * v / (10 - w) for w in WEIGHTS if w != v) for v in WEIGHTS]
    assert chi_square(Counter(other for _, other in pairs), second) < 16.3


def test_power_of_two_takes_the_less_loaded_of_the_two() -> None:
    draw, loads = random.Random(2).random, (0, 3, 5, 9)
    seen: Counter[int] = Counter()
    for _ in range(DRAWS):
        two = pair((1, 1, 1, 1), draw(), draw())
        seen[two[power_of_two((loads[two[0]], loads[two[1]]), (1, 1))]] += 1
    assert seen[3] == 0  # every other one is less loaded
    assert chi_square(seen, (3, 2, 1, 1e-9)) < 16.3


def test_power_of_two_with_equal_loads_is_even() -> None:
    draw = random.Random(3).random
    seen: Counter[int] = Counter()
    for _ in range(DRAWS):
        two = pair((1, 1, 1, 1), draw(), draw())
        seen[two[power_of_two((7, 7), (1, 1))]] += 1
    assert chi_square(seen, (1, 1, 1, 1)) < 16.3


@pytest.mark.parametrize(("first", "second"), [(0.0, 0.0), (0.9999999999, 0.9999999999), (0.5, 0.0)])
def test_the_ends_of_the_draw_are_two_backends_as_well(first: float, second: float) -> None:
    one, other = pair((0.1, 0.2, 0.7), first, second)
    assert one != other
    assert {one, other} <= {0, 1, 2}


# ---- peak ewma


def test_a_peak_counts_at_once_and_is_forgotten_by_time() -> None:
    ewma = Ewma()
    assert ewma.cost(5.0) == 0.0
    ewma.observe(0.1, 0.0)
    ewma.observe(2.0, 0.0)
    assert ewma.cost(0.0) == 2.0
    ewma.observe(0.1, DECAY_S)  # e-fold: 2.0 / e + 0.1 * (1 - 1 / e)
    assert ewma.cost(DECAY_S) == pytest.approx(0.799, abs=0.001)
    assert ewma.cost(100 * DECAY_S) < 1e-9  # silence is forgotten too: it is tried again


def test_a_quick_failure_is_no_quick_answer_and_a_slow_one_is_a_peak() -> None:
    ewma = Ewma()
    ewma.observe(1.0, 0.0)
    ewma.failed(0.001, 5.0)
    assert ewma.cost(5.0) == pytest.approx(0.6065, abs=0.001)
    ewma.failed(9.0, 5.0)
    assert ewma.cost(5.0) == 9.0


def test_peak_ewma_weighs_latency_with_load() -> None:
    assert peak_ewma([0.1, 0.4], [2, 0], [1, 1], 0) == 0  # 0.3 beside 0.4
    assert peak_ewma([0.1, 0.4], [4, 0], [1, 1], 0) == 1  # 0.5 beside 0.4
    assert peak_ewma([0.1, 0.4], [2, 0], [1, 4], 0) == 1


def test_peak_ewma_places_10_000_that_stay_by_speed_and_weight() -> None:
    inflight = [0] * 4
    for turn in range(DRAWS):
        inflight[peak_ewma([0.1, 0.1, 0.2, 0.4], inflight, [1, 2, 2, 2], turn)] += 1
    shares = [1 / 0.1, 2 / 0.1, 2 / 0.2, 2 / 0.4]
    for seen, share in zip(inflight, shares, strict=True):
        assert abs(seen - DRAWS * share / sum(shares)) <= 4


def test_what_nothing_is_known_of_is_tried_without_a_rush() -> None:
    inflight = [0] * 4
    for turn in range(400):
        inflight[peak_ewma([0.2, 0.2, 0.2, 0.0], inflight, [1] * 4, turn)] += 1
    assert inflight == [100] * 4
    assert Counter(peak_ewma([0, 0, 0], [0, 0, 0], [1, 1, 1], t) for t in range(300)) == {
        0: 100,
        1: 100,
        2: 100,
    }


# ---- hashing


def test_keys_belong_to_backends_by_weight() -> None:
    seen = Counter(rendezvous(b"user-%d" % n, SEEDS[:4], WEIGHTS)[0] for n in range(DRAWS))
    assert chi_square(seen, WEIGHTS) < 16.3


@pytest.mark.parametrize("gone", range(5))
def test_when_a_server_leaves_its_keys_move_and_no_others(gone: int) -> None:
    keys = [b"user-%d" % n for n in range(DRAWS)]
    left = [i for i in range(5) if i != gone]
    before = [rendezvous(key, SEEDS, [1.0] * 5)[0] for key in keys]
    after = [left[rendezvous(key, [SEEDS[i] for i in left], [1.0] * 4)[0]] for key in keys]
    moved = [n for n in range(DRAWS) if before[n] != after[n]]
    assert {before[n] for n in moved} == {gone}
    assert len(moved) <= DRAWS * (1 / 5 + 0.02)
    spread = Counter(left.index(after[n]) for n in moved)
    assert max(spread.values()) <= 1.25 * len(moved) / 4  # to all that are left


def test_who_comes_next_is_who_would_own_it_alone() -> None:
    for n in range(200):
        order = rendezvous(b"%d" % n, SEEDS, [1.0] * 5)
        rest = sorted(set(range(5)) - {order[0]})
        assert rest[rendezvous(b"%d" % n, [SEEDS[i] for i in rest], [1.0] * 4)[0]] == order[1]


# ---- bounded load

some_loads = st.lists(st.integers(0, 400), min_size=2, max_size=12)


@given(some_loads, st.integers(0, 2**32), st.data())
def test_at_high_load_nobody_gets_a_request_over_five_quarters_of_its_share(
    loads: list[int], turn: int, data: st.DataObject
) -> None:
    weights = [data.draw(st.sampled_from((1.0, 2.0, 5.0))) for _ in loads]
    order = data.draw(st.permutations(range(len(loads))))
    rooms = [400.0] * len(loads)
    chosen = bounded_load(order, loads, weights, rooms, turn)
    share = (sum(loads) + 1) * weights[chosen] / sum(weights)
    scale = len(loads) * weights[chosen] / sum(weights)
    least = least_connections(loads, weights, turn)
    if loads[chosen] + 1 > BOUND * share and loads[chosen] != loads[least]:
        # only while chance alone does as much, and below 25 requests for a backend of the mean weight
        assert loads[chosen] + 1 <= min(share + 2.5 * share**0.5, BOUND * 25 * scale)


def test_affinity_is_kept_while_there_is_room_and_yields_to_the_next_in_order() -> None:
    def place(loads: list[float], rooms: float = 1000.0) -> int:
        return bounded_load([2, 0, 1, 3], loads, [1.0] * 4, [rooms] * 4, 0)

    assert place([0, 0, 0, 0]) == 2
    assert place([4, 4, 7, 4]) == 2  # chance alone does that
    assert place([4, 4, 12, 4]) == 0
    assert place([100, 100, 124, 100]) == 2
    assert place([100, 100, 140, 100]) == 0
    assert place([15, 15, 21, 15]) == 2
    assert place([15, 15, 21, 15], rooms=25) == 0  # more than half of what it is meant to take: high load
    assert place([200, 100, 200, 100]) == 1


def test_at_high_load_10_000_requests_of_few_keys_stay_within_the_bound() -> None:
    rng = random.Random(5)
    loads, placed = [0] * 4, []
    for turn in range(DRAWS):
        order = rendezvous(b"key-%d" % int(rng.paretovariate(0.8)), SEEDS[:4], [1.0] * 4)
        chosen = bounded_load(order, loads, [1.0] * 4, [100.0] * 4, turn)
        loads[chosen] += 1
        placed.append(chosen)
        if len(placed) > 400:
            loads[placed.pop(0)] -= 1
            assert max(loads) <= BOUND * sum(loads) / 4 + 1
    assert max(loads) > 110  # the keys are not even: there was something to bound


# ---- tiers and zones


def test_the_order_is_priority_then_zone() -> None:
    assert rank(0, "a", "a") == rank(0, None, "a") == rank(0, "b", None) == 0
    assert rank(0, "b", "a") == 1
    assert rank(1, "a", "a") == 2


def test_only_the_lowest_rank_with_room_is_eligible() -> None:
    ranks = [0, 0, 1, 2]
    assert eligible(ranks, [5, 5, 0, 0], [0, 0, 0, 0]) == [0, 1]
    assert eligible(ranks, [5, 5, 0, 0], [5, 0, 0, 0]) == [1]
    assert eligible(ranks, [5, 5, 0, 0], [5, 5, 0, 0]) == [2]
    assert eligible(ranks, [5, 5, 9, 0], [5, 5, 9, 0]) == [3]


def test_where_all_are_full_the_least_over_is_taken() -> None:
    assert eligible([0, 0, 2], [10, 8, 30], [10, 7, 20]) == [0]
    assert eligible([2, 0], [10, 10], [10, 10]) == [1]


def test_a_full_kv_cache_counts_as_requests() -> None:
    assert hint(0, 0.5) == hint(0, 0.9) == 0
    assert hint(3, 0.2) == 3
    assert hint(3, 0.95) == pytest.approx(5)
    assert hint(0, 1.0) == pytest.approx(4)
