"""The allow-list of paths: nothing outside it is reachable by any spelling."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock.gateway.endpoints import ENDPOINTS, StoredResponse, model_id, stored_response

PROXIED = {
    *("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"),
    *("/v1/messages/count_tokens", "/v1/rerank", "/rerank", "/v2/rerank", "/v1/score", "/score"),
    *("/classify", "/pooling", "/tokenize", "/detokenize"),
    *("/v1/audio/transcriptions", "/v1/audio/translations"),
}


def test_the_proxied_paths_are_exactly_those_of_the_contract() -> None:
    assert set(ENDPOINTS) == PROXIED
    assert all(endpoint.path == path for path, endpoint in ENDPOINTS.items())


def test_only_audio_is_multipart_and_only_pure_functions_are_deterministic() -> None:
    assert {p for p, e in ENDPOINTS.items() if e.multipart} == {p for p in PROXIED if "audio" in p}
    generating = {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"}
    assert not any(ENDPOINTS[path].deterministic for path in generating)


@pytest.mark.parametrize(
    ("method", "path", "target"),
    [
        ("GET", "/v1/responses/resp_1", "/v1/responses/resp_1"),
        ("DELETE", "/v1/responses/resp_1", "/v1/responses/resp_1"),
        ("POST", "/v1/responses/resp_1/cancel", "/v1/responses/resp_1/cancel"),
    ],
)
def test_calls_about_a_stored_response_name_it(method: str, path: str, target: str) -> None:
    assert stored_response(method, path) == StoredResponse("resp_1", method, target)


def test_a_wrong_method_on_a_stored_response_says_which_are_right() -> None:
    assert stored_response("PUT", "/v1/responses/resp_1") == {"GET", "DELETE"}
    assert stored_response("GET", "/v1/responses/resp_1/cancel") == {"POST"}


@given(st.sampled_from(["GET", "POST", "DELETE"]), st.text(max_size=60))
@example("GET", "..")
@example("GET", "../../sleep")
@example("GET", "a/../../sleep")
@example("GET", "a?b=c")
@example("GET", "a\r\nx: y")
@example("GET", "a/cancel/cancel")
@example("GET", "x" * 200)
def test_no_id_smuggles_a_path_or_a_query_upstream(method: str, rest: str) -> None:
    found = stored_response(method, f"/v1/responses/{rest}")
    if isinstance(found, StoredResponse):
        assert found.id.isascii()
        assert not set(found.id) & set("/?#%\\ \r\n")
        assert found.id not in (".", "..")
        assert found.target.count("/") == 3 + found.target.endswith("/cancel")


def test_model_ids_may_hold_slashes() -> None:
    assert model_id("/v1/models/Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
    assert model_id("/v1/models/") is None
    assert model_id("/v1/other/x") is None
