"""What is put together and taken apart again is what it was: requests, answers, numbers and sums."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.gateway.batch_text import Unsplit, apportion, merge, split
from penstock.gateway.caller import ANYONE, Caller
from penstock.gateway.endpoints import ENDPOINTS
from penstock.gateway.errand import Errand
from penstock.gateway.fleet import Model
from penstock.gateway.parse import Parser
from penstock.gateway.portion import Portion, portion_of
from penstock.gateway.raw import RawRequest
from penstock.gateway.upstream.call import CallTimeouts

EMBED, COMPLETE = "/v1/embeddings", "/v1/completions"
Body = dict[str, Any]


def model(policy: Any = "least_connections") -> Model:
    return Model(
        *("m", 0, "1", ()),
        timeouts=CallTimeouts(),
        max_concurrent=1,
        max_queue=1,
        queue_timeout_s=1.0,
        max_model_len=None,
        policy=policy,
    )


MODEL = model()


def errand(
    path: str,
    body: bytes | Body,
    forwarded: str = "",
    query: str = "",
    at: Model = MODEL,
    caller: Caller = ANYONE,
) -> Errand:
    data = body if isinstance(body, bytes) else msgspec.json.encode({"model": "m", **body})
    raw = RawRequest("POST", path, query, forwarded, "application/json", "r", data)
    request = Parser().parse(ENDPOINTS[path], raw)
    target = f"{path}?{query}" if query else path
    return Errand(ENDPOINTS[path], at, "POST", target, raw, data, caller, request)


def portion(path: str, body: bytes | Body, **more: Any) -> Portion:
    found = portion_of(errand(path, body, **more))
    assert found is not None
    return found


# ---- which requests may go together

ALONE: list[tuple[str, Body]] = [
    (COMPLETE, {"prompt": "a", "stream": True}),
    (COMPLETE, {"prompt": "a", "n": 2}),
    (COMPLETE, {"prompt": "a", "best_of": 2}),
    (COMPLETE, {"prompt": "a", "echo": True}),
    (COMPLETE, {"prompt": "a", "logprobs": 0}),
    (COMPLETE, {"prompt": "a", "prompt_logprobs": 1}),
    (COMPLETE, {"prompt": "a", "use_beam_search": True}),
    (COMPLETE, {"prompt": "a", "truncate_prompt_tokens": 5}),
    (COMPLETE, {"prompt": None, "prompt_embeds": "x"}),
    (COMPLETE, {"prompt": []}),
    (COMPLETE, {"prompt": ["a", 1]}),
    (COMPLETE, {"prompt": [[1], []]}),
    (EMBED, {"messages": [{"role": "user", "content": "a"}]}),
    (EMBED, {"input": "a", "encoding_format": "bytes"}),
    (EMBED, {"input": "a", "truncate_prompt_tokens": 5}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ("/v1/rerank", {"query": "a", "documents": ["b"]}),
]


@pytest.mark.parametrize(("path", "body"), ALONE, ids=lambda value: str(value)[:60])
def test_what_could_not_be_taken_apart_goes_alone(path, body):
    assert portion_of(errand(path, body)) is None


ITEMS: list[tuple[str, bytes, list[bytes], bool]] = [
    (EMBED, b'{"model":"m","input":"a\\u00e9"}', [b'"a\\u00e9"'], True),
    (EMBED, b'{"model":"m","input":[ "a" , "b" ]}', [b'"a"', b'"b"'], True),
    (EMBED, b'{"model":"m","input":[1,2]}', [b"[1,2]"], False),
    (COMPLETE, b'{"model":"m","prompt":[[1,2],[3]],"n":1}', [b"[1,2]", b"[3]"], False),
]


@pytest.mark.parametrize(("path", "body", "items", "texts"), ITEMS)
def test_inputs_are_the_bytes_they_came_in(path, body, items, texts):
    found = portion(path, body)
    assert (found.items, found.texts) == (items, texts)


def test_equal_parameters_go_together_whoever_asks():
    base = {"prompt": "a", "temperature": 0, "stop": ["x"]}
    key = portion(COMPLETE, base).key
    assert portion(COMPLETE, b'{"stop":["x"],"temperature":0,"prompt":["b"],"model":"m"}').key == key
    assert portion(COMPLETE, {**base, "user": "u", "metadata": {"a": "b"}, "session_id": "s"}).key == key
    assert portion(COMPLETE, base, forwarded="user-agent: x\r\ntraceparent: y\r\n").key == key
    assert portion(COMPLETE, base, caller=Caller("other", priority=3)).key == key


OTHERS: list[dict[str, Any]] = [
    {"body": {"prompt": "a", "temperature": 1}},
    {"body": {"prompt": "a", "temperature": 0, "nobody_knows": 1}},
    {"body": {"prompt": [1], "temperature": 0}},
    {"body": {"prompt": "a", "temperature": 0, "priority": 1}},
    {"body": {"prompt": "a", "temperature": 0}, "query": "q"},
    {"body": {"prompt": "a", "temperature": 0}, "forwarded": "x-data-parallel-rank: 1\r\n"},
    {"body": {"prompt": "a", "temperature": 0}, "at": model()},
]


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: ", ".join(other))
def test_anything_else_that_differs_keeps_apart(other):
    base = portion(COMPLETE, {"prompt": "a", "temperature": 0})
    assert portion(COMPLETE, **other).key != base.key


def test_what_is_tied_to_different_backends_does_not_go_together():
    tied = model("consistent_hash")
    one, two, again = (
        portion(COMPLETE, {"prompt": text, "user": user}, at=tied)
        for text, user in (("a", "u"), ("b", "v"), ("c", "u"))
    )
    assert one.key != two.key
    assert one.key == again.key


# ---- there and back

texts = st.text(max_size=20)
requests_of_texts = st.lists(
    st.lists(texts, min_size=1, max_size=4) | texts.map(lambda text: text), min_size=1, max_size=6
)
requests_of_ids = st.lists(
    st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=4), min_size=1, max_size=4),
    min_size=1,
    max_size=6,
)


def embed(body: Body) -> tuple[bytes, list[list[int]]]:
    """A server's answer to an embedding request, with numbers that no other encoder would write so."""
    asked = body["input"]
    items = [asked] if isinstance(asked, str) or isinstance(asked[0], int) else asked
    counts = [len(item) + 1 if isinstance(item, str) else len(item) for item in items]
    data = b",".join(
        b'{"index":%d,"object":"embedding","embedding":[%d.50,1e-05,%b]}'
        % (i, len(item), msgspec.json.encode(item))
        for i, item in enumerate(items)
    )
    total = sum(counts)
    answer = (
        b'{"id":"embd-r0","object":"list","created":17,"model":"m","data":[%b],"usage":{"prompt_tokens":%d,'
        b'"total_tokens":%d,"completion_tokens":0,"prompt_tokens_details":null},"later":null}'
        % (data, total, total)
    )
    return answer, [counts]


def complete(body: Body, ids: bool) -> bytes:
    asked = body["prompt"]
    items = [asked] if isinstance(asked, str) or isinstance(asked[0], int) else asked
    choices, read, made = [], 0, 0
    for i, item in enumerate(items):
        prompt = list(range(len(item))) if isinstance(item, str) else item
        said = list(range(len(prompt) % 5))
        read, made = read + len(prompt), made + len(said)
        choices.append(
            {
                "index": i,
                "text": f"said to {item}",
                "finish_reason": "stop",
                "prompt_token_ids": prompt if ids else None,
                "token_ids": said if ids else None,
            }
        )
    usage = {"prompt_tokens": read, "total_tokens": read + made, "completion_tokens": made}
    return msgspec.json.encode({"id": "cmpl-r0", "model": "m", "choices": choices, "usage": usage})


def without_id(answer: bytes) -> bytes:
    start = answer.index(b'"id":"') + 6
    return answer[:start] + answer[answer.index(b'"', start) :]


@given(requests_of_texts | requests_of_ids)
def test_each_gets_the_embeddings_it_would_have_got_alone(asked):
    bodies: list[Body] = [{"input": one} for one in asked]
    portions = [portion(EMBED, body) for body in bodies]
    counts = [embed(body)[1][0] for body in bodies] if portions[0].texts else None
    together, _ = embed(msgspec.json.decode(merge(portions, "m", False)))
    answers = split(together, portions, [f"r{i}" for i in range(len(asked))], exact=True, counts=counts)
    assert [without_id(answer) for answer in answers] == [without_id(embed(body)[0]) for body in bodies]
    assert len({msgspec.json.decode(answer)["id"] for answer in answers}) == len(asked)


@given(st.lists(st.lists(texts.filter(bool), min_size=1, max_size=3), min_size=1, max_size=6), st.booleans())
def test_each_gets_the_completions_it_would_have_got_alone(asked, wants_ids):
    more = {"return_token_ids": True} if wants_ids else {}
    bodies: list[Body] = [{"prompt": one, **more} for one in asked]
    portions = [portion(COMPLETE, body) for body in bodies]
    merged = msgspec.json.decode(merge(portions, "m", True))
    assert merged["return_token_ids"] is True
    answers = split(
        complete(merged, True), portions, [f"r{i}" for i in range(len(asked))], exact=True, counts=None
    )
    alone = [complete(body, wants_ids) for body in bodies]
    assert [without_id(answer) for answer in answers] == [without_id(answer) for answer in alone]


@given(requests_of_texts)
def test_shared_usage_adds_up_to_the_servers_sum(asked):
    portions = [portion(EMBED, {"input": one}) for one in asked]
    together, (counts,) = embed(msgspec.json.decode(merge(portions, "m", False)))
    answers = split(together, portions, ["r"] * len(asked), exact=False)
    told = [msgspec.json.decode(answer)["usage"] for answer in answers]
    assert sum(usage["prompt_tokens"] for usage in told) == sum(counts)
    assert all(usage["total_tokens"] == usage["prompt_tokens"] for usage in told)


@given(st.integers(0, 10**6), st.lists(st.integers(0, 1000), min_size=1, max_size=20))
def test_whole_parts_add_up_and_are_near_their_weights(total, weights):
    parts = apportion(total, weights)
    assert sum(parts) == total
    whole = sum(weights)
    if whole:
        assert all(
            abs(part - total * weight / whole) < 1 for part, weight in zip(parts, weights, strict=True)
        )


def test_entries_go_to_whom_they_belong_in_whatever_order_they_come():
    portions = [portion(EMBED, {"input": text}) for text in ("a", "b")]
    answer = b'{"data":[{"index":1,"x":"b"},{"index":0,"x":"a"}]}'
    one, two = split(answer, portions, ["r", "s"], exact=True)
    assert (one, two) == (b'{"data":[{"index":0,"x":"a"}]}', b'{"data":[{"index":0,"x":"b"}]}')


WRONG: list[bytes] = [
    b"no json",
    b"[]",
    b'{"choices":[]}',
    b'{"data":[{"index":0}]}',
    b'{"data":[{"index":0},{"index":0}]}',
    b'{"data":[{"index":0},{"index":2}]}',
    b'{"data":[{"index":0},{}]}',
    b'{"data":[{"index":0},{"index":1}],"usage":{"prompt_tokens":7,"total_tokens":7}}',
    b'{"data":[{"index":0},{"index":1}],"usage":{"prompt_tokens":2,"total_tokens":3}}',
    b'{"data":[{"index":0},{"index":1}],"usage":{}}',
]


@pytest.mark.parametrize("answer", WRONG)
def test_an_answer_that_is_in_doubt_is_not_taken_apart(answer):
    portions = [portion(EMBED, {"input": [i]}) for i in (1, 2)]
    with pytest.raises(Unsplit):
        split(answer, portions, ["r", "s"], exact=True)


def test_completions_of_a_server_that_does_not_tell_its_tokens_are_not_taken_apart():
    portions = [portion(COMPLETE, {"prompt": text}) for text in ("a", "b")]
    with pytest.raises(Unsplit):
        split(complete({"prompt": ["a", "b"]}, False), portions, ["r", "s"], exact=True)


def test_what_a_server_adds_to_a_batch_is_nobodys() -> None:
    portions = [portion(COMPLETE, {"prompt": "a"}), portion(COMPLETE, {"prompt": "b"})]
    known = {"id": "x", "object": "text_completion", "created": 1, "model": "m", "system_fingerprint": "f"}
    choices = [{"index": 0, "text": "a"}, {"index": 1, "text": "b"}]
    answer = msgspec.json.encode({**known, "choices": choices, "kv_transfer_params": {"a": 1}, "new": 2})
    for split_off in split(answer, portions, ["r", "s"], exact=False):
        assert set(msgspec.json.decode(split_off)) == {*known, "choices"}
