"""The real anthropic SDK on `/v1/messages`: plain, streamed, async, counted, and its errors."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest

from ..support.gateway import Gateway
from .bodies import MAX_TOKENS, WEATHER, count_tokens, message
from .target import Target

TOOL: Any = {"name": "get_weather", "description": "The weather of a city.", "input_schema": WEATHER}
STOPS = ("end_turn", "max_tokens", "stop_sequence")

pytestmark = pytest.mark.protocols("http1", "http2")


def _text(content: Any) -> str:
    return "".join(block.text for block in content if block.type == "text")


def test_a_message_comes_back(target: Target) -> None:
    done = target.anthropic().messages.create(**message(target.model))
    assert done.type == "message"
    assert done.role == "assistant"
    assert done.model == target.model
    assert _text(done.content)
    assert done.stop_reason in STOPS
    assert done.usage.output_tokens <= MAX_TOKENS


async def test_a_message_comes_back_to_the_async_client(target: Target) -> None:
    async with target.async_anthropic() as client:
        done = await client.messages.create(**message(target.model))
    assert _text(done.content)


def test_a_message_streams_its_events_in_order(target: Target) -> None:
    kinds = [event.type for event in target.anthropic().messages.create(**message(target.model), stream=True)]
    assert kinds[0] == "message_start"
    assert "content_block_delta" in kinds
    assert kinds[-2:] == ["message_delta", "message_stop"]


def test_the_helper_for_streams_gathers_a_whole_message(target: Target) -> None:
    with target.anthropic().messages.stream(**message(target.model)) as stream:
        text = "".join(stream.text_stream)
        done = stream.get_final_message()
    assert text == _text(done.content)
    assert done.stop_reason in STOPS


async def test_the_async_helper_for_streams_gathers_a_whole_message(target: Target) -> None:
    async with target.async_anthropic() as client, client.messages.stream(**message(target.model)) as stream:
        done = await stream.get_final_message()
    assert _text(done.content)


def test_a_system_prompt_and_blocks_of_content_are_taken(target: Target) -> None:
    turns: Any = [{"role": "user", "content": [{"type": "text", "text": "How high is the tower?"}]}]
    done = target.anthropic().messages.create(
        model=target.model, max_tokens=MAX_TOKENS, messages=turns, system="You are a lighthouse."
    )
    assert done.stop_reason in STOPS


def test_a_tool_is_used(target: Target) -> None:
    done = target.anthropic().messages.create(
        **{**message(target.model), "max_tokens": 256},
        tools=[TOOL],
        tool_choice={"type": "tool", "name": "get_weather"},
    )
    uses = [block for block in done.content if block.type == "tool_use"]
    assert uses
    assert uses[0].name == "get_weather"
    assert isinstance(uses[0].input, dict)


def test_tokens_are_counted(target: Target) -> None:
    counted = target.anthropic().messages.count_tokens(**count_tokens(target.model))
    assert counted.input_tokens > 0


def test_a_key_in_x_api_key_works_as_well(target: Target, guarded: Gateway) -> None:
    client = anthropic.Anthropic(base_url=target.url, api_key=target.key, max_retries=0)
    assert client.messages.create(**message(target.model)).content


def test_an_unknown_model_is_a_not_found_error(target: Target, guarded: Gateway) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        target.anthropic().messages.create(**message("no-such-model"))
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["type"] == "not_found_error"
    assert "no-such-model" in caught.value.body["error"]["message"]


def test_a_bad_body_is_a_bad_request_error(target: Target, guarded: Gateway) -> None:
    bad: Any = {**message(target.model), "messages": [{"role": 5, "content": "x"}]}
    with pytest.raises(anthropic.BadRequestError) as caught:
        target.anthropic().messages.create(**bad)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["type"] == "invalid_request_error"
