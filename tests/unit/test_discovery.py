"""Looking names up again and again: what is believed, and for how long. Against a real name server."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence

import pytest

from penstock.gateway.config import MAX_BACKENDS, Backend, Config, Model, Server
from penstock.gateway.config import Discovery as Settings
from penstock.workers.discovery import HOLD_S, Discovery, Known
from penstock.workers.lookup import Lookup, LookupFailed

from ..support.names import NameServer, name_server
from ..support.scripted import Clock, on_uvloop, until

ONE, TWO = Server(address="127.0.0.1"), Server(address="127.0.0.2")


@pytest.fixture
def names() -> Iterator[NameServer]:
    with name_server() as server:
        yield server


def _config(*names: str, refresh_s: float = 0.02) -> Config:
    backends = tuple(Backend(url=f"http://{name}:1", discover="dns") for name in names)
    return Config(
        models={"m": Model(backends=backends or (Backend(url="http://a:1"),))},
        discovery=Settings(refresh_s=refresh_s),
    )


# ---- what is believed


def test_no_records_are_believed_only_when_there_have_been_none_for_a_while() -> None:
    known = Known()
    assert known.note((ONE,), 0) == (ONE,)
    assert known.note((), 10) == (ONE,)
    assert known.note((), 10 + HOLD_S - 0.1) == (ONE,)
    assert known.note((), 10 + HOLD_S) == ()


def test_records_between_begin_the_wait_anew() -> None:
    known = Known((ONE,))
    known.note((), 0)
    known.note((TWO,), 1)
    assert known.note((), HOLD_S) == (TWO,)


# ---- asking


@on_uvloop
async def test_all_addresses_of_a_name_come_in_a_fixed_order() -> None:
    with name_server() as names:
        names.records = {
            ("vllm.test.", "A"): ["127.0.0.2", "127.0.0.1"],
            ("vllm.test.", "AAAA"): ["fd00::1"],
        }
        found = await Lookup([names.address]).ask("dns vllm.test")
        assert [one.address for one in found] == ["127.0.0.1", "127.0.0.2", "fd00::1"]


async def test_srv_records_lead_to_the_addresses_of_their_targets(names: NameServer) -> None:
    names.records = {
        ("_http._tcp.vllm.test.", "SRV"): [
            "20 5 8002 b.test.",
            "10 7 8001 a.test.",
            "10 7 8009 gone.test.",
            "0 0 0 .",
        ],
        ("a.test.", "A"): ["127.0.0.1", "127.0.0.2"],
        ("b.test.", "A"): ["127.0.0.3"],
    }
    assert await Lookup([names.address]).ask("srv _http._tcp.vllm.test") == (
        Server(address="127.0.0.1", port=8001, weight=7, priority=10),
        Server(address="127.0.0.2", port=8001, weight=7, priority=10),
        Server(address="127.0.0.3", port=8002, weight=5, priority=20),
    )


@pytest.mark.parametrize("kind", ["dns", "srv"])
async def test_a_name_that_is_none_and_one_without_records_have_no_servers(
    names: NameServer, kind: str
) -> None:
    names.records = {("here.test.", "TXT"): ['"x"']}
    lookup = Lookup([names.address])
    assert await lookup.ask(f"{kind} nobody.test") == ()
    assert await lookup.ask(f"{kind} here.test") == ()


@pytest.mark.parametrize("kind", ["dns", "srv"])
async def test_silence_and_failure_are_no_answers(names: NameServer, kind: str) -> None:
    names.silent = True
    with pytest.raises(LookupFailed):
        await Lookup([names.address], timeout_s=0.05).ask(f"{kind} vllm.test")
    names.silent, names.broken = False, True
    with pytest.raises(LookupFailed):
        await Lookup([names.address], timeout_s=0.05).ask(f"{kind} vllm.test")


async def test_a_service_of_which_one_target_cannot_be_looked_up_is_not_halved(names: NameServer) -> None:
    class Half(Lookup):
        async def _addresses(self, host: str) -> list[str]:
            if host == "b.test.":
                raise OSError("unreachable")
            return await super()._addresses(host)

    names.records = {
        ("_http._tcp.vllm.test.", "SRV"): ["0 1 1 a.test.", "0 1 1 b.test."],
        ("a.test.", "A"): ["127.0.0.1"],
    }
    with pytest.raises(LookupFailed, match="unreachable"):
        await Half([names.address]).ask("srv _http._tcp.vllm.test")


async def test_a_service_of_records_without_end_is_cut_where_there_is_no_room(names: NameServer) -> None:
    class Vast(Lookup):
        async def _addresses(self, host: str) -> list[str]:
            return [f"10.0.{n >> 8}.{n & 255}" for n in range(500)]

    names.records = {
        ("_http._tcp.vllm.test.", "SRV"): [f"{200 - n} 1 {8000 + n} a.test." for n in range(200)]
    }
    found = await Vast([names.address]).ask("srv _http._tcp.vllm.test")
    assert len(found) == 2 * MAX_BACKENDS
    assert {one.priority for one in found} == {1, 2}, "the first tiers stay"


# ---- again and again


class Answers(Lookup):
    """Look-ups that say what a test wants."""

    def __init__(self) -> None:
        self.said: dict[str, tuple[Server, ...] | LookupFailed] = {}
        self.asked: list[str] = []

    def __call__(self, _: Sequence[str]) -> Lookup:
        return self

    async def ask(self, name: str) -> tuple[Server, ...]:
        self.asked.append(name)
        said = self.said[name]
        if isinstance(said, LookupFailed):
            raise said
        return said


class Fleet:
    """A discovery under test, and all that it published."""

    def __init__(self, *names: str, found: Mapping[str, tuple[Server, ...]] | None = None) -> None:
        self.config = _config(*names)
        self.clock = Clock()
        self.answers = Answers()
        self.published: list[dict[str, tuple[Server, ...]]] = []
        self.discovery = Discovery(
            lambda: self.config, found or {}, self._publish, self.clock, lookup=self.answers
        )

    async def _publish(self, found: Mapping[str, tuple[Server, ...]]) -> None:
        self.published.append(dict(found))


async def test_a_failed_lookup_keeps_what_was_known_however_long(caplog: pytest.LogCaptureFixture) -> None:
    fleet = Fleet("a", found={"dns a": (ONE,)})
    fleet.answers.said["dns a"] = LookupFailed("nobody there")
    for _ in range(3):
        fleet.clock.now += 3600
        await fleet.discovery.round()
    assert fleet.published == [{"dns a": (ONE,)}] * 3
    assert [one.message for one in caplog.records] == ["lookup_failed name=dns a kept=1: nobody there"]


async def test_one_name_that_fails_keeps_no_other_from_changing() -> None:
    fleet = Fleet("a", "b", found={"dns a": (ONE,), "dns b": (ONE,)})
    fleet.answers.said = {"dns a": LookupFailed("no"), "dns b": (TWO,)}
    await fleet.discovery.round()
    assert fleet.published == [{"dns a": (ONE,), "dns b": (TWO,)}]


async def test_names_are_looked_up_again_and_a_reload_does_not_wait() -> None:
    fleet = Fleet("a")
    fleet.answers.said = {"dns a": (ONE,), "dns b": (TWO,)}
    running = asyncio.create_task(fleet.discovery.run())
    await until(lambda: len(fleet.published) >= 3)
    fleet.config = _config("b", refresh_s=3600)
    fleet.discovery.look_again()
    await until(lambda: {"dns b": (TWO,)} in fleet.published)
    fleet.config = _config("a", refresh_s=3600)
    fleet.discovery.look_again()
    await until(lambda: fleet.published[-1] == {"dns a": (ONE,)})
    running.cancel()


async def test_without_names_nothing_is_asked_until_a_reload_brings_one() -> None:
    fleet = Fleet()
    running = asyncio.create_task(fleet.discovery.run())
    await asyncio.sleep(0)
    fleet.config = _config("a")
    fleet.answers.said = {"dns a": (ONE,)}
    fleet.discovery.look_again()
    await until(lambda: fleet.published != [])
    assert set(fleet.answers.asked) == {"dns a"}
    running.cancel()
