"""The simulator alone, seen by the real openai and anthropic SDKs and by plain HTTP."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.support.procs import Proc, accepts, free_port, wait_until

MESSAGES: Any = [{"role": "user", "content": "hello there"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
}
TOOLS: Any = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]
ANTHROPIC_TOOLS: Any = [{"name": "get_weather", "input_schema": PARAMETERS}]


@contextmanager
def running(*flags: str) -> Iterator[str]:
    """A simulator of its own; gives its URL."""
    port = free_port()
    argv = [sys.executable, "-m", "penstock.loadtests.sim.main", "--port", str(port), *flags]
    with Proc(argv, name="sim", ready=lambda: accepts("127.0.0.1", port)):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running("--model", "first", "--model", "second") as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def claude(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        yield client


def test_a_streamed_chat_says_what_the_plain_one_says(client):
    asked: dict[str, Any] = {
        "model": "first",
        "messages": MESSAGES,
        "n": 2,
        "logprobs": True,
        "top_logprobs": 2,
    }
    plain = client.chat.completions.create(**asked)
    said, reasons, usage = {0: "", 1: ""}, {}, None
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
        usage = chunk.usage
    assert said == {c.index: c.message.content for c in plain.choices}
    assert reasons == {c.index: c.finish_reason for c in plain.choices}
    assert usage == plain.usage
    assert plain.choices[0].logprobs.content[0].top_logprobs[1].logprob < 0


def test_equal_requests_get_equal_bytes_and_other_requests_do_not(http):
    body = {"model": "first", "messages": MESSAGES}
    first, again = (http.post("/v1/chat/completions", json=body) for _ in range(2))
    assert first.content == again.content
    assert first.headers == again.headers
    other = http.post("/v1/chat/completions", json=body | {"seed": 1})
    assert other.json()["choices"] != first.json()["choices"]


def test_a_required_tool_is_called_plain_and_streamed(client):
    asked: dict[str, Any] = {
        "model": "first",
        "messages": MESSAGES,
        "tools": TOOLS,
        "tool_choice": "required",
    }
    plain = client.chat.completions.create(**asked)
    (call,) = plain.choices[0].message.tool_calls
    assert plain.choices[0].finish_reason == "tool_calls"
    assert set(json.loads(call.function.arguments)) == {"city", "days"}
    with client.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion()
    assert streamed.choices[0].message.tool_calls[0].function.arguments == call.function.arguments
    assert streamed.choices[0].message.tool_calls[0].id == call.id


def test_an_automatic_tool_choice_calls_a_tool_that_is_named_and_only_then(client):
    def reason(content: str) -> str:
        asked = [{"role": "user", "content": content}]
        answer = client.chat.completions.create(model="first", messages=asked, tools=TOOLS)
        return answer.choices[0].finish_reason

    assert reason("please get_weather for me") == "tool_calls"
    assert reason("tell me a story") == "stop"


def test_a_json_schema_shapes_the_content(client):
    shape: Any = {"type": "json_schema", "json_schema": {"name": "weather", "schema": PARAMETERS}}
    answer = client.chat.completions.create(model="first", messages=MESSAGES, response_format=shape)
    assert set(json.loads(answer.choices[0].message.content)) == {"city", "days"}


def test_completions_number_choices_by_prompt_and_n(client):
    plain = client.completions.create(model="first", prompt=["a", "b"], n=2, echo=True, logprobs=1)
    assert [c.index for c in plain.choices] == [0, 1, 2, 3]
    assert [c.text[0] for c in plain.choices] == ["a", "a", "b", "b"]
    whole = client.completions.create(model="first", prompt="x", max_tokens=9)
    stream = client.completions.create(model="first", prompt="x", max_tokens=9, stream=True)
    assert "".join(c.choices[0].text for c in stream) == whole.choices[0].text
    assert whole.choices[0].finish_reason == "length"


def test_embeddings_are_the_same_in_both_encodings(client):
    coded = client.embeddings.create(model="first", input=["a", "b"])
    plain = client.embeddings.create(model="first", input=["b", "a"], encoding_format="float", dimensions=64)
    assert coded.data[0].embedding == plain.data[1].embedding
    assert len(coded.data[0].embedding) == 64


def test_a_response_streams_the_true_sequence_of_events(client):
    plain = client.responses.create(model="first", input="hi", instructions="be brief")
    with client.responses.stream(model="first", input="hi", instructions="be brief") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert final.output_text == plain.output_text
    assert final.id == plain.id


def test_a_response_can_call_a_function(client):
    tools: Any = [{"type": "function", "name": "get_weather", "parameters": PARAMETERS}]
    asked: dict[str, Any] = {"model": "first", "input": "hi", "tools": tools, "tool_choice": "required"}
    plain = client.responses.create(**asked)
    with client.responses.stream(**asked) as stream:
        final = stream.get_final_response()
    assert final.output[0].arguments == plain.output[0].arguments
    assert final.output[0].type == "function_call"


def test_a_stored_response_can_be_read_continued_and_deleted(client):
    first = client.responses.create(model="first", input="hi")
    assert client.responses.retrieve(first.id).output_text == first.output_text
    follow = client.responses.create(model="first", input="and?", previous_response_id=first.id)
    assert follow.usage.input_tokens > first.usage.input_tokens
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="first", input="and?", previous_response_id=first.id)
    unstored = client.responses.create(model="first", input="hi", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unstored.id)


def test_a_background_response_completes_or_is_cancelled():
    with running("--decode-ms", "20") as url, openai.OpenAI(base_url=f"{url}/v1", api_key="x") as client:
        asked = client.responses.create(model="m", input="hi", background=True, max_output_tokens=3)
        assert asked.status == "queued"
        done = wait_until(
            lambda: (r := client.responses.retrieve(asked.id)).status == "incomplete" and r, what="completion"
        )
        assert done.output_text
        endless = client.responses.create(
            model="m", input="x" * 50, background=True, extra_body={"min_tokens": 9000}
        )
        assert client.responses.cancel(endless.id).status == "cancelled"
        assert client.responses.retrieve(endless.id).status == "cancelled"
        wait_until(
            lambda: httpx.get(f"{url}/sim/stats").json()["engine"]["running"] == 0,
            what="the engine to be idle",
        )


def test_anthropics_sdk_reads_messages_plain_and_streamed(claude):
    asked: dict[str, Any] = {"model": "first", "max_tokens": 100, "messages": MESSAGES, "system": "be nice"}
    plain = claude.messages.create(**asked)
    with claude.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    assert streamed.content[0].text == plain.content[0].text
    assert streamed.stop_reason == plain.stop_reason == "end_turn"
    assert streamed.usage == plain.usage
    assert claude.messages.create(**(asked | {"max_tokens": 2})).stop_reason == "max_tokens"
    assert claude.messages.count_tokens(model="first", messages=MESSAGES).input_tokens > 0


def test_anthropics_sdk_reads_tool_use(claude):
    asked: dict[str, Any] = {
        "model": "first",
        "max_tokens": 100,
        "messages": MESSAGES,
        "tools": ANTHROPIC_TOOLS,
        "tool_choice": {"type": "any"},
    }
    plain = claude.messages.create(**asked)
    with claude.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    assert plain.content[0].input == streamed.content[0].input
    assert set(plain.content[0].input) == {"city", "days"}
    assert plain.stop_reason == streamed.stop_reason == "tool_use"


def test_audio_is_transcribed_from_a_form(client, http):
    audio = ("a.wav", b"RIFF" + b"\0" * 64_000)
    plain = client.audio.transcriptions.create(model="first", file=audio)
    stream = client.audio.transcriptions.create(model="first", file=audio, stream=True)
    pieces = [c.choices[0]["delta"]["content"] for c in stream if c.choices]
    assert "".join(pieces) == plain.text
    translated = http.post("/v1/audio/translations", files={"file": audio}, data={"model": "first"})
    assert translated.json()["text"] != plain.text


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_rerank_orders_by_relevance(http, path):
    answer = http.post(path, json={"query": "q", "documents": ["a", "b", "c"], "top_n": 2}).json()
    scores = [r["relevance_score"] for r in answer["results"]]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)


def test_the_other_numbers_have_vllms_shapes(http):
    scored = http.post("/v1/score", json={"text_1": "q", "text_2": ["a", "b"]}).json()
    assert [d["object"] for d in scored["data"]] == ["score", "score"]
    classified = http.post("/classify", json={"input": "a"}).json()
    assert abs(sum(classified["data"][0]["probs"]) - 1) < 1e-9
    assert len(http.post("/pooling", json={"input": "a"}).json()["data"][0]["data"]) == 64


def test_detokenize_undoes_tokenize(http):
    ids = http.post("/tokenize", json={"prompt": "grüße, 世界"}).json()["tokens"]
    assert http.post("/detokenize", json={"tokens": ids}).json() == {"prompt": "grüße, 世界"}


def test_models_health_version_and_load_answer(client, http):
    assert [m.id for m in client.models.list()] == ["first", "second"]
    assert client.models.retrieve("second").id == "second"
    assert http.get("/health").status_code == 200
    assert http.get("/version").json()["version"]
    assert http.get("/load").json() == {"server_load": 0}


def test_metrics_carry_vllms_names_and_count(http):
    def value(name: str) -> float:
        lines = http.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    before = value("vllm:request_success_total")
    made = value("vllm:generation_tokens_total")
    usage = http.post("/v1/completions", json={"prompt": "x", "max_tokens": 5}).json()["usage"]
    assert value("vllm:request_success_total") == before + 1
    assert value("vllm:generation_tokens_total") == made + usage["completion_tokens"]
    text = http.get("/metrics").text
    for name in (
        *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prompt_tokens_total"),
        *("prefix_cache_queries_total", "prefix_cache_hits_total", "num_preemptions_total"),
        *("time_to_first_token_seconds_bucket", "e2e_request_latency_seconds_sum"),
    ):
        assert f'vllm:{name}{{engine="0",model_name="first"' in text


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/v1/chat/completions", b"{", 400, None),
        ("/v1/chat/completions", b"[]", 400, None),
        ("/v1/chat/completions", b'{"messages":[]}', 400, "messages"),
        ("/v1/chat/completions", b'{"messages":[{"content":"x"}]}', 400, "messages[0].role"),
        (
            "/v1/chat/completions",
            b'{"messages":[{"role":"user","content":"x"}],"temperature":9}',
            400,
            "temperature",
        ),
        ("/v1/completions", b'{"prompt":"x","max_tokens":0}', 400, "max_tokens"),
        ("/v1/completions", b'{"prompt":"x","max_tokens":999999999}', 400, "max_tokens"),
        ("/v1/embeddings", b'{"input":{}}', 400, "input"),
        ("/v1/responses", b'{"input":"x","previous_response_id":"y"}', 404, "previous_response_id"),
    ],
)
def test_errors_have_vllms_shape(http, path, body, status, param):
    answer = http.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["code"]) == (param, status)


def test_errors_on_messages_have_anthropics_shape(http):
    answer = http.post("/v1/messages", json={"model": "first", "messages": MESSAGES})
    assert answer.status_code == 400
    assert answer.json()["type"] == "error"
    assert set(answer.json()["error"]) == {"type", "message"}


def test_unknown_paths_and_methods_answer_as_fastapi_does(http):
    assert http.get("/nowhere").json() == {"detail": "Not Found"}
    assert http.get("/v1/chat/completions").json() == {"detail": "Method Not Allowed"}


def test_an_api_key_guards_v1_alone_and_answers_as_vllm_does():
    with running("--api-key", "secret", "--no-any-model", "--model", "known") as url:
        answer = httpx.get(f"{url}/v1/models")
        assert (answer.status_code, answer.json()) == (401, {"error": "Unauthorized"})
        assert httpx.get(f"{url}/health").status_code == 200
        with (
            openai.OpenAI(base_url=f"{url}/v1", api_key="wrong") as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()
        with openai.OpenAI(base_url=f"{url}/v1", api_key="secret") as client:
            assert client.models.list().data[0].id == "known"
            with pytest.raises(openai.NotFoundError, match="does not exist"):
                client.chat.completions.create(model="unknown", messages=MESSAGES)


def test_nothing_listens_before_the_model_is_loaded():
    port = free_port()
    argv = [sys.executable, "-m", "penstock.loadtests.sim.main", "--port", str(port), "--startup-s", "1"]
    with Proc(argv, name="sim", ready=lambda: accepts("127.0.0.1", port)) as proc:
        assert "serving" in proc.log()
        assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200


def test_stats_tell_paths_outcomes_attempts_and_bodies(http):
    http.post("/sim/reset")
    for _ in range(2):
        http.post("/v1/completions", json={"prompt": "x"}, headers={"x-request-id": "abc"})
    http.post("/v1/completions", content=b"{")
    stats = http.get("/sim/stats").json()
    assert stats["paths"]["/v1/completions"] == {"total": 3, "outcomes": {"200": 2, "400": 1}}
    assert stats["attempts"] == {"abc": 2}
    assert stats["in_flight"] == 0
    assert [r["body_bytes"] for r in stats["recent"]][-1] == 1
    assert stats["recent"][0]["body_sha256"] == stats["recent"][1]["body_sha256"]
    assert ["x-request-id", "abc"] in stats["recent"][0]["headers"]


def test_a_client_that_leaves_is_counted_and_frees_the_engine():
    with running("--decode-ms", "20") as url, httpx.Client(base_url=url, timeout=30) as http:
        asked = {"prompt": "x", "max_tokens": 5000, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=asked, timeout=30) as stream:
            chunks = stream.iter_raw()
            next(chunks)
            assert http.get("/sim/stats").json()["in_flight"] == 1
        stats = wait_until(
            lambda: (s := http.get("/sim/stats").json())["in_flight"] == 0 and s,
            what="the abort to be noticed",
        )
        assert stats["aborted"] == 1
        assert stats["engine"]["running"] == 0
        assert 'finished_reason="abort"} 1.0' in http.get("/metrics").text


def test_requests_over_the_batch_show_as_waiting():
    with (
        running("--decode-ms", "20", "--max-seqs", "1") as url,
        httpx.Client(base_url=url, timeout=30) as http,
    ):
        asked = {"prompt": ["a", "b", "c"], "max_tokens": 1000, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=asked, timeout=30) as stream:
            chunks = stream.iter_raw()
            next(chunks)
            lines = http.get("/metrics").text.splitlines()
            gauges = {
                ln.partition("{")[0]: ln.rpartition(" ")[2] for ln in lines if ln.startswith("vllm:num_req")
            }
            assert gauges == {"vllm:num_requests_running": "1.0", "vllm:num_requests_waiting": "2.0"}


def test_canned_answers_parse_and_are_counted():
    with running("--canned", "--canned-events", "5") as url, httpx.Client(base_url=url) as http:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="x") as client:
            answer = client.chat.completions.create(model="m", messages=MESSAGES)
            stream = client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
            assert [c.choices[0].finish_reason for c in stream] == [None, None, None, "stop"]
        assert answer.choices[0].message.content
        assert http.post("/v1/embeddings", json={"input": "x"}).status_code == 200
        paths = http.get("/sim/stats").json()["paths"]
        assert paths["/v1/chat/completions"]["outcomes"] == {"200": 2}


def test_reasoning_comes_before_the_answer_in_every_dialect():
    with running("--reasoning") as url, openai.OpenAI(base_url=f"{url}/v1", api_key="x") as client:
        plain = client.chat.completions.create(model="m", messages=MESSAGES)
        thought = "".join(
            getattr(c.choices[0].delta, "reasoning_content", None) or ""
            for c in client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        )
        assert thought == plain.choices[0].message.reasoning_content
        assert thought
        with client.responses.stream(model="m", input="hi") as stream:
            kinds = [item.type for item in stream.get_final_response().output]
        assert kinds == ["reasoning", "message"]
        with (
            anthropic.Anthropic(base_url=url, api_key="x") as claude,
            claude.messages.stream(model="m", max_tokens=100, messages=MESSAGES) as said,
        ):
            assert [block.type for block in said.get_final_message().content] == ["thinking", "text"]


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": json.loads("[" * 900 + "]" * 900)}]},
        {"messages": [{"role": "user", "content": "x"}], "min_tokens": 8_000_000},
    ],
)
def test_no_body_makes_it_fail_or_hang(http, body):
    assert http.post("/v1/chat/completions", json=body).status_code in (200, 400)
