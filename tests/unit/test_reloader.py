"""What a file and a document say becomes what is in force, each refused for itself; with no file, Redis or clock."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock.gateway.config import ConfigError, Layer
from penstock.workers.live import kept
from penstock.workers.live.reloader import Refused, Reloader
from penstock.workers.live.source import Listener
from tests.support.procs import wait_until


class Told:
    """A source that says what the test says."""

    name = "told"

    def __init__(self, text: str | None) -> None:
        self.text = text
        self.listener: Listener | None = None
        self.looked = 0

    def once(self) -> Layer:
        if self.text is None:
            raise ConfigError("file", "", "cannot be read", "check the path")
        return Layer(name="file", text=self.text)

    def look(self) -> None:
        self.looked += 1

    async def follow(self, listener: Listener) -> None:
        self.listener = listener
        self.say(self.text)
        await asyncio.Event().wait()

    def say(self, text: str | None, version: str = "") -> None:
        assert self.listener is not None
        self.text = text
        if text is not None:
            self.listener.found(Layer(name="x", text=text, version=version))


class World:
    """A configuration is the two texts; one is wrong where either has a word that the other forbids, or `bad`."""

    def __init__(self, folder: Path, file: str | None, document: str | None) -> None:
        self.file, self.far = Told(file), Told(document)
        self.applied: list[tuple[str, str | None]] = []
        self.outcomes: list[str] = []
        self.refused: list[str] = []
        self.fails = self.full = False
        first = Layer(name="x", text=document) if document is not None else None
        self.reloader = Reloader(
            self.file,  # type: ignore[arg-type]
            self.far,
            first,
            folder,
            self.compose,
            self.apply,
            self.outcomes.append,
            self.refused.append,
        )

    def compose(self, file: Layer, document: Layer | None) -> Any:
        texts = (file.text, document.text if document is not None else None)
        if "bad" in texts or texts == ("apart", "together"):
            raise ConfigError("x", "$.place", "is wrong", "write it right")
        return texts

    async def apply(self, config: Any, document: Layer | None) -> str:
        if self.full:
            raise Refused("all columns are in use")
        if self.fails:
            return "failed"
        unchanged = bool(self.applied) and self.applied[-1] == config
        self.applied.append(config)
        return "unchanged" if unchanged else "loaded"

    async def settled(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    @property
    def in_force(self) -> tuple[str, str | None]:
        return self.applied[-1]

    def gauge(self, name: str, source: str) -> float:
        return next(
            sample.value
            for metric in self.reloader.metrics()
            for sample in metric.samples
            if sample.name == name and sample.labels.get("source") == source
        )

    def wrong(self) -> dict[str, bool]:
        return {name: bool(self.gauge("penstock_config_refused", name)) for name in ("file", "store")}


@asynccontextmanager
async def world(folder: Path, file: str | None = "f1", document: str | None = "d1") -> AsyncIterator[World]:
    made = World(folder, file, document)
    task = asyncio.ensure_future(made.reloader.run())
    await made.settled()
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_what_either_says_is_put_in_force_and_the_document_kept(tmp_path: Path) -> None:
    async with world(tmp_path / "state") as it:
        it.far.say("d2", "2")
        await it.settled()
        assert it.in_force == ("f1", "d2")
        it.file.say("f2")
        await it.settled()
        assert it.in_force == ("f2", "d2")
        assert kept.read(tmp_path / "state") == Layer(name="x", text="d2", version="2")
        assert it.reloader.report()["store"] == {"readable": True, "refused": None, "version": "2"}


async def test_what_is_said_again_does_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        before = len(it.applied)
        it.far.say("d1")
        it.file.say("f1")
        await it.settled()
        assert len(it.applied) == before


async def test_a_broken_document_holds_up_no_file_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path) as it:
        it.far.say("bad", "2")
        await it.settled()
        assert (it.in_force, it.wrong()) == (("f1", "d1"), {"file": False, "store": True})
        it.file.say("f2")
        await it.settled()
        assert (it.in_force, it.wrong()) == (("f2", "d1"), {"file": False, "store": True})
        it.far.say("d3")
        await it.settled()
        assert (it.in_force, it.wrong()) == (("f2", "d3"), {"file": False, "store": False})
    assert it.refused == ["store"]
    assert caplog.text.count("config_refused source=store kept: x: $.place: is wrong; write it right") == 1


async def test_a_broken_file_holds_up_no_document(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        it.file.say("bad")
        await it.settled()
        it.far.say("d2")
        await it.settled()
        assert (it.in_force, it.wrong()) == (("f1", "d2"), {"file": True, "store": False})
        it.far.say("bad")
        await it.settled()
        assert (it.in_force, it.wrong()) == (("f1", "d2"), {"file": True, "store": True})
    assert it.refused == ["file", "store"]


async def test_of_two_that_do_not_go_together_the_document_waits_for_the_file_that_it_needs(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, "apart") as it:
        it.far.say("together")
        await it.settled()
        assert (it.in_force, it.wrong()) == (("apart", "d1"), {"file": False, "store": True})
        it.file.say("f2")
        await it.settled()
        assert (it.in_force, it.wrong()) == (("f2", "together"), {"file": False, "store": False})


async def test_a_document_waits_for_a_file_of_which_nothing_was_ever_known(tmp_path: Path) -> None:
    """A controller that is started while the file is broken."""
    async with world(tmp_path, None) as it:
        assert it.file.listener is not None
        it.file.listener.refused("not UTF-8")
        it.far.say("d2")
        await it.settled()
        assert (it.applied, it.wrong()) == ([], {"file": True, "store": True})
        it.file.say("f1")
        await it.settled()
        assert (it.in_force, it.wrong()) == (("f1", "d2"), {"file": False, "store": False})


async def test_garbage_is_refused_and_what_follows_it_taken(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        assert it.far.listener is not None
        for _ in range(3):
            it.far.listener.refused("no document")
            await it.settled()
        assert (it.in_force, it.wrong(), it.refused) == (
            ("f1", "d1"),
            {"file": False, "store": True},
            ["store"],
        )
        it.far.say("d1")
        await it.settled()
        assert it.wrong() == {"file": False, "store": False}


@pytest.mark.parametrize("empty", [False, True], ids=["garbage", "nothing"])
async def test_what_was_refused_and_is_not_there_any_more_is_forgotten(tmp_path: Path, empty: bool) -> None:
    """Else another file, which it would go together with, had it put in force."""
    async with world(tmp_path, "apart") as it:
        it.far.say("together")
        await it.settled()
        assert it.wrong() == {"file": False, "store": True}
        assert it.far.listener is not None
        it.far.listener.found(None) if empty else it.far.listener.refused("no document")
        await it.settled()
        assert it.wrong() == {"file": False, "store": not empty}
        it.file.say("f2")
        await it.settled()
        assert it.in_force == ("f2", "d1")
    assert it.refused == ["store"] * (1 if empty else 2)


async def test_garbage_that_is_gone_is_not_refused_any_longer(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        assert it.far.listener is not None
        for _ in range(2):
            it.far.listener.refused("no document")
            await it.settled()
            it.far.listener.found(None)
            await it.settled()
            assert it.wrong() == {"file": False, "store": False}
    assert it.refused == ["store", "store"]


async def test_a_store_that_is_lost_or_empty_changes_nothing_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with world(tmp_path) as it:
        listener = it.far.listener
        assert listener is not None
        for _ in range(3):
            listener.lost("away")
        assert it.gauge("penstock_config_source_up", "store") == 0
        for _ in range(3):
            listener.found(None)
        assert it.gauge("penstock_config_source_up", "store") == 0
        listener.unchanged()
        await it.settled()
        assert it.gauge("penstock_config_source_up", "store") == 1
        assert it.in_force == ("f1", "d1")
    said = [record.message.split()[0] for record in caplog.records]
    assert said == ["config_store_lost", "config_store_empty", "config_store_readable"]


async def test_who_asks_gets_the_file_read_again_and_an_outcome_in_any_case(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        it.outcomes.clear()
        it.reloader.ask()
        await it.settled()
        assert (it.outcomes, it.far.looked) == (["unchanged"], 1)
        it.file.text = "bad"
        for _ in range(2):
            it.reloader.ask()
            await it.settled()
        assert it.outcomes == ["unchanged", "refused", "refused"]
        it.file.text = None
        it.reloader.ask()
        await it.settled()
        assert it.outcomes[-1] == "refused"
        it.file.text = "f2"
        it.reloader.ask()
        await it.settled()
        assert (it.outcomes[-1], it.in_force) == ("loaded", ("f2", "d1"))


async def test_what_could_not_be_written_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from penstock.workers.live import reloader

    monkeypatch.setattr(reloader, "AGAIN_S", 0.001)
    async with world(tmp_path) as it:
        it.fails = True
        it.far.say("d2")
        await it.settled()
        assert (it.in_force, it.wrong()) == (("f1", "d1"), {"file": False, "store": False})
        it.fails = False
        await asyncio.to_thread(wait_until, lambda: it.in_force == ("f1", "d2"), 20, "another try")


async def test_what_there_is_no_room_for_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        it.full = True
        it.far.say("d2")
        await it.settled()
        assert it.refused == ["store"]
        assert "all columns are in use" in it.reloader.report()["store"]["refused"]


def test_what_was_kept_and_cannot_be_read_is_nothing(tmp_path: Path) -> None:
    assert kept.read(tmp_path) is None
    kept.write(tmp_path, Layer(name="n", text="t", version="3"))
    assert (tmp_path / "config-document.json").stat().st_mode & 0o777 == 0o600
    assert kept.read(tmp_path) == Layer(name="n", text="t", version="3")
    (tmp_path / "config-document.json").write_bytes(b'{"name": ')
    assert kept.read(tmp_path) is None
