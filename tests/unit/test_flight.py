"""A flight: every member that stays gets exactly the body, whoever joins, pauses and leaves when."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.cache.digest import Key
from penstock.gateway.errors import Fault, Kind
from penstock.gateway.flight import Flight, Terms, UpstreamSink
from penstock.gateway.gathered import Gathered
from penstock.gateway.ticket import Head, LeaderLost, Member
from penstock.gateway.upstream.fault import FaultKind, UpstreamFault

KEY = Key(bytes(32))
LIMIT = 1000


@dataclass
class Room:
    """The node's memory: `free` bytes of it, and what the flights hold."""

    free: int = 1 << 60
    held: int = 0
    most: int = 0

    def try_hold(self, size: int) -> bool:
        assert size > 0
        if self.held + size > self.free:
            return False
        self.held += size
        self.most = max(self.most, self.held)
        return True

    def release(self, size: int) -> None:
        assert 0 < size <= self.held
        self.held -= size


class Feed:
    """A backend's call that is driven by hand."""

    def __init__(self) -> None:
        self.sink: UpstreamSink | None = None
        self.paused = False
        self.turns = 0

    def attach(self, sink: UpstreamSink) -> None:
        self.sink = sink

    def pause(self) -> None:
        assert not self.paused
        self.paused = True
        self.turns += 1

    def resume(self) -> None:
        assert self.paused
        self.paused = False
        self.turns += 1


@dataclass
class Client:
    """A member's sink; `during` is done within each piece it gets."""

    member: Member
    got: list[bytes] = field(default_factory=list)
    ended: list[Fault | None] = field(default_factory=list)
    during: Callable[[Client], None] | None = None
    inside: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.got)

    def on_data(self, data: bytes) -> None:
        assert not self.ended
        assert not self.member.gone
        assert not self.member.paused
        assert not self.inside, "a piece within a piece"
        self.inside = True
        self.got.append(data)
        if self.during is not None:
            self.during(self)
        self.inside = False

    def on_end(self) -> None:
        assert not self.ended
        self.ended.append(None)

    def on_fail(self, fault: Fault) -> None:
        assert not self.ended
        self.ended.append(fault)


class World:
    """One flight with its surroundings."""

    def __init__(self, limit_bytes: int = LIMIT, free_bytes: int = 1 << 60) -> None:
        self.loop = asyncio.new_event_loop()
        self.room = Room(free_bytes)
        self.forgotten: list[Flight] = []
        self.terms = Terms(
            self.loop, limit_bytes, self.room.try_hold, self.room.release, self.forgotten.append
        )
        self.flight = Flight(KEY, self.terms)
        self.feed = Feed()

    def begin(self) -> None:
        self.flight.begin(Head(200, [], "text/event-stream", None), self.feed)

    def client(self, *, lead: bool = False, attach: bool = True) -> Client:
        client = Client(self.flight.lead() if lead else self.flight.join())
        if attach:
            client.member.attach(client)
        return client

    def data(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.flight.on_data(piece)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.loop.close()


def whole(body: bytes = b"answer") -> Head:
    return Head(200, [("a", "b")], "application/json", body)


def resolved(world: World, member: Member) -> Head:
    return world.loop.run_until_complete(member.head())


# ---- whole answers


def test_a_whole_answer_goes_to_all_who_wait_and_to_who_comes_before_it_is_closed(world: World) -> None:
    early = [world.flight.join() for _ in range(3)]
    waiting = [world.loop.create_task(member.head()) for member in early]
    world.loop.run_until_complete(asyncio.sleep(0))
    assert world.flight.others == 3
    head = whole()
    world.flight.respond(head)
    late = world.flight.join()
    assert all(world.loop.run_until_complete(task) is head for task in waiting)
    assert resolved(world, late) is head
    world.flight.close()
    assert not world.flight.joinable
    assert world.forgotten == [world.flight]
    with pytest.raises(RuntimeError, match="nobody may join"):
        world.flight.join()


def test_a_long_whole_answer_counts_as_held_until_the_last_member_lets_go_of_it(world: World) -> None:
    members = [world.flight.join() for _ in range(2)]
    world.flight.respond(whole(bytes(100_000)))
    world.flight.close()
    assert world.room.held == 100_000
    members[0].abort()
    assert world.room.held == 100_000
    members[1].abort()
    members[1].abort()
    assert world.room.held == 0


def test_what_was_held_for_members_that_left_before_the_close_comes_back_with_it(world: World) -> None:
    member = world.flight.join()
    world.flight.respond(whole(bytes(100_000)))
    member.abort()
    world.flight.close()
    assert world.room.most == 100_000
    assert world.room.held == 0


def test_an_answer_that_nobody_else_waits_for_holds_and_makes_nothing(world: World) -> None:
    world.flight.respond(whole(bytes(100_000)))
    world.flight.close()
    world.flight.close()
    assert world.room.most == 0
    assert world.forgotten == [world.flight]
    assert world.flight.others == 0


def test_a_whole_answer_is_not_attached_to(world: World) -> None:
    member = world.flight.join()
    with pytest.raises(RuntimeError, match="attach"):
        member.attach(Client(member))
    world.flight.respond(whole())
    with pytest.raises(RuntimeError, match="attach"):
        member.attach(Client(member))


# ---- how it fails


def test_a_fault_before_the_head_is_raised_by_each_waiter_on_its_own(world: World) -> None:
    members = [world.flight.join() for _ in range(2)]
    fault = Fault(Kind.QUEUE_TIMEOUT, "late", param="p", retry_after_s=2.0, headers=(("x", "y"),))
    world.flight.fail(fault)
    raised = []
    for member in members:
        with pytest.raises(Fault) as caught:
            resolved(world, member)
        raised.append(caught.value)
    assert raised[0] is not raised[1]
    for one in raised:
        assert (one.kind, one.message, one.param, one.retry_after_s, one.headers) == (
            *(Kind.QUEUE_TIMEOUT, "late", "p", 2.0, (("x", "y"),)),
        )
    assert not world.flight.joinable


def test_who_waits_for_a_leader_that_ends_without_an_answer_is_told_to_ask_anew(world: World) -> None:
    member = world.flight.join()
    waiting = world.loop.create_task(member.head())
    world.loop.run_until_complete(asyncio.sleep(0))
    world.flight.close()
    with pytest.raises(LeaderLost):
        world.loop.run_until_complete(waiting)
    with pytest.raises(LeaderLost):
        resolved(world, member)


def test_who_has_bytes_of_a_flight_whose_leader_ended_gets_them_and_a_fault(world: World) -> None:
    world.begin()
    quick, slow = world.client(), world.client()
    slow.member.pause()
    world.data(b"a", b"b")
    world.flight.close()
    assert quick.got == [b"a", b"b"]
    assert [fault and fault.kind for fault in quick.ended] == [Kind.FLIGHT_LOST]
    assert slow.ended == []
    slow.member.resume()
    assert slow.got == [b"a", b"b"]
    assert [fault and fault.kind for fault in slow.ended] == [Kind.FLIGHT_LOST]
    assert world.room.held == 0


def test_a_fault_of_the_backend_comes_behind_the_bytes_before_it(world: World) -> None:
    world.begin()
    client = world.client()
    world.data(b"a")
    world.flight.on_fault(UpstreamFault(FaultKind.BETWEEN_CHUNKS_TIMEOUT))
    assert client.got == [b"a"]
    assert [fault and fault.status for fault in client.ended] == [504]
    assert not world.flight.joinable
    world.data(b"late")
    world.flight.on_end()
    assert client.got == [b"a"]


def test_what_finished_says(world: World) -> None:
    before = world.flight.finished
    world.begin()
    assert not before.done()
    world.flight.on_end()
    assert before.result() is None
    other = Flight(KEY, world.terms)
    fault = Fault(Kind.NO_BACKEND, "none")
    other.fail(fault)
    assert other.finished.result() is fault


# ---- who is there


def test_a_leader_that_leaves_goes_on_for_others_and_hears_when_the_last_has_left(world: World) -> None:
    left: list[str] = []
    world.flight.on_last_left = lambda: left.append("all")
    first, second = world.flight.join(), world.flight.join()
    assert world.flight.leave_leader()
    assert world.flight.wanted
    first.abort()
    first.abort()
    assert left == []
    assert world.flight.joinable
    second.abort()
    assert left == ["all"]
    assert not world.flight.wanted
    assert not world.flight.joinable
    assert world.forgotten == [world.flight]


def test_a_leader_that_nobody_follows_leaves_for_good(world: World) -> None:
    world.flight.on_last_left = pytest.fail
    world.begin()
    leader = world.client(lead=True)
    assert world.flight.others == 0
    assert world.flight.wanted
    assert not world.flight.leave_leader()
    assert not world.flight.leave_leader()
    assert leader.member.gone
    assert not world.flight.joinable


def test_the_leaders_own_place_is_no_other(world: World) -> None:
    world.begin()
    leader, other = world.client(lead=True), world.client()
    assert world.flight.lead() is leader.member
    assert world.flight.others == 1
    assert world.flight.leave_leader()
    world.data(b"x")
    assert other.got == [b"x"]
    assert leader.got == []


def test_followers_that_leave_before_the_leader_change_nothing(world: World) -> None:
    world.flight.on_last_left = pytest.fail
    member = world.flight.join()
    member.abort()
    assert world.flight.wanted
    assert world.flight.joinable


def test_whoever_is_cancelled_while_waiting_has_left(world: World) -> None:
    left: list[str] = []
    world.flight.on_last_left = lambda: left.append("all")
    waiting = world.loop.create_task(world.flight.join().head())
    world.loop.run_until_complete(asyncio.sleep(0))
    assert world.flight.leave_leader()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        world.loop.run_until_complete(waiting)
    assert left == ["all"]


def test_once_the_answer_is_complete_nobodys_leaving_is_told(world: World) -> None:
    world.flight.on_last_left = pytest.fail
    member = world.flight.join()
    world.flight.respond(whole())
    assert not world.flight.leave_leader()
    member.abort()


# ---- streams


def test_a_late_joiner_gets_what_came_and_then_the_rest(world: World) -> None:
    world.begin()
    leader = world.client(lead=True)
    world.data(b"one", b"two")
    late = world.client()
    assert late.got == [b"one", b"two"]
    world.data(b"three")
    world.flight.on_end()
    last = world.client()
    for client in (leader, late, last):
        assert client.got == [b"one", b"two", b"three"]
        assert client.ended == [None]
    assert world.flight.pieces == [b"one", b"two", b"three"]
    world.flight.close()
    assert world.room.held == 0


def test_nobody_joins_a_prefix_over_the_bound_but_everybody_there_gets_the_rest(world: World) -> None:
    world.begin()
    clients = [world.client(), world.client()]
    world.data(bytes(LIMIT))
    assert world.flight.pieces is not None
    assert world.flight.joinable
    world.data(b"x")
    assert not world.flight.joinable
    assert world.flight.pieces is None
    assert world.forgotten == [world.flight]
    assert world.room.held == 0
    world.data(b"y")
    world.flight.on_end()
    assert [client.body for client in clients] == [bytes(LIMIT) + b"xy"] * 2


def test_memory_that_cannot_be_had_is_as_good_as_the_bound() -> None:
    world = World(free_bytes=10)
    world.begin()
    client = world.client()
    world.data(b"12345678")
    assert world.flight.joinable
    world.data(b"9abc")
    assert not world.flight.joinable
    assert client.body == b"123456789abc"
    assert world.room.held == 0
    world.loop.close()


def test_the_backend_is_paused_when_all_members_are_while_pieces_are_kept(world: World) -> None:
    world.begin()
    first, second = world.client(), world.client()
    first.member.pause()
    first.member.pause()
    assert not world.feed.paused
    world.data(b"a")
    second.member.pause()
    assert world.feed.paused
    third = world.client()  # who joins wants to go on
    assert third.got == [b"a"]
    assert not world.feed.paused
    third.member.abort()
    assert world.feed.paused
    first.member.resume()
    assert first.got == [b"a"]
    assert not world.feed.paused


def test_one_paused_member_pauses_the_backend_when_pieces_are_no_longer_kept(world: World) -> None:
    world.begin()
    first, second, third = world.client(), world.client(), world.client(attach=False)
    first.member.pause()
    world.data(bytes(LIMIT), b"x")
    assert world.feed.paused
    first.member.resume()
    assert first.body == second.body == bytes(LIMIT) + b"x"
    assert world.feed.paused, "one has not begun to take anything"
    third.member.attach(third)
    assert third.body == first.body
    assert not world.feed.paused
    second.member.pause()
    assert world.feed.paused
    second.member.abort()
    assert not world.feed.paused
    assert world.room.held == 0


def test_a_member_that_leaves_before_it_took_anything_holds_nobody_up(world: World) -> None:
    world.begin()
    client, idle = world.client(), world.client(attach=False)
    world.data(bytes(LIMIT), b"x")
    assert world.feed.paused
    idle.member.abort()
    assert not world.feed.paused
    world.data(b"y")
    assert client.body == bytes(LIMIT) + b"xy"
    assert world.room.held == 0


def test_a_member_that_goes_on_within_a_piece_gets_the_next_behind_it(world: World) -> None:
    world.begin()
    client = world.client(attach=False)
    world.data(b"a", b"b")

    def falter(me: Client) -> None:
        me.member.pause()
        me.member.resume()

    client.during = falter
    client.member.attach(client)
    assert client.got == [b"a", b"b"]


def test_a_member_that_pauses_within_a_piece_gets_the_next_after_it_resumed(world: World) -> None:
    world.begin()
    client = world.client(attach=False)
    world.data(b"a", b"b", b"c")
    client.during = lambda me: me.member.pause()
    client.member.attach(client)
    assert client.got == [b"a"]
    client.member.resume()
    assert client.got == [b"a", b"b"]
    client.during = None
    client.member.resume()
    assert client.got == [b"a", b"b", b"c"]


def test_members_that_are_behind_when_it_is_closed_keep_what_they_need_and_no_more(world: World) -> None:
    world.begin()
    quick, slow = world.client(), world.client()
    world.data(b"a" * 300)
    slow.member.pause()
    world.data(b"b" * 100)
    world.flight.on_end()
    world.flight.close()
    assert quick.ended == [None]
    assert world.room.held == 100
    slow.member.resume()
    assert slow.body == b"a" * 300 + b"b" * 100
    assert slow.ended == [None]
    assert world.room.held == 0


def test_a_source_that_pushes_within_resume_is_carried_in_order(world: World) -> None:
    pieces = [bytes([i]) * 300 for i in range(20)]  # far over the bound: one paused member pauses the source
    member = world.flight.join()
    other = world.flight.join()
    world.flight.begin(Head(200, [], "x/y", None), _Pusher(pieces))
    clients = [Client(member), Client(other)]
    clients[0].during = lambda me: me.member.pause()
    for client in clients:
        client.member.attach(client)
    while not clients[0].ended:
        assert len(clients[1].got) <= len(clients[0].got) + 5
        clients[0].member.resume()
    assert [client.got for client in clients] == [pieces, pieces]


class _Pusher(Gathered):
    """A source of pieces, as an upstream call has them: it pushes within attach and resume."""

    def attach(self, sink: UpstreamSink) -> None:  # type: ignore[override]
        super().attach(sink)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("data"), st.integers(1, 400)),
        st.tuples(st.just("join"), st.booleans()),
        st.tuples(st.sampled_from(["attach", "pause", "resume", "leave"]), st.integers(0, 7)),
        st.tuples(
            st.sampled_from(["pause itself", "falter", "leave itself", "pause another", "drop another"]),
            st.integers(0, 7),
        ),
    ),
    max_size=60,
)
endings = st.sampled_from(["end", "fault", "close", "abandon"])


@given(steps, endings, st.sampled_from([0, 1, 300, 1000, 1 << 20]), st.sampled_from([0, 500, 1 << 60]))
def test_every_member_that_stays_gets_exactly_the_body(
    todo: list[tuple[str, int]], ending: str, limit_bytes: int, free_bytes: int
) -> None:
    world = World(limit_bytes, free_bytes)
    flight, feed = world.flight, world.feed
    clients: list[Client] = []
    attached: list[Client] = []
    body: list[bytes] = []
    world.begin()

    def habit(kind: str) -> Callable[[Client], None]:
        def pause_itself(me: Client) -> None:
            me.member.pause()

        def leave_itself(me: Client) -> None:
            me.member.abort()

        def pause_another(me: Client) -> None:
            clients[(clients.index(me) + 1) % len(clients)].member.pause()

        def drop_another(me: Client) -> None:
            clients[(clients.index(me) + 1) % len(clients)].member.abort()

        def falter(me: Client) -> None:
            me.member.pause()
            me.member.resume()

        return {
            "pause itself": pause_itself,
            "falter": falter,
            "leave itself": leave_itself,
            "pause another": pause_another,
            "drop another": drop_another,
        }[kind]

    def check() -> None:
        present = [client for client in clients if not client.member.gone]
        for client in clients:
            assert b"".join(body).startswith(client.body)
        if present and flight.pieces is not None:
            assert feed.paused is all(client.member.paused for client in present)
        elif present:
            behind = [one for one in present if one.member.paused or one not in attached]
            assert feed.paused is bool(behind)
            assert flight.joinable is False
        for client in present:
            if client in attached and not client.member.paused:
                assert client.got == body
        assert world.room.held <= min(max(limit_bytes, 0) + (64 << 10), free_bytes)

    def attach(client: Client) -> None:
        if client not in attached and not client.member.gone:
            attached.append(client)
            client.member.attach(client)

    for word, number in todo:
        client = clients[number % len(clients)] if clients else None
        if word == "data" and (flight.pieces is not None or not feed.paused):
            piece = hashlib.sha256(str(len(body)).encode()).digest() * 13
            body.append(piece[:number])
            flight.on_data(body[-1])
        elif word == "join" and flight.joinable:
            clients.append(Client(flight.join()))
            if number:
                attach(clients[-1])
        elif client is None:
            continue
        elif word == "attach":
            attach(client)
        elif word == "pause":
            client.member.pause()
        elif word == "resume":
            client.member.resume()
        elif word == "leave":
            client.member.abort()
        elif word not in ("data", "join"):
            client.during = habit(word)
        check()

    fault: Kind | None = None
    if ending == "end":
        flight.on_end()
    elif ending == "fault":
        flight.on_fault(UpstreamFault(FaultKind.CLOSED))
        fault = Kind.UPSTREAM_BROKEN
    elif ending == "close":
        fault = Kind.FLIGHT_LOST
    if ending == "abandon":
        flight.leave_leader()
        for client in clients:
            client.member.abort()
        assert not flight.wanted
    flight.close()
    for client in clients:
        client.during = None
        attach(client)
        client.member.resume()
    for client in clients:
        if client.ended:
            assert client.got == body
            assert [end and end.kind for end in client.ended] == [fault]
        else:
            assert client.member.gone
    assert world.room.held == 0
    assert not flight.joinable
    world.loop.close()
