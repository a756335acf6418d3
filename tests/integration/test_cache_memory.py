"""The cache's memory under a gateway that serves: damaged, reloaded, kept over its end, and not taken at all."""

from __future__ import annotations

import mmap
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from penstock.cache.arena import Arena, ArenaGeometry
from penstock.workers import rundir

from ..support.gateway import Gateway, gateway
from ..support.lines import CHAT, Line, ask, calls, line_to, question
from ..support.procs import is_running, wait_until
from ..support.sim import Simulator, simulator

MIB = 1 << 20
SMALL = {"size": "8MiB", "max_entry": "64KiB"}


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with simulator() as running:
        yield running


def config(url: str, workers: int = 1, mode: str = "all", **l1: Any) -> dict[str, Any]:
    return {
        "workers": {"count": workers},
        "cache": {"mode": mode, "l1": {**SMALL, **l1}},
        "models": {"m": {"backends": [{"url": url}]}},
    }


def folder(node: Gateway) -> Path:
    """The run directory."""
    return next(path for path, owner in rundir.running(rundir.base()) if owner.pid == node.pid)


def truth(sim: Simulator, asked: dict[str, Any]) -> bytes:
    """What the backend itself says to this, now and ever."""
    return httpx.post(sim.url + CHAT, json=asked, trust_env=False).content


@contextmanager
def memory(node: Gateway) -> Iterator[tuple[mmap.mmap, ArenaGeometry]]:
    """The bytes that the workers share."""
    path = folder(node) / "cache"
    arena = Arena.open(str(path))
    geometry = arena.geometry
    arena.close()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as shared:
        yield shared, geometry


# ---- damaged


@pytest.fixture(scope="module")
def node(sim: Simulator) -> Iterator[Gateway]:
    with gateway(config(sim.url, workers=2)) as running:
        yield running


def test_no_worker_has_copies_of_its_own_and_a_damaged_entry_is_a_miss(node: Gateway, sim: Simulator) -> None:
    pids = node.worker_pids()
    lines = [line_to(node.port, pid, pids) for pid in pids]
    asked = [question(f"damaged {i}", stream=i % 2 == 1) for i in range(40)]
    bodies = [lines[0].ask(one).body for one in asked]
    for line in lines:
        assert [line.ask(one).cache for one in asked] == ["HIT-L1"] * 40
    with memory(node) as (shared, geometry):
        struck = 0
        for body in bodies:
            at = shared.find(body, geometry.data_at)
            while at >= 0:
                shared[at + len(body) // 2] ^= 0x20
                struck += 1
                at = shared.find(body, at + 1)
        assert struck >= 40
    before = calls(sim)
    # every second one is asked of each worker first
    answers = [lines[i // 2 % 2].ask(one) for i, one in enumerate(asked)]
    assert [answer.cache for answer in answers] == ["MISS"] * 40
    assert [answer.body for answer in answers] == bodies
    assert calls(sim) == before + 40
    for line in lines:
        assert [line.ask(one).cache for one in asked] == ["HIT-L1"] * 40
        line.socket.close()


REGIONS: dict[str, Callable[[ArenaGeometry], tuple[int, int]]] = {
    "the entries": lambda g: (g.data_at, g.data_at + 256 * 1024),
    "the index": lambda g: (g.index_at, g.data_at),
    "the segments' rows": lambda g: (g.rows_at, g.index_at),
    "all of them": lambda g: (g.rows_at, g.data_at + 256 * 1024),
}


@pytest.mark.parametrize("region", REGIONS)
def test_no_answer_is_ever_wrong_while_the_memory_is_damaged(
    node: Gateway, sim: Simulator, region: str
) -> None:
    asked = [question(f"{region} {i}", stream=i % 2 == 1) for i in range(30)]
    bodies = [truth(sim, one) for one in asked]
    over = threading.Event()
    outcomes: list[str | None] = []
    wrong: list[Any] = []

    def damage(shared: mmap.mmap, begin: int, end: int) -> None:
        dice = random.Random(region)
        while not over.is_set():
            for _ in range(200):
                at = dice.randrange(begin, end)
                shared[at] = dice.choice((0, 0xFF, shared[at] ^ 1 << dice.randrange(8)))
            over.wait(0.001)

    def read(seed: int) -> None:
        dice = random.Random(seed)
        with Line(node.port) as line:
            for _ in range(75):
                i = dice.randrange(len(asked))
                answer = line.ask(asked[i])
                outcomes.append(answer.cache)
                if (answer.status, answer.body) != (200, bodies[i]):
                    wrong.append((answer.status, answer.headers, answer.body))

    with memory(node) as (shared, geometry):
        damaging = threading.Thread(target=damage, args=(shared, *REGIONS[region](geometry)))
        readers = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        damaging.start()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        over.set()
        damaging.join()
    assert not wrong
    assert len(outcomes) == 300
    assert set(outcomes) <= {"MISS", "HIT-L1", "COALESCED"}
    if region != "the segments' rows":  # entries are found without those
        assert outcomes.count("MISS") > 30, "some were damaged"
    assert len(node.worker_pids()) == 2
    assert "internal_error" not in node.log()


# ---- reloaded; last of those that share the node, for it stays as the last reload left it


def reloaded(node: Gateway, new: dict[str, Any]) -> None:
    """Publish `new` and wait until every worker has it."""
    seen = node.log().count("configuration_loaded")
    node.write(new)
    node.reload()
    wait_until(lambda: node.log().count("configuration_loaded") >= seen + 2, what="both workers have it")


def test_mode_life_and_version_follow_a_reload(node: Gateway, sim: Simulator) -> None:
    def told(body: dict[str, Any]) -> str:
        answer = ask(node.port, body)
        return f"{answer.cache} {answer.reason}" if answer.reason else str(answer.cache)

    plain = config(sim.url, workers=2)
    sampled = question("reloaded", temperature=0.5)
    assert [told(sampled), told(sampled)] == ["MISS", "HIT-L1"]
    for mode, reason in (
        ("deterministic", "nondeterministic"),
        ("opt_in", "not_opted_in"),
        ("off", "off"),
    ):
        reloaded(node, config(sim.url, workers=2, mode=mode))
        assert told(sampled) == f"BYPASS {reason}"
    of_one = config(sim.url, workers=2, mode="off")
    of_one["models"]["m"]["cache"] = {"mode": "all"}
    reloaded(node, of_one)
    assert told(sampled) == "HIT-L1", "what was kept is still there"

    tagged = config(sim.url, workers=2)
    tagged["models"]["m"]["version"] = "2"
    reloaded(node, tagged)
    assert [told(sampled), told(sampled)] == ["MISS", "HIT-L1"]
    reloaded(node, plain)
    assert told(sampled) == "HIT-L1"

    reloaded(node, config(sim.url, workers=2, ttl_s=0.1))
    short = question("a short life")
    assert told(short) == "MISS"
    wish = {"cache": {"no-store": True}}
    wait_until(lambda: told({**short, **wish}) == "BYPASS no_store", what="the end of a short life")
    reloaded(node, plain)
    assert [told(short), told(short)] == ["MISS", "HIT-L1"]


# ---- kept


def kept_by(node: Gateway) -> Path:
    """The file in which a gateway keeps its entries."""
    owner = next(owner for _, owner in rundir.running(rundir.base()) if owner.pid == node.pid)
    return rundir.kept_cache(rundir.base(), owner)


def restart(node: Gateway, how: signal.Signals, between: Callable[[], object] = lambda: None) -> None:
    """End the whole gateway and start it again, with the file as it is now."""
    pids = [*node.worker_pids(), node.controller_pid() or node.pid]
    node.proc.send(how)
    node.proc.wait()
    wait_until(lambda: not any(map(is_running, pids)), what="nothing is left of it")
    between()
    node.proc.start()


def test_entries_are_kept_over_a_restart_of_all_where_that_was_asked_for(sim: Simulator) -> None:
    wanted = config(sim.url, keep=True)
    asked = [question(f"kept {i}", stream=i % 2 == 1) for i in range(30)]
    with gateway(wanted) as node:
        kept = kept_by(node)
        try:
            bodies = [ask(node.port, one).body for one in asked]

            def hits() -> int:
                answers = [ask(node.port, one) for one in asked]
                assert [answer.body for answer in answers] == bodies
                return sum(answer.cache == "HIT-L1" for answer in answers)

            assert hits() == 30
            for how in (signal.SIGTERM, signal.SIGKILL):
                before = calls(sim)
                restart(node, how)
                assert hits() == 30, how
                assert calls(sim) == before
                # it goes on as any other: what is new is kept as well
                fresh = question(f"new after {how}")
                assert [ask(node.port, fresh).cache for _ in range(2)] == ["MISS", "HIT-L1"]
            assert kept.stat().st_mode & 0o777 == 0o600

            restart(node, signal.SIGTERM, lambda: os.truncate(kept, kept.stat().st_size // 2))
            assert hits() == 0, "a file cut short is replaced"
            assert hits() == 30

            for other in ({"max_entry": "32KiB"}, {"size": "9MiB"}):
                node.write(config(sim.url, keep=True, **other))
                restart(node, signal.SIGTERM)
                assert hits() == 0, other
                assert hits() == 30

            node.write(config(sim.url, size="9MiB"))
            restart(node, signal.SIGTERM)
            assert hits() == 0, "no longer asked for"
            assert not kept.exists()
            restart(node, signal.SIGTERM)
            assert hits() == 0, "never asked for"
        finally:
            kept.unlink(missing_ok=True)


# ---- not taken


def test_where_nothing_is_cached_no_memory_is_taken_and_a_reload_that_wants_some_says_so(
    sim: Simulator,
) -> None:
    none = config(sim.url, mode="off", size="64MiB")
    none["models"]["m"]["cache"] = {"mode": "off"}
    with gateway(none) as node:
        assert (folder(node) / "cache").stat().st_size < MIB
        asked = question("nothing")
        assert [ask(node.port, asked).reason for _ in range(2)] == ["off", "off"]
        node.write(config(sim.url, size="64MiB"))
        node.reload()
        wait_until(lambda: "config_needs_start keys=cache.mode" in node.log(), what="it says what it needs")
        wait_until(lambda: ask(node.port, asked).cache == "MISS", what="the new mode")
        first, second = ask(node.port, asked), ask(node.port, asked)
        assert (first.cache, second.cache) == ("MISS", "MISS")
        assert msgspec.json.decode(first.body) == msgspec.json.decode(second.body)
        restart(node, signal.SIGTERM)
        assert (folder(node) / "cache").stat().st_size > 60 * MIB
        assert [ask(node.port, asked).cache for _ in range(2)] == ["MISS", "HIT-L1"]
