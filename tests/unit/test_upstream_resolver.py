"""The name cache, on a loop whose resolver is a list of answers."""

import asyncio
import socket
from typing import Any, cast

import pytest

from penstock.gateway.upstream.dns import Address, Resolver

Answer = list[tuple[int, int, int, str, tuple[Any, ...]]] | Exception


def answer(*names: str) -> Answer:
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (name, 80)) for name in names]


class Rig:
    """A resolver, its clock, and the answers to come. Looking up waits for ``gate``."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.now = 0.0
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.loop = asyncio.get_running_loop()
        self.resolver = Resolver(
            loop=cast(asyncio.AbstractEventLoop, self), clock=lambda: self.now, ttl_s=300
        )

    def create_task(self, coroutine: Any) -> asyncio.Task[Any]:
        return self.loop.create_task(coroutine)

    async def getaddrinfo(self, host: str, port: int, **_: Any) -> Any:
        self.asked += 1
        await self.gate.wait()
        given = self.answers.pop(0)
        if isinstance(given, Exception):
            raise given
        return given

    async def names(self) -> list[str]:
        async with asyncio.timeout(20):
            return [address.sockaddr[0] for address in await self.resolver.resolve("vllm", 80)]


async def test_an_address_is_not_asked_for() -> None:
    rig = Rig()
    assert await rig.resolver.resolve("127.0.0.1", 80) == (Address(socket.AF_INET, ("127.0.0.1", 80)),)
    assert await rig.resolver.resolve("::1", 80) == (Address(socket.AF_INET6, ("::1", 80, 0, 0)),)
    assert rig.asked == 0


async def test_an_answer_is_good_for_its_time() -> None:
    rig = Rig(answer("a", "b", "a"), answer("c"))
    assert await rig.names() == ["a", "b"]
    rig.now = 299.9
    assert await rig.names() == ["a", "b"]
    rig.now = 300.0
    assert await rig.names() == ["c"]
    assert rig.asked == 2


async def test_those_who_ask_at_once_share_one_look_up_and_one_of_them_leaving_does_not_end_it() -> None:
    rig = Rig(answer("a"))
    rig.gate.clear()
    waiting = [asyncio.ensure_future(rig.names()) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    rig.gate.set()
    assert await asyncio.gather(*waiting[1:]) == [["a"]] * 4
    assert waiting[0].cancelled()
    assert rig.asked == 1


async def test_a_failure_is_told_and_not_remembered() -> None:
    rig = Rig(socket.gaierror(socket.EAI_AGAIN, "later"), answer("a"))
    with pytest.raises(socket.gaierror):
        await rig.names()
    assert await rig.names() == ["a"]


async def test_no_address_at_all_is_a_failure() -> None:
    rig = Rig([(socket.AF_UNIX, socket.SOCK_STREAM, 0, "", ("x",))])
    with pytest.raises(socket.gaierror):
        await rig.names()


async def test_while_the_resolver_fails_the_last_good_answer_serves() -> None:
    failure = socket.gaierror(socket.EAI_AGAIN, "later")
    rig = Rig(answer("a"), failure, failure, answer("b"))
    await rig.names()
    rig.now = 400.0
    assert await rig.names() == ["a"]
    assert await rig.names() == ["a"]
    assert rig.asked == 2
    rig.now = 406.0
    assert await rig.names() == ["a"]
    rig.now = 412.0
    assert await rig.names() == ["b"]


async def test_a_name_whose_addresses_do_not_connect_is_asked_for_again_unless_it_just_was() -> None:
    rig = Rig(answer("a"), answer("b"))
    await rig.names()
    rig.now = 1.0
    rig.resolver.forget("vllm", 80)
    assert await rig.names() == ["a"]
    rig.now = 10.0
    rig.resolver.forget("vllm", 80)
    rig.resolver.forget("never-asked", 80)
    assert await rig.names() == ["b"]


async def test_closing_ends_look_ups_in_progress() -> None:
    rig = Rig(answer("a"))
    rig.gate.clear()
    waiting = asyncio.ensure_future(rig.names())
    await asyncio.sleep(0)
    rig.resolver.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
