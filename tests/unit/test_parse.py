"""One decode gives a request or a fault that names the field; nothing else comes out, whatever goes in."""

import sys
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock.gateway.endpoints import ENDPOINTS
from penstock.gateway.errors import Fault, Kind
from penstock.gateway.parse import LARGE_BODY_BYTES, MANY_CONTAINERS, Parser
from penstock.gateway.schema import Routed

from .requests import CHAT, SMALLEST, chat, form, parsed, raw

TRANSCRIPTIONS = ENDPOINTS["/v1/audio/transcriptions"]

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.text(alphabet="model\"\\:{}[],'", max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
fields_of_interest = st.dictionaries(
    st.sampled_from(
        [
            *("model", "stream", "messages", "prompt", "input", "temperature", "n", "seed", "tools"),
            *("stream_options", "max_tokens", "store", "previous_response_id", "anything"),
        ]
    ),
    values,
)
endpoints = st.sampled_from(sorted(ENDPOINTS))


def fault_of(body: bytes, endpoint: str = "/v1/chat/completions", **options: Any) -> Fault:
    with pytest.raises(Fault) as caught:
        Parser().parse(ENDPOINTS[endpoint], raw(body, **options))
    return caught.value


def only_a_fault(endpoint: str, body: bytes, content_type: str = "application/json") -> None:
    try:
        request = Parser().parse(ENDPOINTS[endpoint], raw(body, content_type))
    except Fault as fault:
        assert fault.status in (400, 411, 415)
    else:
        assert request.body is body
        assert request.model
        assert type(request.stream) is bool


@given(endpoints, st.binary(max_size=200))
@example("/v1/chat/completions", b"[" * 100_000)
@example("/v1/chat/completions", b'{"model":' * 50_000)
@example("/v1/chat/completions", b'{"model":"m","messages":' + b"[" * 5000 + b"]" * 5000 + b"}")
@example("/v1/chat/completions", b'{"model":"m","x":"\\ud800"}')
@example("/v1/chat/completions", b'{"model":"m","x":"\xff"}')
@example("/v1/chat/completions", b'{"model":"\xff\xfe"}')
@example("/v1/chat/completions", b'{"model":"m","x":1e999}')
@example("/v1/chat/completions", b'{"model":"m","x":' + b"9" * 5000 + b"}")
@example("/v1/chat/completions", b'{"model":"m","x":NaN}')
@example("/v1/chat/completions", b'\xef\xbb\xbf{"model":"m"}')
def test_any_bytes_are_a_request_or_a_fault_of_the_client(endpoint: str, body: bytes) -> None:
    only_a_fault(endpoint, body)


@given(endpoints, values | fields_of_interest)
def test_any_json_is_a_request_or_a_fault_of_the_client(endpoint: str, value: Any) -> None:
    try:
        body = msgspec.json.encode(value)
    except (UnicodeEncodeError, OverflowError):
        return  # a lone surrogate: not a text
    only_a_fault(endpoint, body)


@given(st.binary(max_size=300), st.text(max_size=60))
@example(b"", "multipart/form-data; boundary=x")
@example(b"--x\r\n\r\n", "multipart/form-data; boundary=x")
@example(b"--x", "multipart/form-data; boundary=")
@example(b'--x\r\nContent-Disposition: form-data; name="model"', "multipart/form-data; boundary=x")
def test_any_form_is_a_request_or_a_fault_of_the_client(body: bytes, content_type: str) -> None:
    only_a_fault("/v1/audio/transcriptions", body, content_type)
    only_a_fault("/v1/audio/transcriptions", body, "multipart/form-data; boundary=XyZ")
    whole, kind = form(("model", b"m"), ("x", body))
    only_a_fault("/v1/audio/transcriptions", whole, kind)


@pytest.mark.parametrize("path", sorted(SMALLEST))
@pytest.mark.parametrize("stream", [None, False, True])
def test_every_endpoint_takes_its_least_body(path: str, stream: bool | None) -> None:
    fields = {"model": "m", **SMALLEST[path]} | ({} if stream is None else {"stream": stream})
    request = parsed(fields, ENDPOINTS[path])
    assert (request.model, request.stream, request.fields) == ("m", stream is True, fields)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (chat(messages=[{"role": "user"}, {"role": "x"}, {"content": "hi"}]), "messages[2].role"),
        (chat(messages=[{"role": "user"}, {"role": 3}]), "messages[1].role"),
        (chat(messages="hi"), "messages"),
        (chat(messages=[]), "messages"),
        ({"model": "m"}, "messages"),
        ({"messages": [{"role": "user"}]}, "model"),
        (chat(model=3), "model"),
        (chat(model=""), "model"),
        (chat(stream="yes"), "stream"),
        (chat(temperature=-1), "temperature"),
        (chat(temperature="hot"), "temperature"),
        (chat(n=0), "n"),
        (chat(stream_options={"include_usage": 1}), "stream_options.include_usage"),
        (chat(tools=[1]), "tools[0]"),
    ],
)
def test_a_field_of_a_wrong_type_or_range_is_named_by_its_path(fields: dict[str, Any], param: str) -> None:
    fault = fault_of(msgspec.json.encode(fields))
    assert fault.kind is Kind.INVALID_REQUEST
    assert fault.param == param
    assert f"'{param}'" in fault.message


@pytest.mark.parametrize("body", [b"[]", b"3", b'"text"', b"null"])
def test_json_that_is_no_object_is_refused(body: bytes) -> None:
    assert fault_of(body).kind is Kind.INVALID_REQUEST


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b'{"model":"m"',
        b"{}x",
        b"not json",
        b"\xff\xfe",
        b'{"model":"m",}',
        b"[" * 100_000,
        b'{"a":"\xc3"}',
    ],
)
def test_what_is_not_json_is_called_that(body: bytes) -> None:
    fault = fault_of(body)
    assert fault.kind is Kind.INVALID_JSON
    assert "not JSON" in fault.message


def test_a_missing_body_is_411() -> None:
    assert fault_of(b"").status == 411
    assert (
        fault_of(b"", "/v1/audio/transcriptions", content_type="multipart/form-data; boundary=x").status
        == 411
    )


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "text/plain",
        "application/jsonp",
        "application/json-seq",
        "application/x-www-form-urlencoded",
        "json",
    ],
)
def test_another_media_type_is_415(content_type: str) -> None:
    assert fault_of(b"{}", content_type=content_type).status == 415


@pytest.mark.parametrize(
    "content_type",
    [
        *("application/json", "application/json; charset=utf-8", "Application/JSON", "application/json ;x=y"),
        "application/vnd.api+json",
    ],
)
def test_json_is_known_in_any_spelling_of_its_media_type(content_type: str) -> None:
    request = Parser().parse(CHAT, raw(msgspec.json.encode(chat()), content_type))
    assert request.model == "m"


def test_unknown_fields_are_kept() -> None:
    fields = chat(anything={"new": [1, 2.5, None]}, guided_json={"type": "object"})
    assert parsed(fields).fields == fields


def test_of_two_equal_keys_the_last_counts_in_small_and_large_bodies() -> None:
    small = b'{"model":"a","messages":[{"role":"user"}],"model":"b"}'
    large = small[:-1] + b',"x":"' + b"y" * LARGE_BODY_BYTES + b'"}'
    for body in (small, large):
        assert Parser().parse(CHAT, raw(body)).model == "b"


# ---- bodies over 1 MiB


class Counting(Parser):
    """A parser whose decodes are counted."""

    def __init__(self) -> None:
        self.whole = self.routed = 0
        whole, routed = msgspec.json.Decoder().decode, msgspec.json.Decoder(Routed).decode

        def decode(body: bytes) -> Any:
            self.whole += 1
            return whole(body)

        def decode_routed(body: bytes) -> Routed:
            self.routed += 1
            return routed(body)

        super().__init__(decode, decode_routed)


def padded(size: int) -> bytes:
    """A chat body of exactly `size` bytes."""
    body = msgspec.json.encode(chat(pad=""))
    return body[:-2] + b"x" * (size - len(body)) + b'"}'


@pytest.mark.parametrize(("size", "counts"), [(LARGE_BODY_BYTES, (1, 0)), (LARGE_BODY_BYTES + 1, (0, 1))])
def test_over_1_mib_only_model_and_stream_are_decoded(size: int, counts: tuple[int, int]) -> None:
    parser = Counting()
    body = padded(size)
    assert len(body) == size
    request = parser.parse(CHAT, raw(body))
    assert (parser.whole, parser.routed) == counts
    assert (request.fields is None) is (counts == (0, 1))


NASTY = {
    "empty objects": b"[" + b"{}," * 3_400_000 + b"{}]",
    "nested lists": b"[" * 900 + b"1" + b"]" * 900 + b" " * (9 << 20),
    "small ints": b"[" + b"1," * 5_000_000 + b"1]",
    "big ints": b"[" + (b"9" * 300 + b",") * 34_000 + b"1]",
    "empty strings": b"[" + b'"",' * 3_400_000 + b'""]',
    "escapes": b'"' + b'\\"' * 5_000_000 + b'"',
    "keys": b"{" + b'"a":1,' * 1_700_000 + b'"b":1}',
    "models": b"[" + b'{"model":"m"},' * 700_000 + b"1]",
}


@pytest.mark.parametrize("kind", sorted(NASTY))
def test_nothing_is_built_of_the_rest_of_10_mib(kind: str) -> None:
    body = b'{"model":"m","stream":true,"x":' + NASTY[kind] + b"}"
    assert 9 << 20 <= len(body) <= 11 << 20
    parser = Parser()

    def peak_bytes() -> int:
        tracemalloc.start()
        try:
            request = parser.parse(CHAT, raw(body))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert (request.model, request.stream) == ("m", True)
        return peak

    # other tests' servers may live in this process, whose threads allocate too
    least = min(peak_bytes() for _ in range(3))
    assert least < 16 << 10, "skipped, not built: what is built takes time on the loop"


@pytest.mark.parametrize(
    "rest",
    [
        b"[" * (5 << 20),
        b'{"a":' * (1 << 20),
        b"{}," * (1 << 20),
        b'"' + b"x" * (2 << 20),
        b'"' + b"x" * (2 << 20) + b'\xff"}',
    ],
)
def test_a_large_body_that_is_no_json_is_400(rest: bytes) -> None:
    try:
        request = Parser().parse(CHAT, raw(b'{"model":"m","x":' + rest))
    except Fault as fault:
        assert fault.kind is Kind.INVALID_JSON
    else:
        # text that is skipped is not looked at; the backend refuses it
        assert rest.endswith(b'\xff"}')
        assert request.fields is None


# ---- forms


def test_a_form_names_its_model_wherever_it_stands() -> None:
    for parts in ([("model", b"m"), ("a", b"b")], [("a", b"b"), ("model", b"m")]):
        body, content_type = form(*parts, ("stream", b"true"))
        request = Parser().parse(TRANSCRIPTIONS, raw(body, content_type))
        assert (request.model, request.stream, request.fields) == ("m", True, None)
        assert request.body is body


@pytest.mark.parametrize(
    ("text", "stream"), [(b"true", True), (b"True", True), (b"1", True), (b"false", False)]
)
def test_a_form_asks_for_a_stream_in_words(text: bytes, stream: bool) -> None:
    body, content_type = form(("model", b"m"), ("stream", text))
    assert Parser().parse(TRANSCRIPTIONS, raw(body, content_type)).stream is stream


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        form(("a", b"b")),
        form(("model", b"")),
        form(("model", b"x" * 300)),
        (form(("model", b"m"))[0][:-8], "multipart/form-data; boundary=XyZ"),
        (form(("model", b"m"))[0], "multipart/form-data"),
        (form(("model", b"m"))[0], "multipart/form-data; boundary=other"),
        (form(("model", b"m"))[0], f"multipart/form-data; boundary={'x' * 300}"),
    ],
    ids=["no model", "empty", "too long", "cut", "no boundary", "wrong boundary", "long boundary"],
)
def test_a_form_without_a_usable_model_is_400(body: bytes, content_type: str) -> None:
    assert fault_of(body, "/v1/audio/transcriptions", content_type=content_type).status == 400


def test_a_file_called_model_is_no_model() -> None:
    body, content_type = form(("a", b"b"))
    body = body.replace(b'name="file"', b'name="model"')
    assert fault_of(body, "/v1/audio/transcriptions", content_type=content_type).param == "model"


def test_the_fields_of_a_large_file_are_found_without_copying_it() -> None:
    body, content_type = form(("language", b"de"), ("model", b"m"), file=b"\r\n--Xy" * (1 << 20))
    tracemalloc.start()
    try:
        request = Parser().parse(TRANSCRIPTIONS, raw(body, content_type))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert request.model == "m"
    assert peak < len(body) // 4


@pytest.mark.parametrize(("count", "built"), [(MANY_CONTAINERS - 1000, True), (MANY_CONTAINERS + 1, False)])
def test_a_body_of_very_many_objects_is_read_like_a_large_one(count: int, built: bool) -> None:
    body = b'{"model":"m","input":"x","more":[' + b",".join([b"[]"] * count) + b"]}"
    assert (Parser().parse(ENDPOINTS["/v1/embeddings"], raw(body)).fields is not None) is built


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"model":"m","messages":[],"temperature":1e400}', None),
        (b'{"model":"m","messages":[{"role":"user","content":[{"x":-1e999}]}]}', None),
        (b"[1e400]", "[0]"),
        (b"1e400", None),
    ],
)
def test_a_number_out_of_range_is_named_by_what_is_known_of_its_path(body: bytes, param: str | None) -> None:
    fault = fault_of(body)
    assert (fault.status, fault.param) == (400, param)
    assert "out of range" in fault.message
    assert "[...]" not in fault.message


# ---- hostile forms


def multipart(*parts: bytes) -> bytes:
    """A form whose parts, headers and all, are these."""
    return b"".join(b"--XyZ\r\n%b\r\n" % part for part in parts) + b"--XyZ--\r\n"


MODEL_PART = b'Content-Disposition: form-data; name="model"\r\n\r\nm'
EMPTY_PART = b"A: b\r\n\r\n"


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ((MODEL_PART, *[EMPTY_PART] * 64), "64 parts"),
        ((MODEL_PART, b"A: b\r\n" * 17 + b"\r\n"), "16 headers"),
        ((MODEL_PART, b"A: " + b"b" * 9000 + b"\r\n\r\n"), "8192 bytes"),
        ((b"Content-Disposition: form-data" + b";" * 33 + b"\r\n\r\n", MODEL_PART), "32 parameters"),
        ((b"A: b\r\n" + MODEL_PART.replace(b"Content", b"Content "),), "name: value"),
        ((b"Content-Disposition: form-data\r\n" + MODEL_PART,), "two Content-Disposition"),
        ((MODEL_PART, b"A: b\r\n--XyZ\r\nA: b\r\n\r\n"), "name: value"),
        ((MODEL_PART, b"A: b\r\n\r\n--XyZ\r\nA: b\r\n\r\n"), "among its headers"),
        ((MODEL_PART, EMPTY_PART + b"\r\n--XyZw\r\n"), "begins with the boundary"),
        ((MODEL_PART, b"A: b\r\n"), "among its headers"),
    ],
)
def test_a_form_that_is_too_much_or_ambiguous_is_400_and_says_why(parts: tuple[bytes, ...], why: str) -> None:
    fault = fault_of(
        multipart(*parts), "/v1/audio/transcriptions", content_type="multipart/form-data; boundary=XyZ"
    )
    assert fault.status == 400
    assert why in fault.message


@pytest.mark.parametrize(
    "body",
    [
        multipart(MODEL_PART, *[EMPTY_PART] * 63),
        multipart(b"A: b\r\n" * 15 + MODEL_PART),
        multipart(b"\r\nno headers", MODEL_PART),
        multipart(MODEL_PART).replace(b"--XyZ\r\n", b"--XyZ \t\r\n"),
        b"a preamble\r\n" + multipart(MODEL_PART) + b"an epilogue\r\n--XyZ",
        multipart(MODEL_PART, EMPTY_PART + b"\r\n--XyY\r--XyZ\n--XyZ --XyZ\r\n-XyZ"),
    ],
    ids=["64 parts", "16 headers", "no headers", "padding", "preamble", "near delimiters"],
)
def test_a_lawful_form_is_read_however_odd(body: bytes) -> None:
    request = Parser().parse(TRANSCRIPTIONS, raw(body, "multipart/form-data; boundary=XyZ"))
    assert request.model == "m"
    assert request.form_model is not None
    assert body[request.form_model.start : request.form_model.end] == b"m"


def test_a_flood_of_parts_is_given_up_at_the_cap() -> None:
    body = multipart(MODEL_PART, *[EMPTY_PART] * 200_000)
    events = 0

    def count(*_: object) -> None:
        nonlocal events
        events += 1

    sys.setprofile(count)
    try:
        fault = fault_of(body, "/v1/audio/transcriptions", content_type="multipart/form-data; boundary=XyZ")
    finally:
        sys.setprofile(None)
    assert fault.status == 400
    assert events < 5000
