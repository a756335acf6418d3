"""Flights between workers, as real processes on a real socket: one answer for all, whoever dies, hangs or lies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import uvloop

from penstock.cache.marks import Claim
from penstock.gateway.errors import Fault, Kind
from penstock.gateway.flight import Flight
from penstock.gateway.flight_frames import FrameKind, Frames, frame, head_frame, read_fault, wish
from penstock.gateway.flights import HANGS_NS, WISH_S, Flights
from penstock.gateway.ticket import Head, LeaderLost, Member

from .flying import MIB, Client, Feed, Node, Side, Talk, a_node, body_of, key, until, worker

T = TypeVar("T")
STREAM = Head(200, [("x-penstock-backend", "a")], "text/event-stream", None)


@pytest.fixture
def node() -> Iterator[Node]:
    with a_node() as node:
        yield node


def run(main: Callable[[], Awaitable[T]]) -> T:
    async def wrapped() -> T:
        async with asyncio.timeout(90):  # pytest's own watchdog cannot interrupt this loop
            return await main()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(wrapped())


def led(flights: Flights, n: int) -> Flight:
    assert flights.claim(key(n), 60.0) is Claim.LED
    return flights.open(key(n))


def followed(flights: Flights, n: int) -> Member:
    leader = flights.claim(key(n), 60.0)
    while leader is Claim.BUSY:  # another one asks at this moment
        leader = flights.claim(key(n), 60.0)
    assert isinstance(leader, tuple)
    return flights.remote(leader, key(n))


async def attached(member: Member) -> Client:
    await member.head()
    client = Client(member)
    member.attach(client)
    return client


# ---- what a leader gives


def test_a_whole_answer_reaches_another_worker_once_for_all_its_followers(node: Node) -> None:
    body = body_of(1, 3 * MIB)

    async def leader(side: Side, talk: Talk) -> None:
        flight = led(side.flights, 1)
        talk.say("leading")
        await until(lambda: flight.others)
        talk.say(f"others {flight.others} serving {side.flights.serving}")
        await talk.hear()
        flight.respond(Head(503, [("retry-after", "1")], "application/json", body))
        side.flights.close(flight)
        await until(lambda: not side.flights.serving)
        talk.say(f"held {side.held_bytes}")

    peer = node.peer(0, leader)

    async def main() -> None:
        async with worker(node, 1) as side:
            assert await peer.hear() == "leading"
            members = [followed(side.flights, 1)]
            members += [side.flights.get(key(1)).join() for _ in range(20)]  # type: ignore[union-attr]
            assert await peer.hear() == "others 1 serving 1"
            peer.say("respond")
            heads = await asyncio.gather(*(member.head() for member in members))
            for head in heads:
                assert head is heads[0]
            assert (heads[0].status, heads[0].headers, heads[0].media) == (
                *(503, [("retry-after", "1")], "application/json"),
            )
            assert heads[0].body == body
            assert await peer.hear() == "held 0"
            assert side.held_bytes == len(body)
            for member in members:
                member.abort()
            assert side.held_bytes == 0
            assert side.flights.get(key(1)) is None

    run(main)


def test_a_stream_reaches_another_worker_piece_by_piece_late_joiners_too(node: Node) -> None:
    pieces = [body_of(i, 8 * (1 + i % 300)) for i in range(1500)]

    async def leader(side: Side, talk: Talk) -> None:
        flight = led(side.flights, 1)
        flight.begin(STREAM, Feed())
        for piece in pieces[:500]:
            flight.on_data(piece)
        talk.say("leading")
        await talk.hear()
        for piece in pieces[500:1000]:
            flight.on_data(piece)
        await talk.hear()
        for piece in pieces[1000:]:
            flight.on_data(piece)
        flight.on_end()
        side.flights.close(flight)
        await until(lambda: not side.flights.serving)
        talk.say(f"held {side.held_bytes}")

    peer = node.peer(0, leader)

    async def main() -> None:
        async with worker(node, 1) as side:
            assert await peer.hear() == "leading"
            first = await attached(followed(side.flights, 1))
            await until(lambda: len(first.got) == 500)
            peer.say("more")
            await until(lambda: len(first.got) >= 700)
            second = await attached(side.flights.get(key(1)).join())  # type: ignore[union-attr]
            assert second.body == first.body
            peer.say("more")
            for client in (first, second):
                assert await client.ended is None
                assert client.got == pieces
            assert await peer.hear() == "held 0"
            assert side.held_bytes == 0

    run(main)


def test_a_fault_reaches_another_worker_as_it_is(node: Node) -> None:
    async def leader(side: Side, talk: Talk) -> None:
        before, after = led(side.flights, 1), led(side.flights, 2)
        after.begin(STREAM, Feed())
        after.on_data(b"some")
        talk.say("leading")
        await until(lambda: before.others and after.others)
        before.fail(Fault(Kind.QUEUE_FULL, "full", retry_after_s=2.5, headers=(("x-queue-depth", "9"),)))
        after.fail(Fault(Kind.TOTAL_TIMEOUT, "late"))
        side.flights.close(before)
        side.flights.close(after)

    peer = node.peer(0, leader)

    async def main() -> None:
        async with worker(node, 1) as side:
            assert await peer.hear() == "leading"
            waiting, client = followed(side.flights, 1), await attached(followed(side.flights, 2))
            with pytest.raises(Fault) as caught:
                await waiting.head()
            fault = caught.value
            assert (fault.kind, fault.message, fault.retry_after_s, fault.headers) == (
                *(Kind.QUEUE_FULL, "full", 2.5, (("x-queue-depth", "9"),)),
            )
            ended = await client.ended
            assert ended is not None
            assert ended.kind is Kind.TOTAL_TIMEOUT
            assert client.body == b"some"

    run(main)


def test_two_thousand_members_at_once_share_one_connection_and_all_are_answered(node: Node) -> None:
    many = 2000

    async def follower(side: Side, talk: Talk) -> None:
        await talk.hear()
        members = [followed(side.flights, 1)]
        members += [side.flights.get(key(1)).join() for _ in range(many - 1)]  # type: ignore[union-attr]
        clients = await asyncio.gather(*(attached(member) for member in members))
        await asyncio.gather(*(client.ended for client in clients))
        assert clients[0].body == body_of(1, MIB)
        talk.say(str(sum(client.got == clients[0].got for client in clients)))

    peers = [node.peer(slot, follower) for slot in (1, 2)]

    async def main() -> None:
        async with worker(node, 0) as side:
            flight = led(side.flights, 1)
            for peer in peers:
                peer.say("go")
            own = [flight.join() for _ in range(many)]
            await until(lambda: side.flights.serving == 2)
            flight.begin(STREAM, Feed())
            clients = [await attached(member) for member in own]
            body = body_of(1, MIB)
            for at in range(0, MIB, 50_000):
                flight.on_data(body[at : at + 50_000])
                await asyncio.sleep(0)
            flight.on_end()
            assert [await peer.hear() for peer in peers] == [str(many)] * 2
            assert clients[0].body == body
            assert all(client.got == clients[0].got for client in clients)
            side.flights.close(flight)
            assert side.held_bytes == 0

    run(main)


# ---- who does not read


def test_a_remote_member_that_does_not_read_pauses_only_itself_while_pieces_are_kept(node: Node) -> None:
    size, step = 32 * MIB, 64 << 10
    body = body_of(1, size)

    async def leader(side: Side, talk: Talk) -> None:
        flight = led(side.flights, 1)
        feed = Feed()
        flight.begin(STREAM, feed)
        own = await attached(flight.lead())
        talk.say("leading")
        await talk.hear()
        for at in range(0, size, step):
            flight.on_data(body[at : at + step])
            assert not feed.paused
            await asyncio.sleep(0)
        flight.on_end()
        assert own.body == body
        talk.say(f"unsent {max(one.unsent_bytes for one in side.flights._served) < MIB}")
        side.flights.close(flight)
        await until(lambda: not side.flights.serving)
        talk.say(f"held {side.held_bytes}")

    peer = node.peer(0, leader, limit_bytes=64 * MIB)

    async def main() -> None:
        async with worker(node, 1, limit_bytes=64 * MIB) as side:
            assert await peer.hear() == "leading"
            client = await attached(followed(side.flights, 1))
            client.member.pause()
            peer.say("go")
            assert await peer.hear() == "unsent True"
            assert side.held_bytes < 2 * MIB, "a paused connection is not read"
            assert client.size == 0
            client.member.resume()
            assert await client.ended is None
            assert client.body == body
            assert await peer.hear() == "held 0"
            assert side.held_bytes == 0

    run(main)


def test_behind_the_bound_a_remote_member_that_does_not_read_pauses_the_backend(node: Node) -> None:
    size, step = 16 * MIB, 64 << 10
    body = body_of(1, size)

    async def leader(side: Side, talk: Talk) -> None:
        flight = led(side.flights, 1)
        feed = Feed()
        flight.begin(STREAM, feed)
        own = await attached(flight.lead())
        talk.say("leading")
        await talk.hear()
        said = False
        for at in range(0, size, step):
            flight.on_data(body[at : at + step])
            await asyncio.sleep(0)
            if feed.paused and not said:
                said = True
                talk.say(f"paused kept {flight.pieces is not None} held {side.held_bytes <= MIB}")
            await until(lambda: not feed.paused)
        flight.on_end()
        assert own.body == body
        side.flights.close(flight)
        talk.say(f"done {side.held_bytes}")

    peer = node.peer(0, leader, limit_bytes=MIB)

    async def main() -> None:
        async with worker(node, 1, limit_bytes=MIB) as side:
            assert await peer.hear() == "leading"
            client = await attached(followed(side.flights, 1))
            client.member.pause()
            peer.say("go")
            assert await peer.hear() == "paused kept False held True"
            client.member.resume()
            assert await client.ended is None
            assert client.body == body
            assert await peer.hear() == "done 0"

    run(main)


def test_memory_that_cannot_be_had_for_anothers_whole_answer_is_a_fault(node: Node) -> None:
    async def leader(side: Side, talk: Talk) -> None:
        flight = led(side.flights, 1)
        talk.say("leading")
        await until(lambda: flight.others)
        flight.respond(Head(200, [], "a/b", bytes(4 * MIB)))
        side.flights.close(flight)

    peer = node.peer(0, leader)

    async def main() -> None:
        async with worker(node, 1, free_bytes=MIB) as side:
            assert await peer.hear() == "leading"
            member = followed(side.flights, 1)
            with pytest.raises(Fault) as caught:
                await member.head()
            assert caught.value.kind is Kind.BUFFERS_FULL
            assert side.held_bytes == 0

    run(main)


# ---- who dies


def test_followers_of_a_leader_killed_before_its_answer_began_ask_anew_and_one_of_them_leads(
    node: Node,
) -> None:
    each = 50

    async def leader(side: Side, talk: Talk) -> None:
        led(side.flights, 1)
        talk.say("leading")

    async def lead(side: Side) -> None:
        flight = side.flights.open(key(1))
        try:
            # all are here again: those of this worker, and one connection of each of the other two
            await until(lambda: flight.others == each - 1 + 2)
            flight.respond(Head(200, [], "a/b", b"answer"))
        finally:
            side.flights.close(flight)

    async def ask(side: Side, calls: list[int]) -> bytes:
        while True:
            flight = side.flights.get(key(1))
            if flight is not None:
                member = flight.join()
            else:
                found = side.flights.claim(key(1), 60.0)
                if found is Claim.LED:
                    calls.append(1)
                    await lead(side)
                    return b"answer"
                if not isinstance(found, tuple):
                    await asyncio.sleep(0)
                    continue
                member = side.flights.remote(found, key(1))
            try:
                head = await member.head()
                assert head.body is not None
                return bytes(head.body)
            except LeaderLost:
                continue
            finally:
                member.abort()

    async def follower(side: Side, talk: Talk) -> None:
        await talk.hear()
        calls: list[int] = []
        asking = [asyncio.create_task(ask(side, calls)) for _ in range(each)]
        await until(lambda: (one := side.flights.get(key(1))) is not None and one.others == each)
        talk.say("asking")
        answers = await asyncio.gather(*asking)
        talk.say(f"{len(calls)} {answers.count(b'answer')}")

    first = node.peer(0, leader)
    others = [node.peer(slot, follower) for slot in (1, 2, 3)]

    async def main() -> None:
        assert await first.hear() == "leading"
        for other in others:
            other.say("go")
        assert [await other.hear() for other in others] == ["asking"] * 3
        first.kill()
        said = [(await other.hear()).split() for other in others]
        assert sum(int(calls) for calls, _ in said) == 1
        assert [answered for _, answered in said] == [str(each)] * 3

    run(main)


def test_followers_of_a_leader_killed_amid_its_answer_have_what_came_and_a_fault(node: Node) -> None:
    async def leader(side: Side, talk: Talk) -> None:
        flight = led(side.flights, 1)
        flight.begin(STREAM, Feed())
        flight.on_data(b"some")
        talk.say("leading")

    peer = node.peer(0, leader)

    async def main() -> None:
        async with worker(node, 1) as side:
            assert await peer.hear() == "leading"
            client = await attached(followed(side.flights, 1))
            slow = await attached(side.flights.get(key(1)).join())  # type: ignore[union-attr]
            await until(lambda: client.got)
            slow.member.pause()
            peer.kill()
            fault = await client.ended
            assert fault is not None
            assert (fault.kind, fault.status) == (Kind.FLIGHT_LOST, 502)
            assert client.got == [b"some"]
            slow.member.resume()
            assert (await slow.ended) is not None
            assert side.flights.get(key(1)) is None
            assert side.flights.claim(key(1), 60.0) is Claim.LED

    run(main)


def test_a_whole_answer_cut_by_its_leaders_death_is_asked_for_anew(node: Node) -> None:
    async def leader(side: Side, talk: Talk) -> None:
        flight = led(side.flights, 1)
        talk.say("leading")
        await until(lambda: flight.others)
        for one in side.flights._served:
            # half of an answer, then death: what a kill between two writes leaves
            assert one._transport is not None
            one._transport.write(head_frame(Head(200, [], "a/b", b"")) + frame(FrameKind.DATA, b"half"))
        await until(lambda: all(one.unsent_bytes == 0 for one in side.flights._served))
        os.kill(os.getpid(), signal.SIGKILL)

    peer = node.peer(0, leader)

    async def main() -> None:
        async with worker(node, 1) as side:
            assert await peer.hear() == "leading"
            with pytest.raises(LeaderLost):
                await followed(side.flights, 1).head()
            assert side.held_bytes == 0
            assert side.flights.claim(key(1), 60.0) is Claim.LED

    run(main)


def test_a_follower_that_is_killed_has_left(node: Node) -> None:
    async def follower(side: Side, talk: Talk) -> None:
        await talk.hear()
        talk.say("joined" if followed(side.flights, 1).at == 0 else "")

    peer = node.peer(1, follower)

    async def main() -> None:
        async with worker(node, 0) as side:
            flight = led(side.flights, 1)
            left = asyncio.Event()
            flight.on_last_left = left.set
            peer.say("go")
            assert await peer.hear() == "joined"
            await until(lambda: flight.others)
            assert flight.leave_leader()
            peer.kill()
            await left.wait()
            assert not flight.wanted
            await until(lambda: not side.flights.serving)
            side.flights.close(flight)

    run(main)


def test_a_worker_whose_last_follower_leaves_leaves_the_flight(node: Node) -> None:
    async def leader(side: Side, talk: Talk) -> None:
        flight = led(side.flights, 1)
        talk.say("leading")
        await until(lambda: flight.others)
        talk.say("followed")
        await until(lambda: not flight.others)
        talk.say("left")

    peer = node.peer(0, leader)

    async def main() -> None:
        async with worker(node, 1) as side:
            assert await peer.hear() == "leading"
            first, second = followed(side.flights, 1), side.flights.get(key(1)).join()  # type: ignore[union-attr]
            assert await peer.hear() == "followed"
            first.abort()
            assert side.flights.get(key(1)) is not None
            second.abort()
            assert side.flights.get(key(1)) is None
            assert await peer.hear() == "left"

    run(main)


# ---- who hangs


def test_a_leader_that_hangs_is_given_up(node: Node) -> None:
    async def leader(side: Side, talk: Talk) -> None:
        led(side.flights, 1)
        begun = led(side.flights, 2)
        begun.begin(STREAM, Feed())
        talk.say("leading")
        await until(lambda: begun.others)
        talk.say("followed")

    peer = node.peer(0, leader)

    async def main() -> None:
        async with worker(node, 1) as side:
            assert await peer.hear() == "leading"
            waiting = followed(side.flights, 1)
            client = await attached(followed(side.flights, 2))
            assert await peer.hear() == "followed"
            peer.send(signal.SIGSTOP)
            side.ahead_ns = 2 * HANGS_NS
            with pytest.raises(LeaderLost):
                await waiting.head()
            fault = await client.ended
            assert fault is not None
            assert fault.kind is Kind.FLIGHT_LOST
            # and who follows it now need not wait
            with pytest.raises(LeaderLost):
                await followed(side.flights, 1).head()

    run(main)


def test_a_follower_that_hangs_is_given_up(node: Node) -> None:
    async def follower(side: Side, talk: Talk) -> None:
        await talk.hear()
        member = followed(side.flights, 1)
        talk.say("joined")
        await member.head()

    peer = node.peer(1, follower)

    async def main() -> None:
        async with worker(node, 0) as side:
            flight = led(side.flights, 1)
            peer.say("go")
            assert await peer.hear() == "joined"
            await until(lambda: flight.others)
            peer.send(signal.SIGSTOP)
            side.ahead_ns = 2 * HANGS_NS
            await until(lambda: not flight.others)
            assert side.flights.serving == 0

    run(main)


# ---- who says what it should not


async def talk_to(side: Side, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    path = side.flights.path
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(data)
    return reader, writer


def test_a_question_that_nobody_leads_is_answered_by_gone(node: Node) -> None:
    async def main() -> None:
        async with worker(node, 0) as side:
            reader, writer = await talk_to(side, wish(key(1), 0, 1))
            assert await reader.read() == frame(FrameKind.GONE)
            writer.close()

    run(main)


def test_a_leader_that_knows_nothing_of_the_question_is_no_leader(node: Node) -> None:
    async def main() -> None:
        async with worker(node, 0) as leader, worker(node, 1) as side:
            assert leader.flights.claim(key(1), 60.0) is Claim.LED  # and never opens it
            with pytest.raises(LeaderLost):
                await followed(side.flights, 1).head()
            assert side.flights.get(key(1)) is None

    run(main)


def test_a_follower_is_not_followed(node: Node) -> None:
    async def main() -> None:
        async with worker(node, 0) as leader, worker(node, 1) as side, worker(node, 2) as third:
            led(leader.flights, 1)
            followed(side.flights, 1)
            member = third.flights.remote((1, side.slot.generation), key(1))
            with pytest.raises(LeaderLost):
                await member.head()

    run(main)


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\nhost: localhost:80\r\n\r\n" * 9, bytes(41)])
def test_garbage_from_a_follower_ends_its_connection_and_nothing_else(node: Node, garbage: bytes) -> None:
    async def main() -> None:
        async with worker(node, 0) as side:
            flight = led(side.flights, 1)
            reader, writer = await talk_to(side, garbage)
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
            _, writer = await talk_to(side, wish(key(1), 0, 1))
            await until(lambda: flight.others)
            writer.write(b"x")
            await until(lambda: not flight.others)
            writer.close()
            assert flight.joinable

    run(main)


def test_a_follower_that_never_says_what_it_wants_is_dropped(node: Node) -> None:
    async def main() -> None:
        async with worker(node, 0) as side:
            reader, writer = await talk_to(side, wish(key(1), 0, 1)[:39])
            await until(lambda: side.flights.serving)
            now = side.loop.time()
            side.flights.tick(now + WISH_S / 2)
            assert side.flights.serving == 1
            side.flights.tick(now + WISH_S + 2)
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
            await until(lambda: not side.flights.serving)

    run(main)


SAID = [
    b"\x00",
    b"HTTP/1.1 200 OK\r\n",
    frame(FrameKind.DATA, b"before the head"),
    frame(FrameKind.END),
    b"\x01\x00\x00\x00\x01\xc1",
    b"\x02\x7f\xff\xff\xff",
    head_frame(Head(200, [], "", b"")) + head_frame(Head(200, [], "", b"")),
    head_frame(Head(200, [], "", b"")) + frame(FrameKind.GONE),
    b"\x01",
    b"",
]


@pytest.mark.parametrize("said", SAID)
def test_a_leader_that_speaks_nonsense_before_the_answer_is_lost(node: Node, said: bytes) -> None:
    async def main() -> None:
        async with worker(node, 0) as leader, worker(node, 1) as side:
            led(leader.flights, 1)
            with impostor(leader.flights.path, said):
                with pytest.raises(LeaderLost):
                    await followed(side.flights, 1).head()
                assert side.flights.get(key(1)) is None

    run(main)


def test_a_leader_that_speaks_nonsense_amid_the_answer_is_lost_to_those_with_bytes(node: Node) -> None:
    async def main() -> None:
        async with worker(node, 0) as leader, worker(node, 1) as side:
            led(leader.flights, 1)
            said = head_frame(STREAM) + frame(FrameKind.DATA, b"some") + head_frame(STREAM)
            with impostor(leader.flights.path, said):
                client = await attached(followed(side.flights, 1))
                fault = await client.ended
                assert client.body == b"some"
                assert fault is not None
                assert fault.kind is Kind.FLIGHT_LOST

    run(main)


class impostor:
    """Listens where a worker's socket was, says what it is told to, and ends its half of the connection."""

    def __init__(self, path: Path, said: bytes) -> None:
        path.unlink()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._said = said
        self._connections: list[socket.socket] = []
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> None:
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.sendall(self._said)
        connection.shutdown(socket.SHUT_WR)
        self._connections.append(connection)

    def __exit__(self, *_: object) -> None:
        self._loop.remove_reader(self._listener.fileno())
        for one in (self._listener, *self._connections):
            one.close()


# ---- the socket


def test_the_socket_is_private_and_goes_with_its_worker(node: Node) -> None:
    async def main() -> None:
        async with worker(node, 0) as side:
            assert stat.S_IMODE(side.flights.path.stat().st_mode) == 0o600
            assert side.flights.path.parent == node.folder
        assert list(node.folder.iterdir()) == []

    run(main)


def test_sockets_of_dead_workers_are_removed_and_no_others(node: Node) -> None:
    (node.folder / "flight-3-9.sock").touch()
    (node.folder / "flight-0-99.sock").touch()
    (node.folder / "flight-x-1.sock").touch()
    (node.folder / "config-1.msgpack").touch()

    async def main() -> None:
        async with worker(node, 0) as first, worker(node, 1) as second:
            assert {path.name for path in node.folder.iterdir()} == {
                *("flight-x-1.sock", "config-1.msgpack", first.flights.path.name, second.flights.path.name),
            }

    run(main)


def test_a_socket_that_was_removed_is_made_again(node: Node) -> None:
    async def main() -> None:
        async with worker(node, 0) as leader, worker(node, 1) as side:
            leader.flights.path.unlink()
            leader.flights.tick(leader.loop.time() + 5)
            await until(leader.flights.path.exists)
            flight = led(leader.flights, 1)
            member = followed(side.flights, 1)
            await until(lambda: flight.others)
            flight.respond(Head(200, [], "a/b", b"there"))
            leader.flights.close(flight)
            assert (await member.head()).body == b"there"

    run(main)


def test_a_leader_whose_socket_is_gone_is_no_leader(node: Node) -> None:
    async def main() -> None:
        async with worker(node, 0) as leader, worker(node, 1) as side:
            led(leader.flights, 1)
            leader.flights.path.unlink()
            with pytest.raises(LeaderLost):
                await followed(side.flights, 1).head()

    run(main)


def test_a_worker_that_stops_gives_its_followers_what_it_has(node: Node) -> None:
    body = body_of(1, 8 * MIB)

    async def leader(side: Side, talk: Talk) -> None:
        flight = led(side.flights, 1)
        talk.say("leading")
        await until(lambda: flight.others)
        flight.respond(Head(200, [], "a/b", body))
        side.flights.close(flight)
        await side.flights.stop()
        os.kill(os.getpid(), signal.SIGKILL)

    peer = node.peer(0, leader)

    async def main() -> None:
        async with worker(node, 1) as side:
            assert await peer.hear() == "leading"
            head = await followed(side.flights, 1).head()
            assert head.body == body

    run(main)


def test_a_worker_that_stops_tells_its_own_followers_to_ask_anew(node: Node) -> None:
    async def main() -> None:
        async with worker(node, 0) as leader:
            led(leader.flights, 1)
            async with worker(node, 1) as side:
                waiting = asyncio.create_task(followed(side.flights, 1).head())
                await asyncio.sleep(0)
            with pytest.raises(LeaderLost):
                await waiting

    run(main)


def test_the_frames_of_a_fault_are_what_a_raw_client_reads(node: Node) -> None:
    async def main() -> None:
        async with worker(node, 0) as side:
            flight = led(side.flights, 1)
            reader, writer = await talk_to(side, wish(key(1), 0, 1))
            await until(lambda: flight.others)
            flight.fail(Fault(Kind.NO_BACKEND, "none"))
            side.flights.close(flight)
            frames = Frames()
            frames.feed(await reader.read())
            found = frames.next()
            assert found is not None
            assert found[0] is FrameKind.FAULT
            assert read_fault(found[1]).kind is Kind.NO_BACKEND
            assert frames.next() is None
            writer.close()

    run(main)
