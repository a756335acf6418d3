"""What the documentation tells people to type."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from .bodies import WAVE, chat, message
from .target import Target


def curl(*argv: str) -> str:
    """Runs curl to its end and returns what it printed."""
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is not installed")
    done = subprocess.run(
        [program, "--silent", "--show-error", "--max-time", "60", "--noproxy", "*", *argv],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout.decode()


def _json_post(target: Target, path: str, body: object) -> list[str]:
    return [
        *("-H", f"Authorization: Bearer {target.key}", "-H", "Content-Type: application/json"),
        *("-d", json.dumps(body), target.url + path),
    ]


def test_a_chat_completion_comes_back(target: Target) -> None:
    printed = json.loads(curl(*_json_post(target, "/v1/chat/completions", chat(target.model))))
    assert printed["choices"][0]["message"]["content"]


def test_a_stream_is_printed_as_it_comes(target: Target) -> None:
    body = chat(target.model, stream=True)
    printed = curl("--no-buffer", *_json_post(target, "/v1/chat/completions", body))
    assert printed.startswith("data: {")
    assert printed.endswith("data: [DONE]\n\n")


def test_a_body_with_expect_continue_is_taken(target: Target) -> None:
    body = chat(target.model)
    body["messages"][0]["content"] = "long " * 60
    printed = json.loads(
        curl("-H", "Expect: 100-continue", *_json_post(target, "/v1/chat/completions", body))
    )
    assert printed["choices"]


def test_a_body_sent_in_chunks_is_taken(target: Target) -> None:
    printed = json.loads(
        curl(
            "-H",
            "Transfer-Encoding: chunked",
            *_json_post(target, "/v1/chat/completions", chat(target.model)),
        )
    )
    assert printed["choices"]


def test_http_1_0_gets_a_whole_answer(target: Target) -> None:
    printed = json.loads(curl("--http1.0", *_json_post(target, "/v1/chat/completions", chat(target.model))))
    assert printed["choices"]


def test_http_1_0_gets_a_whole_stream(target: Target) -> None:
    printed = curl("--http1.0", *_json_post(target, "/v1/chat/completions", chat(target.model, stream=True)))
    assert printed.endswith("data: [DONE]\n\n")


def test_two_requests_share_a_connection(target: Target) -> None:
    arguments = _json_post(target, "/v1/messages", message(target.model))
    printed = curl("-w", "\n%{num_connects}\n", *arguments, target.url + "/v1/messages")
    assert [line for line in printed.splitlines() if line in ("0", "1")] == ["1", "0"]


def test_a_form_with_a_file_is_taken(target: Target, tmp_path: Path) -> None:
    sound = tmp_path / "tower.wav"
    sound.write_bytes(WAVE)
    printed = json.loads(
        curl(
            *("-H", f"Authorization: Bearer {target.key}"),
            *("-F", f"file=@{sound}", "-F", f"model={target.model}"),
            target.url + "/v1/audio/transcriptions",
        )
    )
    # a text model has no ears: a real server then says so
    assert "text" in printed or target.real


def test_models_are_listed(target: Target) -> None:
    printed = json.loads(curl("-H", f"Authorization: Bearer {target.key}", target.url + "/v1/models"))
    assert printed["object"] == "list"
    assert target.model in [entry["id"] for entry in printed["data"]]
