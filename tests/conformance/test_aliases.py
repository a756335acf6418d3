"""A model may be asked by another name; the backend hears its own."""

from __future__ import annotations

import json
from uuid import uuid4

import pytest

from ..support.gateway import Gateway
from .bodies import GENERATING, TEXT, WAVE, chat, message
from .conftest import ALIAS, ANTHROPIC_ALIAS
from .target import Target, assert_same


@pytest.mark.parametrize("path", TEXT)
def test_the_backend_is_asked_for_the_models_own_name(target: Target, guarded: Gateway, path: str) -> None:
    answer, exchange = target.tapped(path, TEXT[path](ALIAS))
    assert answer.status == 200, answer.body
    assert json.loads(exchange.request.body) == TEXT[path](target.model)
    assert_same(answer, exchange)


@pytest.mark.parametrize("path", GENERATING)
def test_a_stream_by_alias_is_the_backends_own(target: Target, guarded: Gateway, path: str) -> None:
    answer, exchange = target.tapped(path, GENERATING[path](ALIAS, stream=True))
    assert answer.status == 200, answer.body
    assert json.loads(exchange.request.body)["model"] == target.model
    assert_same(answer, exchange)


def test_no_other_byte_of_the_body_changes(target: Target, guarded: Gateway) -> None:
    form = (
        b'{"messages" : [ {"role":"user","content":"\\u0022model\\": \\"%b\\" \xc3\xa9"} ],'
        b'"model": "%b" ,"max_tokens":4}'
    )
    request_id = f"conformance-{uuid4().hex}"
    answer = target.ask(
        "POST",
        "/v1/chat/completions",
        content=form % (ALIAS.encode(), ALIAS.encode()),
        headers={"content-type": "application/json", "x-request-id": request_id},
    )
    assert answer.status == 200, answer.body
    assert target.tap.of(request_id).request.body == form % (ALIAS.encode(), target.model.encode())


def test_an_alias_in_other_places_of_the_body_stays(target: Target, guarded: Gateway) -> None:
    body = chat(ALIAS, metadata={"model": ALIAS, "note": ALIAS})
    answer, exchange = target.tapped("/v1/chat/completions", body)
    assert answer.status == 200, answer.body
    assert json.loads(exchange.request.body) == {**body, "model": target.model}


def test_a_form_by_alias_names_the_model(target: Target, guarded: Gateway) -> None:
    request_id = f"conformance-{uuid4().hex}"
    target.ask(
        "POST",
        "/v1/audio/transcriptions",
        data={"model": ALIAS, "prompt": f"about {ALIAS}"},
        files={"file": ("tower.wav", WAVE, "audio/wav")},
        headers={"x-request-id": request_id},
    )
    sent = target.tap.of(request_id).request.body
    assert f'name="model"\r\n\r\n{target.model}\r\n'.encode() in sent
    assert f"about {ALIAS}".encode() in sent
    assert WAVE in sent


def test_the_sdks_find_a_model_by_alias(target: Target, guarded: Gateway) -> None:
    assert target.openai().chat.completions.create(**chat(ALIAS)).choices
    assert target.anthropic().messages.create(**message(ANTHROPIC_ALIAS)).content
