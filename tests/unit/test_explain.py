"""`penstock cache explain`: the gateway's own verdict and key, and what went into it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from penstock.cache.outcome import NoCache
from penstock.gateway.config import Config, load
from penstock.workers.explain import WHY, CannotExplain, explain

CHAT = "/v1/chat/completions"
ASKED = {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def config() -> Config:
    return load(
        """
        models:
          m: {aliases: [a], version: "7", backends: [{url: "http://127.0.0.1:9"}]}
          everything: {cache: {mode: all}, backends: [{url: "http://127.0.0.1:9"}]}
          chosen: {cache: {mode: opt_in}, backends: [{url: "http://127.0.0.1:9"}]}
          never: {cache: {mode: "off"}, backends: [{url: "http://127.0.0.1:9"}]}
        """,
        {},
    )


class _Asker:
    def __init__(self, folder: Path, config: Config) -> None:
        self.file = folder / "body"
        self.config: Config | None = config

    def __call__(
        self, body: dict[str, Any] | bytes, target: str = CHAT, tenant: str | None = None
    ) -> dict[str, str]:
        """The lines of an explanation by their first words."""
        self.file.write_bytes(body if isinstance(body, bytes) else json.dumps(body).encode())
        said = explain(self.file, self.config, target, tenant)
        return dict(re.split(r"  +", line, maxsplit=1) for line in said.splitlines() if line[0] != " ")

    def refusal(self, body: dict[str, Any] | bytes, target: str = CHAT) -> str:
        with pytest.raises(CannotExplain) as caught:
            self(body, target)
        return str(caught.value).replace(str(self.file), "FILE")


@pytest.fixture
def ask(tmp_path: Path, config: Config) -> _Asker:
    return _Asker(tmp_path, config)


def test_a_cacheable_body_is_shown_with_its_key_and_all_that_went_into_it(ask: _Asker) -> None:
    wish = {"namespace": "ours"}
    said = ask({**ASKED, "user": "u", "cache": wish, "zeta": 1}, CHAT + "?beta=true", "t1")
    key = said.pop("key")
    assert re.fullmatch("[0-9a-f]{64}", key)
    assert said == {
        "cached": "yes",
        "mode": "deterministic",
        "schema": "2",
        "tenant": "t1",
        "namespace": "ours",
        "model": "m",
        "version": "7",
        "endpoint": CHAT,
        "query": "beta=true",
        "left out": "cache, user",
        "body": '82 bytes: {"messages":[{"content":"hi","role":"user"}],"model":"m","temperature":0,"zeta":1}',
    }


def test_whatever_the_key_covers_changes_it_and_nothing_else_does(ask: _Asker) -> None:
    key = ask(ASKED)["key"]
    same = (
        ask({**ASKED, "user": "somebody", "metadata": {"a": "b"}}),
        ask({**ASKED, "model": "a"}),
        ask(json.dumps(dict(reversed(ASKED.items())), indent=3).encode()),
        ask(ASKED, tenant="default"),
    )
    assert {said["key"] for said in same} == {key}
    others = (
        ask({**ASKED, "unheard_of": 1}),
        ask({**ASKED, "model": "everything"}),
        ask({**ASKED, "stream": True}),
        ask({**ASKED, "cache": {"namespace": "n"}}),
        ask(ASKED, tenant="t"),
        ask(ASKED, CHAT + "?a=b"),
        ask({**ASKED, "prompt": "p"}, "/v1/completions"),
    )
    assert len({key, *(said["key"] for said in others)}) == 1 + len(others)
    assert ask({**ASKED, "model": "a"})["model"] == "m (asked for as a)"


FORM = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--x--\r\n'
MANY = b'{"model":"m","temperature":0,"messages":[' + b"[]," * 70_000 + b"[]]}"


@pytest.mark.parametrize(
    ("reason", "body", "target"),
    [
        (NoCache.OFF, {**ASKED, "model": "never"}, CHAT),
        (NoCache.BODY_TOO_LARGE, MANY, "/v1/embeddings"),
        (NoCache.MULTIPART, FORM, "/v1/audio/transcriptions"),
        (NoCache.NONDETERMINISTIC, {**ASKED, "temperature": 1}, CHAT),
        (NoCache.NOT_OPTED_IN, {**ASKED, "model": "chosen"}, CHAT),
        (NoCache.STATEFUL, {"model": "m", "temperature": 0, "input": "hi", "store": True}, "/v1/responses"),
        (NoCache.NO_STORE, {**ASKED, "cache": {"no-cache": True, "no-store": True}}, CHAT),
    ],
)
def test_every_reason_has_its_request(
    ask: _Asker, reason: NoCache, body: dict[str, Any] | bytes, target: str
) -> None:
    said = ask(body, target)
    assert said["cached"] == f"no: {reason.value} ({WHY[reason]})"
    assert ("key" in said) is (reason not in (NoCache.BODY_TOO_LARGE, NoCache.MULTIPART))


def test_every_reason_has_words() -> None:
    assert set(WHY) == set(NoCache)


def test_modes_of_models_and_wishes_of_requests_count(ask: _Asker) -> None:
    assert ask({**ASKED, "model": "everything", "temperature": 1})["cached"] == "yes"
    assert ask({**ASKED, "model": "chosen", "cache": {"use-cache": True}})["cached"] == "yes"
    assert ask({**ASKED, "cache": {"no-store": True}})["cached"].startswith("no: no_store")
    assert ask({**ASKED, "cache": {"no-cache": True}})["cached"].startswith("yes, without a look-up")


def test_without_a_configuration_every_model_has_the_defaults(ask: _Asker) -> None:
    ask.config = None
    said = ask({**ASKED, "model": "any/thing"})
    assert (said["cached"], said["model"], said["version"]) == ("yes", "any/thing", "1")


def test_a_long_body_is_cut_and_nothing_reaches_the_terminal_raw(ask: _Asker) -> None:
    said = ask({**ASKED, "messages": [{"role": "user", "content": "\x1b[31m" + "é" * 5000}]})["body"]
    assert len(said) < 500
    assert said.endswith("…")
    assert "\x1b" not in said


def test_what_the_gateway_would_refuse_is_one_line(ask: _Asker) -> None:
    assert ask.refusal(b"{").startswith("FILE: the gateway would answer 400: the body is not JSON")
    assert ask.refusal(b"") == "FILE: the gateway would answer 411: the request has no body"
    assert ask.refusal({**ASKED, "model": "unheard"}).startswith(
        "FILE: the gateway would answer 404: the model"
    )
    assert "'cache': Expected `object`" in ask.refusal({**ASKED, "cache": 1})
    assert ask.refusal(b"no form", "/v1/audio/translations").startswith("FILE: the gateway would answer 400")
    assert (
        ask.refusal(b" " * (11 << 20))
        == "FILE: the gateway would answer 413: the body is over 10485760 bytes"
    )
    assert ask.refusal(ASKED, "/v1/models").startswith("/v1/models is no endpoint with a body; there are: ")
    for refusal in (ask.refusal(b"{\n\n"), ask.refusal({**ASKED, "model": "two\nlines"})):
        assert "\n" not in refusal


def test_a_file_that_cannot_be_read_is_one_line(config: Config, tmp_path: Path) -> None:
    for file, why in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(CannotExplain) as caught:
            explain(file, config, CHAT, None)
        assert str(caught.value) == f"cannot read {file}: {why}"
