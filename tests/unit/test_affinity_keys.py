"""What ties a request to a backend: how a conversation begins, or who asks."""

from typing import Any

import msgspec
import pytest

from penstock.gateway.affinity import affinity, beginning
from penstock.gateway.policies.consistent_hash import user_key
from penstock.gateway.policies.prefix_affinity import prefix_key

SYSTEM = {"role": "system", "content": "You are of help. " * 500}


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def chat(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages), **more}


def test_a_conversation_keeps_its_key_while_it_grows() -> None:
    turns = [
        SYSTEM,
        user("What is a penstock?"),
        said("A pipe."),
        user("And a wicket gate?"),
        said("A vane."),
    ]
    keys = {prefix_key(chat(*turns[:n], stream=n % 2 == 0), 1024) for n in (2, 4, 5)}
    assert len(keys) == 1
    assert None not in keys


def test_conversations_behind_one_system_prompt_differ_though_it_is_longer_than_what_is_looked_at() -> None:
    keys = {prefix_key(chat(SYSTEM, user(f"Question {n}")), 100) for n in range(50)}
    assert len(keys) == 50


def test_system_prompts_differ() -> None:
    assert prefix_key(chat(user("hi")), 100) != prefix_key(chat(SYSTEM, user("hi")), 100)
    other = {**SYSTEM, "content": SYSTEM["content"] + "."}
    assert prefix_key(chat(other, user("hi")), 100) != prefix_key(chat(SYSTEM, user("hi")), 100)
    developer = {"role": "developer", "content": "x"}
    assert prefix_key(chat(developer, user("1")), 9) != prefix_key(chat(developer, user("2")), 9)


def test_what_comes_after_the_first_characters_of_the_first_turn_does_not_count() -> None:
    assert prefix_key(chat(user("a" * 50 + "b")), 50) == prefix_key(chat(user("a" * 50 + "c")), 50)
    assert prefix_key(chat(user("a" * 50 + "b")), 51) != prefix_key(chat(user("a" * 50 + "c")), 51)


def test_parts_of_a_message_count_as_their_text() -> None:
    def parts(*texts: str) -> list[dict[str, Any]]:
        return [{"type": "text", "text": text} for text in texts]

    assert prefix_key(chat(user(parts("one", "two"))), 99) != prefix_key(
        chat(user(parts("one", "three"))), 99
    )
    assert prefix_key(chat(user(parts("one", "two"))), 3) == prefix_key(chat(user(parts("one", "three"))), 3)
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    other = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,BBBB"}}]
    assert prefix_key(chat(user(image)), 1024) != prefix_key(chat(user(other)), 1024)


def test_every_dialect_has_a_beginning() -> None:
    bodies: list[dict[str, Any]] = [
        {"prompt": "Once upon a time"},
        {"prompt": ["Once more", "Twice"]},
        {"prompt": [1, 2, 3]},
        {"prompt": [[1, 2, 3, 4], [5]]},
        {"input": "Once"},
        {"instructions": "Be brief.", "input": "Once"},
        {"instructions": "Be brief.", "input": [user("Once")]},
        {"system": "Be kind.", "messages": [user("Once")]},
        {"system": [{"type": "text", "text": "Be long."}], "messages": [user("Once")]},
    ]
    keys = [prefix_key(body, 64) for body in bodies]
    assert len(set(keys)) == len(keys)
    assert None not in keys
    assert prefix_key({"prompt": "abcdef"}, 3) == prefix_key({"prompt": "abcxyz"}, 3)
    assert prefix_key({"prompt": [1, 2, 3, 4]}, 3) == prefix_key({"prompt": [1, 2, 3, 9]}, 3)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": []},
        {"prompt": None},
        {"prompt": ""},
        {"prompt": 7},
        {"input": []},
        {"documents": ["a"], "query": "q"},
    ],
)
def test_what_has_no_beginning_has_no_key(body: dict[str, Any]) -> None:
    assert prefix_key(body, 64) is None


@pytest.mark.parametrize(
    "body", [{"messages": ["x", 3]}, {"messages": [{"role": 3}]}, {"messages": [{"content": {"a": 1}}]}]
)
def test_what_no_server_would_take_is_no_trouble(body: dict[str, Any]) -> None:
    prefix_key(body, 64)
    prefix_key({"messages": [user("\ud800")]}, 64)


def test_a_user_is_one_of_its_tenant() -> None:
    assert user_key({"user": "u"}, None) == user_key({"user": "u", "n": 1}, None)
    assert user_key({"user": "u"}, "a") != user_key({"user": "u"}, "b")
    assert user_key({"metadata": {"user_id": "u"}}, "a") == user_key({"user": "u"}, "a")
    assert user_key({}, "a") == user_key({"user": ""}, "a") == user_key({"user": 7}, "a") == b"a"
    assert user_key({}, None) is None
    assert user_key({"metadata": "x"}, None) is None


@pytest.mark.parametrize(
    "body",
    [
        chat(SYSTEM, user("one"), said("two"), user("three"), user="u"),
        chat(user("one"), metadata={"user_id": "v"}),
        {"model": "m", "prompt": ["a", "b"], "max_tokens": 3},
        {"model": "m", "input": [user("x"), said("y")], "instructions": "z"},
        {"model": "m", "system": [{"type": "text", "text": "s"}], "messages": [user([{"text": "q"}])]},
        {"model": "m", "messages": "no list", "user": 3},
        {"model": "m"},
    ],
)
def test_a_body_that_was_not_decoded_has_the_key_that_it_has_decoded(body: dict[str, Any]) -> None:
    raw = msgspec.json.encode(body)
    for policy in ("prefix_affinity", "consistent_hash"):
        assert affinity(policy, 100, "t", None, raw) == affinity(policy, 100, "t", body, raw)


def test_of_a_long_conversation_only_its_beginning_is_built() -> None:
    found = beginning(msgspec.json.encode(chat(SYSTEM, user("one"), *[said("x")] * 1000)))
    assert found["messages"] == [SYSTEM, user("one")]


@pytest.mark.parametrize(
    "body", [None, b"", b"--form\r\n", b"[]", b"{", b'{"messages":[}', b"\xff", b"[" * 9999]
)
def test_no_json_no_key(body: bytes | None) -> None:
    assert affinity("prefix_affinity", 100, None, None, body) is None
