"""Machines and house together, on a clock that is moved: turns under load, and what must never happen, whatever comes.

`World.check` looks at each step: memory by what servers really take, groups, how many run; a stop under a request and
an eviction of a pool with work whose turn is not over fail where they are made.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.workers.pools.footprints import Footprint

from ..support.turns import GIB, Model, Request, World, interleaved, pool, strict_switches

CAP_S = 60.0


def three(
    names: str = "abc", *, start_s: float = 10.0, stop_s: float = 2.0, memory: int = GIB, **terms: object
) -> list[Model]:
    return [
        Model(name, pool(memory=memory, **terms), memory, start_s=start_s, stop_s=stop_s) for name in names
    ]


def waits(world: World) -> list[float]:
    return sorted(one.began - one.arrived for one in world.done if one.began is not None)


def switches(world: World) -> int:
    return sum(a != b for a, b in pairwise(world.starts))


@pytest.mark.parametrize(
    ("rate", "service_s", "start_s", "stop_s"),
    [(0.5, 2, 10, 2), (1, 1, 5, 1), (3, 2, 12, 3)],
    ids=["some", "quick", "busy"],
)
def test_three_models_on_one_gpu_change_a_third_as_often_as_in_order_and_nobody_waits_past_the_cap(
    rate: float, service_s: float, start_s: float, stop_s: float
):
    world = World([GIB], three(start_s=start_s, stop_s=stop_s), max_wait_s=CAP_S, step_s=0.1)
    requests = interleaved(["a", "b", "c"], rate=rate, seconds=400, service_s=service_s)
    world.send(*requests)
    world.run(400)
    world.drain(200)
    assert world.open() == 0
    assert len(world.done) == len(requests)
    assert not any(one.failed for one in world.done)
    assert switches(world) <= strict_switches(requests) / 3
    assert waits(world)[-1] <= CAP_S


def test_a_b_a_b_becomes_a_a_b_b():
    world = World([GIB], three("ab"), max_wait_s=CAP_S)
    for model in world.models.values():
        model.knows = Footprint(start=[10.0], stop=[2.0])
    world.send(*(Request("ab"[i % 2], 1 + i * 0.5, 1.0) for i in range(60)))
    world.run(30)
    world.drain(120)
    assert world.starts == ["a", "b"]
    assert [one.pool for one in sorted(world.done, key=lambda one: one.began or 0)] == ["a"] * 30 + ["b"] * 30


def test_a_pool_that_always_has_work_gives_way_before_the_cap_and_gets_its_turn_again():
    world = World([GIB], three("ab"), max_wait_s=CAP_S)
    world.models["b"].knows = Footprint(start=[10.0], stop=[2.0])
    world.send(*(Request("a", 1 + i * 0.2, 1.0) for i in range(1000)), Request("b", 20.0, 1.0))
    world.run(201)
    world.drain(100)
    assert world.starts == ["a", "b", "a"]
    assert world.evictions["turn"] == 1
    (b,) = (one for one in world.done if one.pool == "b")
    assert b.began is not None
    assert 40 <= b.began - b.arrived <= CAP_S, "not before it had to be"


def test_a_long_answer_is_finished_before_its_model_leaves():
    world = World([GIB], three("ab"), max_wait_s=CAP_S)
    world.send(Request("a", 1.0, 300.0), Request("b", 2.0, 1.0), Request("a", 100.0, 1.0))
    world.run(100)
    world.drain(600)
    a, b, late = sorted(world.done, key=lambda one: one.arrived)
    assert a.ended is not None
    assert b.began is not None
    assert late.began is not None
    assert b.began > a.ended, "nothing is stopped under a request, cap or no cap"
    assert late.began > b.began, "what came after the turn had ended waited for the next"


def test_a_footprint_is_learned_and_then_two_share_the_gpu():
    models = [Model(name, pool(), GIB) for name in "ab"]
    world = World([2 * GIB], models)
    world.send(Request("a", 1.0, 1.0), Request("b", 2.0, 1.0))
    world.run(40)
    assert world.starts == ["a", "b"], "each took all of it while nobody knew its size"
    world.send(Request("a", 41.0, 1.0), Request("b", 42.0, 1.0), Request("a", 43.0, 1.0))
    world.run(80)
    assert world.starts == ["a", "b", "a"], "both are known now, and stay"
    assert world.open() == 0


def test_more_models_than_the_cap_has_time_for_are_all_served_in_turn():
    names = "abcdef"
    world = World([GIB], three(names, start_s=20.0, stop_s=5.0), max_wait_s=CAP_S, step_s=0.2)
    world.send(*interleaved(list(names), rate=1, seconds=600, service_s=1))
    world.run(600)
    counts = {name: world.starts.count(name) for name in names}
    assert min(counts.values()) >= 2, counts
    assert max(counts.values()) - min(counts.values()) <= 1, "they take turns"
    world.drain(400)
    assert world.open() == 0


def test_a_model_that_can_never_fit_fails_its_waiters_and_the_others_go_on():
    models = [*three("a"), Model("large", pool(memory=2 * GIB), 2 * GIB)]
    world = World([GIB], models)
    world.send(Request("large", 1.0, 1.0), Request("a", 1.0, 1.0))
    world.run(30)
    assert world.open() == 0
    assert {one.pool: one.failed for one in world.done} == {"large": True, "a": False}
    assert world.starts == ["a"]


def test_a_start_that_fails_gives_its_room_back():
    models = three("ab")
    models[0].fails = 1
    world = World([GIB], models)
    world.send(Request("a", 1.0, 1.0), Request("b", 1.5, 1.0))
    world.run(60)
    assert [one.pool for one in world.done if one.failed] == ["a"]
    assert [one.pool for one in world.done if not one.failed] == ["b"]


def test_servers_that_sleep_leave_room_for_others_and_wake_into_it():
    models = three("ab", sleep_after_s=5.0, idle_timeout_s=600.0)
    for model in models:
        model.knows = Footprint(asleep=GIB // 16, start=[10.0], wake=[1.0], stop=[2.0])
    world = World([GIB + GIB // 8], models)
    for i in range(6):
        world.send(Request("ab"[i % 2], 1 + 30.0 * i, 1.0))
    world.run(200)
    assert world.open() == 0
    assert world.starts == ["a", "b"], "then they only wake"
    assert not world.evictions


def test_of_pools_that_are_preloaded_those_start_that_there_is_room_for():
    world = World([2 * GIB], three("abc", preload=True))
    world.run(60)
    assert world.starts == ["a", "b"]
    world.send(Request("c", 61.0, 1.0))
    world.run(120)
    assert world.starts == ["a", "b", "c"]
    assert world.open() == 0


# ---- whatever comes

SIZES = st.sampled_from([GIB // 4, GIB // 2, GIB, 2 * GIB])


@st.composite
def models_of(draw: st.DrawFn) -> list[Model]:
    made = []
    for name in "abcde"[: draw(st.integers(2, 5))]:
        takes = draw(SIZES)
        known = takes > GIB or draw(st.booleans())  # of unknown ones each fits some GPU: more would not start
        least = draw(st.sampled_from([0, 0, 0, 0, 1]))
        terms = pool(
            memory=takes if known else None,
            gpus=draw(st.sampled_from([1, 1, 1, 2, 0])),
            min=least,
            max=max(least, draw(st.sampled_from([1, 1, 2]))),
            target=draw(st.sampled_from([None, 1])),
            group=draw(st.sampled_from([None, None, "g"])),
            pinned=draw(st.sampled_from([False, False, False, True])),
            preload=draw(st.booleans()),
            idle_timeout_s=draw(st.sampled_from([5.0, 40.0])),
            sleep_after_s=draw(st.sampled_from([None, None, 2.0])),
        )
        made.append(
            Model(
                name,
                terms,
                takes,
                start_s=draw(st.sampled_from([0.5, 3.0, 10.0])),
                stop_s=draw(st.sampled_from([0.2, 2.0])),
                places=draw(st.sampled_from([1, 4, 100])),
                fails=draw(st.sampled_from([0, 0, 1, 2])),
                knows=Footprint(asleep=takes),
            )
        )
    return made


@settings(max_examples=settings.default.max_examples // 20)
@given(st.data())
def test_never_over_memory_never_a_stop_under_work_and_nobody_waits_for_ever(data: st.DataObject):
    models = data.draw(models_of())
    memory = data.draw(st.lists(st.sampled_from([GIB, 2 * GIB]), min_size=1, max_size=2))
    limit = data.draw(st.sampled_from([None, None, 1, 2]))
    world = World(memory, models, max_wait_s=20.0, max_running=limit, step_s=0.2)
    names = [model.name for model in models]
    coming = data.draw(
        st.lists(
            st.tuples(st.sampled_from(names), st.integers(0, 600), st.sampled_from([0.0, 0.3, 5.0])),
            max_size=40,
        )
    )
    world.send(*(Request(name, at / 10, service_s) for name, at, service_s in coming))
    world.run(60)
    # all that came by now is answered, or failed with a reason, in a time that the work there is bounds
    world.drain(60 + 20 * len(coming))
    assert world.open() == 0, {name: model.machine.phase for name, model in world.models.items()}
    assert len(world.done) == len(coming)
