"""`/v1/models` answers from configuration, whatever the backends do."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import openai
import pytest

from ..support.gateway import Gateway
from .conftest import ALIAS, DEAD, SLASHED
from .target import Target


def _entries(target: Target) -> dict[str, dict[str, Any]]:
    answer = target.ask("GET", "/v1/models")
    assert answer.status == 200
    assert (answer.header("content-type") or "").startswith("application/json")
    listing = answer.json()
    assert listing["object"] == "list"
    return {entry["id"]: entry for entry in listing["data"]}


def test_every_configured_model_is_listed_the_dead_ones_too(target: Target, guarded: Gateway) -> None:
    entries = _entries(target)
    assert set(target.names) <= set(entries)
    for entry in entries.values():
        assert entry["object"] == "model"
        assert isinstance(entry["created"], int)
        assert isinstance(entry["owned_by"], str)


def test_each_model_tells_its_state(target: Target, guarded: Gateway) -> None:
    entries = _entries(target)
    assert all(isinstance(entry.get("state"), str) and entry["state"] for entry in entries.values())
    assert entries[target.model]["state"] == "ready"


def test_the_context_length_is_told_where_it_is_configured(target: Target, guarded: Gateway) -> None:
    assert _entries(target)[DEAD]["max_model_len"] == 4096


@pytest.mark.parametrize("name", [DEAD, SLASHED, ALIAS])
def test_a_model_is_found_by_its_name(target: Target, guarded: Gateway, name: str) -> None:
    answer = target.ask("GET", f"/v1/models/{name}")
    assert answer.status == 200, answer.body
    entry = answer.json()
    assert entry["object"] == "model"
    assert isinstance(entry["state"], str)


def test_a_name_with_a_slash_may_be_escaped(target: Target, guarded: Gateway) -> None:
    assert target.ask("GET", f"/v1/models/{quote(SLASHED, safe='')}").json()["id"] == SLASHED
    assert target.openai().models.retrieve(SLASHED).id == SLASHED


def test_a_model_nobody_configured_is_not_found(target: Target, guarded: Gateway) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        target.openai().models.retrieve("no-such-model")
    assert caught.value.code == "model_not_found"
    assert target.model in caught.value.message


def test_the_list_never_asks_a_backend(target: Target, guarded: Gateway) -> None:
    before = len(target.tap.exchanges())
    _entries(target)
    target.ask("GET", f"/v1/models/{target.model}")
    assert [e.target for e in target.tap.exchanges()[before:] if "models" in e.target] == []
