"""A flush holds for what is under way: nobody joins a call that was made before it, and nothing of it is kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ..support.dataplane import DataPlane, data_plane
from ..support.lines import Line, ask, question
from ..support.staged import Staged, staged, whole


def answer(text: str) -> bytes:
    choice = f'{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"finish_reason":"stop"}}'
    return whole(f'{{"object":"chat.completion","choices":[{choice}]}}'.encode())


@pytest.fixture
def backend() -> Iterator[Staged]:
    with staged(answer("old"), go=0) as running:
        yield running


@pytest.fixture
def plane(backend: Staged) -> Iterator[DataPlane]:
    config: dict[str, Any] = {"cache": {"mode": "all"}, "models": {"m": {"backends": [{"url": backend.url}]}}}
    with data_plane(config) as made:
        yield made


def flush(plane: DataPlane) -> None:
    plane.call(lambda: plane.arena.epochs.set("all", 4711))


def test_who_asks_after_a_flush_joins_no_call_that_was_made_before_it(
    plane: DataPlane, backend: Staged
) -> None:
    before = Line(plane.port).put(question("q"))
    plane.wait_for(calls=1)
    flush(plane)
    after = [Line(plane.port).put(question("q")) for _ in range(2)]
    plane.wait_for(calls=2)  # one for both who ask now
    backend.go()
    assert before.receive().cache == "MISS"
    assert sorted(str(line.receive().cache) for line in after) == ["COALESCED", "MISS"]
    for line in (before, *after):
        line.socket.close()


def test_an_answer_that_was_asked_for_before_a_flush_takes_no_newer_ones_place(
    plane: DataPlane, backend: Staged
) -> None:
    before = Line(plane.port).put(question("q"))
    plane.wait_for(calls=1)
    flush(plane)
    after = Line(plane.port).put(question("q"))
    plane.wait_for(calls=2)
    backend.go()
    assert {before.receive().status, after.receive().status} == {200}
    assert [ask(plane.port, question("q")).cache for _ in range(2)] == ["HIT-L1", "HIT-L1"]
    for line in (before, after):
        line.socket.close()


def test_an_answer_that_was_asked_for_before_a_flush_is_not_kept(plane: DataPlane, backend: Staged) -> None:
    before = Line(plane.port).put(question("q"))
    plane.wait_for(calls=1)
    flush(plane)
    backend.go()
    assert before.receive().status == 200
    assert [ask(plane.port, question("q")).cache for _ in range(2)] == ["MISS", "HIT-L1"]
    before.socket.close()
