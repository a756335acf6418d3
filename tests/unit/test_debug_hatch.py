"""A process that is looked into through its hatch: here this very one, its loop on the main thread as in a worker."""

import asyncio
import gc
import hashlib
import os
import socket
import sys
import threading
import time
import tracemalloc

import uvloop

from penstock.gateway.ledger import Ledger
from penstock.gateway.upstream.h1 import ResponseReader
from penstock.workers.debug import heap, tracer
from penstock.workers.debug.asking import Process, ask_all
from penstock.workers.debug.formats import Stacks
from penstock.workers.debug.hatch import Hatch, Wish, path_of
from penstock.workers.debug.sampler import LOOP, OTHERS, Sampler


def looked_into(folder, *wishes, beside=lambda loop, asked: None, after=None):
    """What this process says to `wishes`, one after another, once the event `after` is set, while its loop does
    `beside(loop, asked)`; asked: an event that is set when all have been answered.
    """
    loop = uvloop.new_event_loop()
    hatch = Hatch(folder, 0, 1, loop)
    hatch.open()
    told, asked = [], threading.Event()

    def ask():
        try:
            assert after is None or after.wait(20)
            me = Process("0", os.getpid(), path_of(folder, 0, 1))
            for wish in wishes:
                told.append(asyncio.run(ask_all([me], wish))[0].lines)
        finally:
            asked.set()
            loop.call_soon_threadsafe(loop.stop)

    asker = threading.Thread(target=ask)
    try:
        loop.call_soon(asker.start)
        beside(loop, asked)
        loop.run_forever()
        asker.join()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left))
    finally:
        hatch.close()
        loop.close()
    return told


def run_beside(instrument, beside):
    """What `instrument(loop, wait)` says of a loop that does `beside(loop, enough)`, until that has set `enough`."""
    loop = uvloop.new_event_loop()
    enough = threading.Event()
    told = []

    def ask(run):
        try:
            told.extend(run(loop, lambda: enough.wait(60)))
        finally:
            loop.call_soon_threadsafe(loop.stop)

    asker = threading.Thread(target=ask, args=(instrument(sys._getframe()),))
    try:
        asker.start()
        beside(loop, enough)
        loop.run_forever()
        asker.join()
        assert enough.is_set()
    finally:
        loop.close()
    return told


def sampling(runner):
    sampler = Sampler(runner)
    return lambda loop, wait: sampler.run(wait)


def spin(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_a_profile_says_what_each_function_used():
    def hot():
        spin(0.0003)

    def cold():
        spin(0.0001)

    def beside(loop, enough):
        end = time.thread_time() + 0.7

        def again():
            hot()
            cold()
            if time.thread_time() > end:
                enough.set()
            loop.call_soon(again)

        loop.call_soon(again)

    lines = run_beside(sampling, beside)
    stacks = Stacks.of("0", lines)
    below = {"hot": 0, "cold": 0}
    for stack, used, _ in stacks.found:
        names = [name.rpartition(".")[2] for name, _, _ in stack]
        for name in below:
            below[name] += used * (name in names)
        # it begins with what the loop called, not with what runs the loop
        assert names[0] not in ("run_beside", "<module>")
    assert 0.55 < below["hot"] / (below["hot"] + below["cold"]) < 0.92
    summary = lines[-1]
    assert summary["samples"] >= 20
    assert 0.85 < sum(below.values()) / summary["loop_cpu_ns"] <= 1.05
    assert stacks.total <= 1.05 * summary["cpu_ns"]


def test_time_between_functions_is_the_loops_and_not_the_next_ones():
    data = bytes(1 << 20)

    def beside(loop, enough):
        end = time.thread_time() + 0.4

        def innocent():
            if time.thread_time() > end:
                enough.set()
            loop.call_soon(hashlib.sha1, data)
            loop.call_soon(innocent)

        loop.call_soon(innocent)

    stacks = Stacks.of("0", run_beside(sampling, beside))
    own = {}
    for stack, used, _ in stacks.found:
        own[stack[-1][0]] = own.get(stack[-1][0], 0) + used
    own.pop(OTHERS, None)
    assert own[LOOP] / sum(own.values()) > 0.8


def test_a_loop_that_stands_still_is_seen_standing(tmp_path):
    standing = threading.Event()

    def stand_still(asked):
        standing.set()
        assert asked.wait(20)

    def beside(loop, asked):
        loop.call_soon(stand_still, asked)

    [lines] = looked_into(tmp_path, Wish("tasks"), beside=beside, after=standing)
    [main] = [one for one in lines[0]["threads"] if one["name"] == "MainThread"]
    assert any("stand_still (" in place for place in main["stack"])


def test_tasks_tell_what_they_wait_for_and_no_values(tmp_path):
    async def inner(secret):
        await asyncio.get_running_loop().create_future()

    async def outer():
        await inner("sk-secret")

    there = threading.Event()

    def beside(loop, _):
        loop.kept = [loop.create_task(outer()) for _ in range(5)]
        loop.call_soon(there.set)

    [lines] = looked_into(tmp_path, Wish("tasks"), beside=beside, after=there)
    [group] = [one for one in lines[0]["tasks"] if "outer" in one["stack"][0]]
    assert group["count"] == 5
    assert [place.partition(" (")[0].rpartition(".")[2] for place in group["stack"]] == ["outer", "inner"]
    assert group["waits_for"] == "Future, pending"
    assert "secret" not in str(lines)


class Grown:
    """Something that a leak is made of."""

    def __init__(self):
        self.body = os.urandom(1000)


def test_a_census_counts_objects_and_what_they_hold(tmp_path):
    kept = [Grown() for _ in range(300)]
    [lines] = looked_into(tmp_path, Wish("heap"))
    types = {one["type"]: one for one in lines[0]["types"]}
    assert types[f"{__name__}.Grown"]["count"] == len(kept)
    assert types["builtins.bytes"]["bytes"] >= 300 * 1000
    assert lines[0]["memory"]["rss"] > 1 << 20


def test_allocations_are_told_by_the_lines_that_made_them():
    kept = []

    def beside(loop, enough):
        def grow():
            if tracemalloc.is_tracing():
                kept.append(bytearray(10_000))
            if len(kept) > 5:
                enough.set()
            loop.call_later(0.001, grow)

        loop.call_soon(grow)

    found = Stacks.of("0", run_beside(lambda _: lambda loop, wait: heap.allocated(wait), beside)).found
    here = [size for stack, size, _ in found if stack[-1][1] == __file__]
    assert max(here, default=0) >= 10_000
    assert not tracemalloc.is_tracing()


def test_a_trace_has_callbacks_steps_and_collections_and_is_gone_afterwards():
    before = Ledger.record, ResponseReader.feed, list(gc.callbacks)
    loops = []

    async def stepping(enough):
        for _ in range(1000):
            await asyncio.sleep(0.001)
            if enough.is_set():
                return

    def beside(loop, enough):
        ticks = []

        def tick():
            gc.collect(0)
            ticks.append("call_soon" in vars(loop))
            if sum(ticks) > 5:
                enough.set()
            loop.call_later(0.002, tick)

        loops.append(loop)
        loop.kept = loop.create_task(stepping(enough))
        loop.call_soon(tick)

    lines = run_beside(lambda _: lambda loop, wait: tracer.run(loop, wait, 100_000), beside)
    events = [tuple(event) for line in lines for event in line.get("events", ())]
    names = {(event[2], event[1].rpartition(".")[2]) for event in events}
    assert {("callback", "stepping > sleep"), ("callback", "tick"), ("gc", "gc generation 0")} <= names
    for phase, _, _, began, took, _ in events:
        assert phase == "X"
        assert began > 0
        assert took >= 0
    assert lines[-1] == {"dropped": 0}
    assert (Ledger.record, ResponseReader.feed, list(gc.callbacks)) == before
    assert not set(vars(loops[0])) & {"call_soon", "call_later", "call_at", "call_soon_threadsafe"}


def test_a_trace_keeps_no_more_than_it_was_told_to():
    def beside(loop, enough):
        times = []

        def again():
            times.append("call_soon" in vars(loop))
            if sum(times) > 300:
                enough.set()
                times.clear()
            loop.call_soon(again)

        loop.call_soon(again)

    lines = run_beside(lambda _: lambda loop, wait: tracer.run(loop, wait, 100), beside)
    assert sum(len(line.get("events", ())) for line in lines) == 100
    assert lines[-1]["dropped"] > 100


def test_who_leaves_ends_what_he_began(tmp_path):
    def ask_and_leave(loop, _):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
            one.connect(str(path_of(tmp_path, 0, 1)))
            one.sendall(b'{"what":"profile","seconds":60}\n')

    # one is served after another: were the first not ended, the second would not be answered
    [lines] = looked_into(tmp_path, Wish("tasks"), beside=ask_and_leave)
    assert lines is not None


def test_nonsense_is_no_question_and_the_next_one_is_answered(tmp_path):
    def beside(loop, _):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
            one.connect(str(path_of(tmp_path, 0, 1)))
            one.sendall(b"GET / HTTP/1.1\r\n\r\n")

    [lines] = looked_into(tmp_path, Wish("tasks"), beside=beside)
    assert lines is not None


def test_the_socket_is_its_owners_alone_and_goes_with_the_process(tmp_path):
    left = tmp_path / "debug-0-0.sock"  # of a life of this slot that was killed
    left.touch()
    other = tmp_path / "debug-1-7.sock"
    other.touch()
    seen = []

    def beside(loop, _):
        seen.append(path_of(tmp_path, 0, 1).stat().st_mode & 0o777)

    looked_into(tmp_path, Wish("tasks"), beside=beside)
    assert seen == [0o600]
    assert [path.name for path in tmp_path.iterdir()] == [other.name]


def test_a_process_that_is_not_there_is_lost(tmp_path):
    gone = Process("3", 1, tmp_path / "none.sock")
    [told] = asyncio.run(ask_all([gone], Wish("tasks")))
    assert told.lines is None
