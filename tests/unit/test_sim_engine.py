"""The simulator's continuous-batching model, in virtual time."""

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from penstock.loadtests.sim.model.engine import Engine, Progress, Sequence, TimeModel
from penstock.loadtests.sim.model.prefix import PrefixCache
from penstock.loadtests.sim.model.tokens import block_hashes


def drain(engine: Engine, limit: int = 100_000) -> list[Progress]:
    """Everything the engine has to say, jumping from step to step."""
    out: list[Progress] = []
    for _ in range(limit):
        at_s = engine.next_at_s
        if at_s is None:
            return out
        out += engine.advance(at_s)
    raise AssertionError("the engine never comes to rest")


def times(progress: Iterable[Progress], sequence: Sequence) -> list[float]:
    return [round(p.at_s, 6) for p in progress if p.sequence is sequence]


def test_a_lone_sequence_pays_prefill_first_and_one_step_a_token_after():
    engine = Engine(TimeModel(prefill_tps=1000, decode_ms=10))
    sequence = Sequence(100, 3)
    engine.submit(sequence, 5.0)
    assert times(drain(engine), sequence) == [5.11, 5.12, 5.13]
    assert sequence.done
    assert (engine.running, engine.waiting) == (0, 0)


def test_every_running_sequence_lengthens_the_step():
    engine = Engine(TimeModel(decode_ms=10, decode_ms_per_seq=5))
    first, second = Sequence(1, 2), Sequence(1, 2)
    engine.submit(first, 0.0)
    engine.submit(second, 0.0)
    progress = drain(engine)
    # The second came after the first step had begun: it joins the next one.
    assert times(progress, first) == [0.015, 0.035]
    assert times(progress, second) == [0.035, 0.05]


def test_more_sequences_than_places_wait_their_turn():
    engine = Engine(TimeModel(decode_ms=10, max_seqs=2))
    sequences = [Sequence(1, 4) for _ in range(5)]
    for sequence in sequences:
        engine.submit(sequence, 0.0)
    engine.advance(0.025)
    assert (engine.running, engine.waiting) == (2, 3)
    drain(engine)
    assert all(s.done for s in sequences)
    admitted = [s.admitted_s for s in sequences]
    assert admitted == sorted(admitted)


def test_a_long_prompt_is_prefilled_in_shares_of_the_step_budget():
    engine = Engine(TimeModel(prefill_tps=1000, decode_ms=1, step_tokens=100))
    sequence = Sequence(250, 1)
    engine.submit(sequence, 0.0)
    drain(engine)
    assert engine.totals.steps == 3
    assert round(sequence.first_token_s, 6) == 0.253


def test_without_kv_room_a_sequence_waits_though_a_place_is_free():
    engine = Engine(TimeModel(decode_ms=10, kv_blocks=4, max_seqs=8))
    first, second = Sequence(40, 2), Sequence(40, 2)
    engine.submit(first, 0.0)
    engine.submit(second, 0.0)
    engine.advance(0.010)
    assert (engine.running, engine.waiting) == (1, 1)
    drain(engine)
    assert second.admitted_s == first.first_token_s + 0.01


def test_running_out_of_blocks_preempts_the_last_admitted_and_both_finish():
    engine = Engine(TimeModel(decode_ms=10, kv_blocks=4))
    first, second = Sequence(16, 40), Sequence(16, 40)
    engine.submit(first, 0.0)
    engine.submit(second, 0.0)
    drain(engine)
    assert engine.totals.preemptions >= 1
    assert first.made == second.made == 40
    assert engine.kv_usage == 0.0


def test_zero_goal_is_prefill_only():
    engine = Engine(TimeModel(prefill_tps=100, decode_ms=0))
    sequence = Sequence(50, 0)
    engine.submit(sequence, 0.0)
    (only,) = drain(engine)
    assert (only.tokens, only.finished, round(only.at_s, 6)) == (0, True, 0.5)


def test_free_decoding_is_over_at_once():
    engine = Engine(TimeModel())
    sequence = Sequence(1000, 500)
    engine.submit(sequence, 7.0)
    progress = engine.advance(7.0)
    assert sum(p.tokens for p in progress) == 500
    assert progress[-1].finished
    assert engine.next_at_s is None


def test_a_cancelled_sequence_gives_its_blocks_back_at_once():
    engine = Engine(TimeModel(decode_ms=10, max_seqs=1))
    running, waiting = Sequence(100, 50), Sequence(100, 50)
    engine.submit(running, 0.0)
    engine.submit(waiting, 0.0)
    engine.cancel(running)
    assert engine.kv_usage == 0.0
    engine.cancel(waiting)
    engine.cancel(waiting)
    assert (engine.running, engine.waiting) == (0, 0)
    assert drain(engine) == []


def test_a_paused_engine_holds_what_waits_until_it_is_resumed():
    engine = Engine(TimeModel(decode_ms=10))
    engine.pause()
    sequence = Sequence(1, 1)
    engine.submit(sequence, 0.0)
    assert engine.next_at_s is None
    assert engine.waiting == 1
    engine.resume(4.0)
    assert times(drain(engine), sequence) == [4.01]


def test_a_shared_prefix_is_prefilled_once():
    engine = Engine(TimeModel(prefill_tps=1000))
    text = b"the same long system prompt " * 20
    first = Sequence(len(text) // 2, 1, block_hashes(text))
    engine.submit(first, 0.0)
    drain(engine)
    second = Sequence(len(text) // 2, 1, block_hashes(text))
    engine.submit(second, 10.0)
    drain(engine)
    assert first.cached_tokens == 0
    assert second.cached_tokens == len(block_hashes(text)) * 16
    assert second.first_token_s - 10.0 < first.first_token_s
    assert engine.totals.prefix_hits == second.cached_tokens
    assert engine.totals.prefix_queries == 2 * (len(text) // 2)


def test_the_prefix_cache_forgets_the_least_recently_used():
    cache = PrefixCache(2)
    cache.insert((b"a", b"b"))
    assert cache.match((b"a",)) == 1
    cache.insert((b"c",))
    assert cache.match((b"b",)) == 0
    assert cache.match((b"a", b"c")) == 2


@given(
    st.lists(st.tuples(st.integers(1, 200), st.integers(0, 60)), min_size=1, max_size=20),
    st.integers(1, 6),
    st.integers(20, 60),
    st.sampled_from([0.0, 10.0]),
)
def test_every_sequence_gets_exactly_its_tokens_and_nothing_leaks(jobs, max_seqs, kv_blocks, decode_ms):
    engine = Engine(TimeModel(prefill_tps=5000, decode_ms=decode_ms, max_seqs=max_seqs, kv_blocks=kv_blocks))
    sequences = [Sequence(prompt, goal) for prompt, goal in jobs]
    made = dict.fromkeys(map(id, sequences), 0)
    for number, sequence in enumerate(sequences):
        engine.submit(sequence, 0.0)
        assert engine.running <= max_seqs, number
    for progress in drain(engine):
        made[id(progress.sequence)] += progress.tokens
    assert [made[id(s)] for s in sequences] == [goal for _, goal in jobs]
    assert all(s.done for s in sequences)
    assert engine.kv_usage == 0.0
    assert (engine.running, engine.waiting) == (0, 0)
