"""The real openai SDK, plain, streamed and async, finds through Penstock what it would find at the server itself."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from ..support.procs import wait_until
from .bodies import CALLING, MAX_TOKENS, TOOL_CHOICE, TOOLS, chat, completion, response
from .target import Target

USER: list[Any] = [{"role": "user", "content": "How high is the tower?"}]

pytestmark = pytest.mark.protocols("http1", "http2")


def test_a_chat_completion_comes_back(target: Target) -> None:
    done = target.openai().chat.completions.create(**chat(target.model))
    assert done.object == "chat.completion"
    assert done.model == target.model
    assert done.choices[0].message.role == "assistant"
    assert done.choices[0].message.content
    assert done.choices[0].finish_reason in ("stop", "length")
    assert done.usage is not None
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens


async def test_a_chat_completion_comes_back_to_the_async_client(target: Target) -> None:
    async with target.async_openai() as client:
        done = await client.chat.completions.create(**chat(target.model))
    assert done.choices[0].message.content


def test_several_choices_come_back(target: Target) -> None:
    done = target.openai().chat.completions.create(**chat(target.model, n=2, temperature=1.0))
    assert [choice.index for choice in done.choices] == [0, 1]


def test_parameters_that_openai_does_not_know_reach_the_server(target: Target) -> None:
    done = target.openai().chat.completions.create(
        **chat(target.model), extra_body={"top_k": 1, "ignore_eos": True, "min_tokens": MAX_TOKENS}
    )
    assert done.usage is not None
    assert done.usage.completion_tokens == MAX_TOKENS
    assert done.choices[0].finish_reason == "length"


def test_a_streamed_chat_is_the_plain_one_in_pieces(target: Target) -> None:
    client = target.openai()
    plain = client.chat.completions.create(**chat(target.model))
    text, finishes, usage = "", [], None
    for part in client.chat.completions.create(
        **chat(target.model), stream=True, stream_options={"include_usage": True}
    ):
        for choice in part.choices:
            text += choice.delta.content or ""
            finishes += [choice.finish_reason] if choice.finish_reason else []
        usage = part.usage or usage
    assert text == plain.choices[0].message.content
    assert finishes == [plain.choices[0].finish_reason]
    assert usage is not None
    assert plain.usage is not None
    assert usage.completion_tokens == plain.usage.completion_tokens


async def test_the_async_client_streams_a_chat(target: Target) -> None:
    text = ""
    async with target.async_openai() as client:
        async for part in await client.chat.completions.create(**chat(target.model), stream=True):
            text += "".join(choice.delta.content or "" for choice in part.choices)
    assert text


def test_the_helper_for_streams_gathers_a_whole_completion(target: Target) -> None:
    with target.openai().chat.completions.stream(**chat(target.model)) as stream:
        for _ in stream:
            continue
        # not the final one: the helper refuses a text that ended at its limit of tokens
        done = stream.current_completion_snapshot
    assert done.choices[0].message.content
    assert done.choices[0].finish_reason in ("stop", "length")


def test_a_client_that_leaves_its_stream_can_ask_again(target: Target) -> None:
    client = target.openai()
    for _ in range(3):
        stream = client.chat.completions.create(**chat(target.model), stream=True)
        assert next(iter(stream))
        stream.close()
    assert client.chat.completions.create(**chat(target.model)).choices


def test_a_tool_is_called(target: Target) -> None:
    done = target.openai().chat.completions.create(
        **{**chat(target.model), **CALLING}, tools=TOOLS, tool_choice=TOOL_CHOICE
    )
    calls = done.choices[0].message.tool_calls
    assert calls
    assert calls[0].type == "function"
    assert calls[0].function.name == "get_weather"
    assert isinstance(json.loads(calls[0].function.arguments), dict)
    assert calls[0].id


def test_a_tool_call_streams_in_pieces(target: Target) -> None:
    name, arguments, ids = "", "", set()
    for part in target.openai().chat.completions.create(
        **{**chat(target.model), **CALLING}, tools=TOOLS, tool_choice=TOOL_CHOICE, stream=True
    ):
        for choice in part.choices:
            for call in choice.delta.tool_calls or []:
                assert call.function is not None
                name += call.function.name or ""
                arguments += call.function.arguments or ""
                ids |= {call.id} if call.id else set()
    assert name == "get_weather"
    assert isinstance(json.loads(arguments), dict)
    assert len(ids) == 1


def test_the_answer_of_a_tool_goes_back_into_the_conversation(target: Target) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'},
    }
    turns: list[Any] = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    done = target.openai().chat.completions.create(**{**chat(target.model), "messages": turns}, tools=TOOLS)
    assert done.choices[0].finish_reason


def test_a_completion_comes_back_plain_and_streamed(target: Target) -> None:
    client = target.openai()
    plain = client.completions.create(**completion(target.model))
    assert plain.object == "text_completion"
    streamed = "".join(
        choice.text
        for part in client.completions.create(**completion(target.model), stream=True)
        for choice in part.choices
    )
    assert streamed == plain.choices[0].text


def test_embeddings_come_back_as_floats_and_as_base64(target: Target) -> None:
    if target.pooling is None:
        pytest.skip("the backend has no pooling model")
    client = target.openai()
    floats = client.embeddings.create(
        model=target.pooling, input=["a tower", "a dam"], encoding_format="float"
    )
    packed = client.embeddings.create(model=target.pooling, input=["a tower", "a dam"])
    assert [item.index for item in floats.data] == [0, 1]
    assert len(floats.data[0].embedding) > 1
    assert packed.data[0].embedding == pytest.approx(floats.data[0].embedding, rel=1e-3, abs=1e-3)


def test_a_response_comes_back(target: Target) -> None:
    done = target.openai().responses.create(**response(target.model))
    assert done.object == "response"
    assert done.status in ("completed", "incomplete")
    assert done.output_text
    assert done.usage is not None


def test_a_response_streams_its_events_in_order(target: Target) -> None:
    text, kinds, numbers = "", [], []
    for event in target.openai().responses.create(**response(target.model), stream=True):
        kinds.append(event.type)
        numbers.append(event.sequence_number)
        if event.type == "response.output_text.delta":
            text += event.delta
    assert kinds[0] == "response.created"
    assert kinds[-1] in ("response.completed", "response.incomplete")
    assert numbers == sorted(numbers)
    assert text


async def test_the_async_client_streams_a_response(target: Target) -> None:
    kinds = []
    async with target.async_openai() as client:
        async for event in await client.responses.create(**response(target.model), stream=True):
            kinds.append(event.type)
    assert kinds[-1] in ("response.completed", "response.incomplete")


def test_a_stored_response_is_found_by_its_id(target: Target) -> None:
    client = target.openai()
    made = client.responses.create(**response(target.model), store=True)
    found = client.responses.retrieve(made.id)
    assert found.id == made.id
    assert found.output_text == made.output_text


def test_a_response_in_the_background_is_cancelled_by_its_id(target: Target) -> None:
    client = target.openai()
    made = client.responses.create(
        **{**response(target.model), "max_output_tokens": 400}, background=True, store=True
    )
    assert made.status in ("queued", "in_progress", "completed", "incomplete")
    try:
        cancelled = client.responses.cancel(made.id)
    except openai.BadRequestError:
        # it was over before the call came
        assert client.responses.retrieve(made.id).status in ("completed", "incomplete")
    else:
        assert cancelled.id == made.id


def test_a_stored_response_is_deleted_by_its_id(generated: Target) -> None:
    client = generated.openai()
    made = client.responses.create(**response(generated.model), store=True)
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_a_conversation_goes_on_from_a_stored_response(target: Target) -> None:
    client = target.openai()
    first = client.responses.create(**response(target.model), store=True)
    second = client.responses.create(**response(target.model), previous_response_id=first.id)
    assert second.id != first.id
    assert second.output_text


def test_a_response_nobody_stored_is_not_found(target: Target) -> None:
    path = "/v1/responses/resp_0123456789abcdef"

    # a backend that refuses might have it, until the probes have found it dead
    def settled() -> bool:  # every worker looks for itself
        return all(target.ask("GET", path).status != 502 for _ in range(12))

    wait_until(settled, 30, "the probes' verdict on the dead models")
    with pytest.raises(openai.NotFoundError) as caught:
        target.openai().responses.retrieve("resp_0123456789abcdef")
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["message"]


def test_models_are_listed_and_retrieved(target: Target) -> None:
    client = target.openai()
    assert target.model in [model.id for model in client.models.list()]
    if target.gateway is not None:
        assert client.models.retrieve(target.model).id == target.model


def test_an_unknown_model_is_not_found_error(target: Target) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        target.openai().chat.completions.create(**chat("no-such-model"))
    assert isinstance(caught.value.body, dict)
    assert "no-such-model" in caught.value.body["message"]


def test_a_bad_parameter_is_a_bad_request_error(target: Target) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        target.openai().chat.completions.create(**chat(target.model, temperature="hot"))
    assert caught.value.param is not None
    assert "temperature" in caught.value.param


def test_fifty_requests_over_one_client_all_come_back(target: Target) -> None:
    client = target.openai()
    for n in range(50):
        assert client.completions.create(**completion(target.model, max_tokens=1 + n % 3)).choices


def test_a_response_calls_a_tool(generated: Target) -> None:
    tool: Any = {"type": "function", "name": "get_weather", "parameters": TOOLS[0]["function"]["parameters"]}
    done = generated.openai().responses.create(
        **response(generated.model), tools=[tool], tool_choice={"type": "function", "name": "get_weather"}
    )
    calls = [item for item in done.output if item.type == "function_call"]
    assert calls
    assert calls[0].name == "get_weather"
