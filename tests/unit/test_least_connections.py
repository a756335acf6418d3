"""The least loaded backend is chosen; ties rotate; weights count."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from penstock.gateway.policies.least_connections import least_connections

loads = st.lists(
    st.tuples(st.integers(0, 1000), st.floats(0.01, 100)), min_size=1, max_size=16
)  # (in flight, weight)


@given(loads, st.integers(0, 2**40))
def test_no_other_backend_would_be_less_loaded_with_the_request(
    backends: list[tuple[int, float]], turn: int
) -> None:
    inflight, weights = zip(*backends, strict=True)
    chosen = least_connections(inflight, weights, turn)
    load = [(n + 1) / w for n, w in backends]
    assert load[chosen] == min(load)


def test_equals_take_turns() -> None:
    chosen = Counter(least_connections([0, 0, 0], [1, 1, 1], turn) for turn in range(300))
    assert chosen == {0: 100, 1: 100, 2: 100}


def test_requests_that_stay_are_spread_by_weight() -> None:
    inflight = [0, 0, 0]
    for turn in range(700):
        inflight[least_connections(inflight, [1, 2, 4], turn)] += 1
    assert inflight == [100, 200, 400]


def test_an_idle_heavy_backend_comes_before_an_idle_light_one() -> None:
    assert least_connections([0, 0], [1, 2], 0) == 1
