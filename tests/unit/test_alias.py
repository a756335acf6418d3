"""An alias becomes the model's own name: the backend decodes what the client wrote, but for the model."""

from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock.gateway.alias import Alias
from penstock.gateway.endpoints import ENDPOINTS
from penstock.gateway.errors import Fault
from penstock.gateway.multipart import read_fields
from penstock.gateway.parse import LARGE_BODY_BYTES, Parser

from .requests import CHAT, chat, form, raw
from .test_parse import values

ALIAS = Alias("gpt-4o/mini", "Qwen/Qwen3-8B")
TRANSCRIPTIONS = ENDPOINTS["/v1/audio/transcriptions"]


def rewritten(body: bytes, alias: Alias = ALIAS) -> bytes:
    request = Parser().parse(CHAT, raw(body))
    assert request.model == alias.alias
    return alias.rewrite(request)


def spelling(text: str) -> st.SearchStrategy[str]:
    """JSON's ways to write a text inside quotes."""

    def ways(char: str) -> list[str]:
        units = char.encode("utf-16-be")
        escape = "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))
        upper = escape.upper().replace("\\U", "\\u")
        plain = msgspec.json.encode(char).decode()[1:-1]
        return [plain, escape, upper, *(["\\/"] if char == "/" else [])]

    return st.tuples(*(st.sampled_from(ways(char)) for char in text)).map("".join)


space = st.text(alphabet=" \t\r\n", max_size=3)


@given(
    spelling("model"),
    spelling(ALIAS.alias),
    st.lists(space, min_size=4, max_size=4),
    st.dictionaries(st.text(max_size=6).map("_".__add__), values, max_size=3),
    st.booleans(),
)
def test_every_spelling_of_the_key_and_of_the_alias_is_met(
    key: str, value: str, spaces: list[str], others: dict[str, Any], last: bool
) -> None:
    try:
        rest = msgspec.json.encode(others)[1:-1]
        fields = msgspec.json.decode(b"{" + rest + b"}")
    except (msgspec.ValidationError, UnicodeEncodeError):
        return  # numbers that the parser refuses, lone surrogates
    a, b, c, d = spaces
    pair = f'{a}"{key}"{b}:{c}"{value}"{d}'.encode()
    tail = b'"messages":[{"role":"user"}]' + (b"," + rest if rest else b"")
    body = b"{" + (tail + b"," + pair if last else pair + b"," + tail) + b"}"
    if "messages" in others:
        return
    sent = msgspec.json.decode(rewritten(body))
    assert sent == {**fields, "model": ALIAS.model, "messages": [{"role": "user"}]}


@pytest.mark.parametrize(
    "alias", ['qu"ote', "back\\slash", "tab\tnewline\n", "Zoë", "rocket🚀", "a.b*c+(d)", "/"]
)
def test_an_alias_may_hold_any_character(alias: str) -> None:
    body = msgspec.json.encode(chat(model=alias, x="y"))
    assert rewritten(body, Alias(alias, "m")) == msgspec.json.encode(chat(model="m", x="y"))


def test_no_other_byte_is_touched() -> None:
    body = b'{ "messages" :[{"role":"user"}],\n"x": 1.50e0, "model" :\t"gpt-4o\\/mini" , "y":"\\u00e9"}'
    assert rewritten(body) == body.replace(b'"gpt-4o\\/mini"', b'"Qwen/Qwen3-8B"')


@pytest.mark.parametrize(
    "extra",
    [
        {"x": {"model": ALIAS.alias}},
        {"tools": [{"model": ALIAS.alias, "x": 1.5}]},
        {"x": f'"model":"{ALIAS.alias}"'},
        {"x": ["model", ALIAS.alias, "model"]},
        {'x"model': ALIAS.alias},
        {"model ": ALIAS.alias},
        {"x": [{"model": "other"}] * 400},
        {"x": "model" * 1000},
    ],
    ids=["nested", "tool", "in a text", "in a list", "key that ends so", "near key", "many", "text"],
)
def test_what_only_looks_like_the_model_is_left_alone(extra: dict[str, Any]) -> None:
    for fields in (chat(model=ALIAS.alias, **extra), {**extra, **chat(model=ALIAS.alias)}):
        sent = msgspec.json.decode(rewritten(msgspec.json.encode(fields)))
        assert sent == {**fields, "model": ALIAS.model}


def test_of_two_models_the_one_that_counts_is_replaced() -> None:
    body = b'{"model":"other","messages":[{"role":"user"}],"model":"gpt-4o/mini"}'
    assert msgspec.json.decode(rewritten(body))["model"] == ALIAS.model
    body = b'{"model":"gpt-4o/mini","messages":[{"role":"user"}],"mod\\u0065l":"gpt-4o/mini"}'
    assert msgspec.json.decode(rewritten(body))["model"] == ALIAS.model


# ---- bodies over 1 MiB


def large(**fields: Any) -> bytes:
    return msgspec.json.encode(chat(pad="x" * LARGE_BODY_BYTES, **fields))


def test_a_large_body_is_rewritten_in_place() -> None:
    body = large(model=ALIAS.alias, after=[{"model": "other"}])
    assert rewritten(body) == body.replace(b'"gpt-4o/mini"', b'"Qwen/Qwen3-8B"')


@pytest.mark.parametrize(
    "body",
    [
        large(model=ALIAS.alias, x={"model": ALIAS.alias}),
        large(model=ALIAS.alias).replace(b'"model"', b'"mod\\u0065l"'),
        large(model=ALIAS.alias, x=[{"model": "other"}] * 100_000),
        large(model=ALIAS.alias, x=["model"] * 1_000_000),
    ],
    ids=["repeated", "escaped", "many", "very many"],
)
def test_a_large_body_whose_place_is_not_certain_is_asked_to_name_the_model(body: bytes) -> None:
    with pytest.raises(Fault) as caught:
        rewritten(body)
    assert (caught.value.status, caught.value.param) == (400, "model")
    assert ALIAS.model in caught.value.message


# ---- forms


@given(st.binary(max_size=50), st.booleans())
@example(b'name="model"\r\n\r\ngpt-4o/mini\r\n', True)
def test_a_form_keeps_everything_but_its_model(file: bytes, first: bool) -> None:
    if b"--XyZ" in file:
        return
    parts = [("model", ALIAS.alias.encode()), ("prompt", b"model")]
    body, content_type = form(*(parts if first else parts[::-1]), file=file)
    request = Parser().parse(TRANSCRIPTIONS, raw(body, content_type))
    sent = ALIAS.rewrite(request)
    expected = [("model", ALIAS.model.encode()), ("prompt", b"model")]
    assert sent == form(*(expected if first else expected[::-1]), file=file)[0]
    assert read_fields(sent, content_type, frozenset({"model"}))["model"].value == ALIAS.model
