"""The simulator's text, ids, vectors and tokens: the same for the same request, always."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.loadtests.sim.api.generation import Limits, calling, prose, structured
from penstock.loadtests.sim.api.schema import example
from penstock.loadtests.sim.model import text, tokens

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}


def test_the_words_for_a_seed_never_change():
    assert "".join(islice(text.words(1), 5)) == "".join(islice(text.words(1), 5))


def test_the_order_of_keys_does_not_change_the_seed():
    assert text.seed_of(dict(reversed(BODY.items()))) == text.seed_of(BODY)


@pytest.mark.parametrize(
    "ignored", ["stream", "stream_options", "user", "metadata", "request_id", "priority"]
)
def test_fields_without_meaning_do_not_change_the_seed(ignored):
    assert text.seed_of(BODY | {ignored: "x"}) == text.seed_of(BODY)


@pytest.mark.parametrize("field", ["model", "temperature", "seed", "max_tokens", "anything"])
def test_every_other_field_changes_the_seed(field):
    assert text.seed_of(BODY | {field: 7}) != text.seed_of(BODY)


def test_ids_are_stable_and_apart():
    assert text.ident("chatcmpl-", 5) == text.ident("chatcmpl-", 5)
    assert text.ident("chatcmpl-", 5) != text.ident("chatcmpl-", 6)
    assert len(text.ident("", 5)) == 32


def test_vectors_have_length_one_and_survive_float32():
    vector = text.vector(9, 64)
    assert len(vector) == 64
    assert abs(sum(x * x for x in vector) - 1) < 1e-5
    assert vector == text.vector(9, 64)


@given(st.binary(max_size=400))
def test_tokens_decode_to_what_they_encoded(data):
    ids = tokens.encode(data)
    assert tokens.decode(ids) == data
    assert len(ids) == tokens.count(data)
    assert all(0 <= i < tokens.VOCABULARY for i in ids)


def test_a_token_outside_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="out of vocabulary"):
        tokens.decode([tokens.VOCABULARY])


@given(st.binary(max_size=300), st.binary(max_size=100))
def test_block_hashes_of_a_longer_text_begin_with_those_of_its_beginning(head, tail):
    before = tokens.block_hashes(head)
    assert tokens.block_hashes(head + tail)[: len(before)] == before


@given(st.integers(0, 1 << 63), st.integers(1, 100), st.booleans())
def test_an_answer_has_as_many_units_as_it_has_tokens(seed, most, ignore_eos):
    choice = prose(seed, Limits(most, ignore_eos=ignore_eos))
    assert len(list(choice.units())) == choice.goal <= most
    assert choice.reason == (
        "length" if choice.goal == most and (ignore_eos or choice.reason == "length") else "stop"
    )
    if ignore_eos:
        assert choice.goal == most


def test_a_shorter_limit_gives_the_beginning_of_the_same_text():
    whole = prose(3, Limits(None)).joined("content")
    cut = prose(3, Limits(4))
    assert cut.reason == "length"
    assert whole.startswith(cut.joined("content"))


def test_a_stop_string_ends_the_text_before_it():
    whole = prose(3, Limits(None)).joined("content")
    stop = whole.split(" ")[3]
    choice = prose(3, Limits(None, stop=(stop,)))
    assert choice.joined("content") == whole[: whole.index(stop)]
    assert (choice.reason, choice.stop_reason) == ("stop", stop)


def test_a_tool_call_fits_its_schema_and_is_whole():
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer", "maximum": 3}},
    }
    choice = calling(1, Limits(None), [("weather", schema)])
    assert choice.joined("arguments") == choice.calls[0].arguments
    value = example(schema, 1)
    assert isinstance(value["city"], str)
    assert 1 <= value["days"] <= 3


def test_a_limit_cuts_a_tool_call_short():
    schema = {"type": "object", "properties": {f"field{i}": {"type": "string"} for i in range(9)}}
    choice = calling(1, Limits(3), [("f", schema)])
    assert (choice.goal, choice.reason) == (3, "length")
    assert choice.calls[0].arguments == choice.joined("arguments")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
keywords = st.sampled_from(
    ["type", "properties", "items", "enum", "anyOf", "minItems", "minimum", "maximum", "const"]
)


@given(st.dictionaries(keywords, json_values | st.sampled_from(["object", "array", "integer"]), max_size=6))
def test_any_schema_at_all_gives_some_document(schema):
    assert structured(1, Limits(None), schema).goal > 0
