"""Two requests have one key when a backend could not tell them apart, and only then."""

import json
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.cache.digest import Key
from penstock.cache.outcome import NoCache
from penstock.gateway.caching import PLAIN, veto
from penstock.gateway.endpoints import ENDPOINTS
from penstock.gateway.fingerprint import DENIED, fingerprint
from penstock.gateway.fleet import Model
from penstock.gateway.parse import LARGE_BODY_BYTES, Parser
from penstock.gateway.upstream.call import CallTimeouts

from .requests import CHAT, SMALLEST, chat, form, parsed, raw
from .test_parse import values

TYPED = frozenset(CHAT.shape.__struct_fields__)


def model(name: str = "m", version: str = "1") -> Model:
    return Model(
        name,
        0,
        version,
        (),
        timeouts=CallTimeouts(),
        max_concurrent=1,
        max_queue=1,
        queue_timeout_s=1,
        max_model_len=None,
    )


def key(
    fields: dict[str, Any],
    *,
    path: str = "/v1/chat/completions",
    query: str = "",
    tenant: str = "default",
    namespace: str = "",
    of: Model | None = None,
) -> Key | NoCache:
    of = of or model()
    endpoint = ENDPOINTS[path]
    request = parsed(fields, endpoint)
    vetoed = veto(request, "deterministic", PLAIN)
    return vetoed or fingerprint(request, of.key_head(endpoint, tenant, namespace), of.name, query)


def shuffled(value: Any, seed: int) -> Any:
    """The same value with the keys of every object in another order."""
    if isinstance(value, dict):
        keys = list(value)
        random.Random(seed).shuffle(keys)
        return {name: shuffled(value[name], seed) for name in keys}
    return [shuffled(item, seed) for item in value] if isinstance(value, list) else value


def encodable(value: Any) -> bool:
    try:
        msgspec.json.decode(msgspec.json.encode(value))
    except (msgspec.ValidationError, UnicodeEncodeError, OverflowError):
        return False
    return True


fields = st.dictionaries(
    st.text(max_size=8).filter(lambda name: name not in DENIED | TYPED), values, max_size=4
).filter(encodable)


@given(fields, st.integers(), st.sampled_from([None, 1, "\t"]), st.booleans())
def test_key_order_white_space_and_escapes_change_nothing(
    extra: dict[str, Any], seed: int, indent: int | str | None, escaped: bool
) -> None:
    wanted = {**extra, **chat(seed=1)}
    other = json.dumps(shuffled(wanted, seed), indent=indent, ensure_ascii=escaped).encode()
    request = Parser().parse(CHAT, raw(other))
    of = model()
    assert fingerprint(request, of.key_head(CHAT, "default"), "m", "") == key(wanted)


@given(fields, fields)
def test_bodies_that_differ_have_keys_that_differ(one: dict[str, Any], other: dict[str, Any]) -> None:
    a, b = {**one, **chat(seed=1)}, {**other, **chat(seed=1)}
    same = msgspec.json.encode(a, order="deterministic") == msgspec.json.encode(b, order="deterministic")
    assert (key(a) == key(b)) is same


@given(st.text(max_size=12), values.filter(encodable))
def test_a_field_nobody_has_heard_of_makes_another_key(name: str, value: Any) -> None:
    base = chat(seed=1)
    if name in TYPED:
        return
    assert (key({**base, name: value}) == key(base)) is (name in DENIED)


@pytest.mark.parametrize("name", sorted(DENIED))
def test_who_asks_is_no_part_of_what_is_asked(name: str) -> None:
    assert key(chat(seed=1, **{name: "x"})) == key(chat(seed=1)) == key(chat(seed=1, **{name: {"y": 1}}))


def test_denied_names_count_when_they_are_nested() -> None:
    messages = [{"role": "user", "content": "hi", "user": "x"}]
    assert key(chat(seed=1, messages=messages)) != key(chat(seed=1))


CHANGES: dict[str, Callable[[], Key | NoCache]] = {
    "stream": lambda: key(chat(seed=1, stream=True)),
    "explicitly no stream": lambda: key(chat(seed=1, stream=False)),
    "stream_options": lambda: key(chat(seed=1, stream_options={"include_usage": True})),
    "query": lambda: key(chat(seed=1), query="a=b"),
    "tenant": lambda: key(chat(seed=1), tenant="other"),
    "model": lambda: key(chat(seed=1, model="m2"), of=model("m2")),
    "version": lambda: key(chat(seed=1), of=model(version="2")),
    "endpoint": lambda: key(chat(seed=1), path="/v1/messages"),
    "temperature": lambda: key(chat(seed=1, temperature=0.5)),
    "a null": lambda: key(chat(seed=1, temperature=None)),
    "an int for a float": lambda: key(chat(seed=1, temperature=1)),
    "a float for an int": lambda: key(chat(seed=1, temperature=1.0)),
    "a message's text": lambda: key(chat(seed=1, messages=[{"role": "user", "content": "ho"}])),
    "an extra message field": lambda: key(
        chat(seed=1, messages=[{"role": "user", "content": "hi", "name": "x"}])
    ),
}


def test_each_part_of_a_question_makes_a_key_of_its_own() -> None:
    keys = [key(chat(seed=1)), *(change() for change in CHANGES.values())]
    assert all(isinstance(made, bytes) and len(made) == 32 for made in keys)
    assert len(set(keys)) == len(keys)


def test_the_same_key_is_made_again() -> None:
    assert key(chat(seed=1)) == key(chat(seed=1))


def test_parts_cannot_be_moved_into_each_other() -> None:
    assert key(chat(seed=1), of=model("m", "12")) != key(chat(seed=1), of=model("m1", "2"))
    assert key(chat(seed=1), tenant="ab") != key(chat(seed=1), tenant="a", of=model("bm"))
    assert key(chat(seed=1), tenant="ab") != key(chat(seed=1), tenant="a", namespace="b")


def test_an_alias_and_the_models_own_name_share_one_key() -> None:
    assert key(chat(seed=1, model="an-alias")) == key(chat(seed=1)) == key(chat(seed=1, model="another"))


@pytest.mark.parametrize(
    ("fields", "cacheable"),
    [
        ({}, False),
        ({"temperature": 0}, True),
        ({"temperature": 0.0}, True),
        ({"temperature": 0.1}, False),
        ({"temperature": None}, False),
        ({"seed": 0}, True),
        ({"seed": 7, "temperature": 1}, True),
        ({"seed": None}, False),
    ],
)
def test_a_generation_is_cacheable_when_it_is_said_to_be_deterministic(
    fields: dict[str, Any], cacheable: bool
) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/messages"):
        made = key({"model": "m", **SMALLEST[path], **fields}, path=path)
        assert (made is not NoCache.NONDETERMINISTIC) is cacheable


@pytest.mark.parametrize("path", sorted(path for path in SMALLEST if ENDPOINTS[path].deterministic))
def test_endpoints_without_chance_are_cacheable_as_they_are(path: str) -> None:
    assert isinstance(key({"model": "m", **SMALLEST[path]}, path=path), bytes)


@pytest.mark.parametrize("state", [{"store": True}, {"background": True}, {"previous_response_id": "resp_1"}])
def test_stored_responses_are_never_cached(state: dict[str, Any]) -> None:
    body = {"model": "m", "input": "hi", "temperature": 0}
    assert isinstance(key(body, path="/v1/responses"), bytes)
    assert key({**body, **state}, path="/v1/responses") is NoCache.STATEFUL


def test_large_bodies_and_forms_have_no_key_and_say_why() -> None:
    request = parsed(chat(seed=1, pad="x" * LARGE_BODY_BYTES))
    assert veto(request, "all", PLAIN) is NoCache.BODY_TOO_LARGE
    body, content_type = form(("model", b"m"))
    request = Parser().parse(ENDPOINTS["/v1/audio/transcriptions"], raw(body, content_type))
    assert veto(request, "all", PLAIN) is NoCache.MULTIPART
