"""Servers that somebody else starts and stops, told by signed POSTs; the receiver checks and counts."""

import asyncio
import hashlib
import hmac
import itertools
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from penstock.gateway.config import Backend, Model, WebhookPool
from penstock.workers.pools.providers.base import Order, ProviderFault
from penstock.workers.pools.providers.hook import Hook, sign
from penstock.workers.pools.providers.webhook import WebhookProvider
from tests.support.procs import Proc, accepts, console_script, free_port, wait_until
from tests.support.receiver import SECRET, Answer, Receiver, receiver, verify
from tests.support.scripted import certificate

ORDER = Order("m:0:start:token:1", fence=7)


class Fleet:
    """What the receiver starts and stops: simulators, one for each member."""

    def __init__(self, members: int = 1) -> None:
        self.ports = [free_port() for _ in range(members)]
        self.procs: dict[int, Proc] = {}

    def act(self, fields: dict[str, Any]) -> None:
        """As told: so many at least for a start, so many at most for a stop."""
        if fields["action"] == "start":
            for member in range(min(fields["replicas"], len(self.ports))):
                if member not in self.procs:
                    argv = [console_script(), "sim", "--port", str(self.ports[member])]
                    self.procs[member] = Proc(argv, name="sim").start()
        else:
            for member in [member for member in self.procs if member >= fields["replicas"]]:
                self.procs.pop(member).stop()

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.ports]


@contextmanager
def fleet(members: int = 1) -> Iterator[tuple[Fleet, Receiver]]:
    servers = Fleet(members)
    with ExitStack() as stack:
        stack.callback(lambda: [proc.stop() for proc in servers.procs.values()])
        yield servers, stack.enter_context(receiver(servers.act))


@asynccontextmanager
async def provider_for(
    url: str,
    backends: Sequence[Backend | str],
    *,
    found: Callable[[], Sequence[Backend]] | None = None,
    name: str = "m",
    secret: str = SECRET,
    **settings: Any,
) -> AsyncIterator[WebhookProvider]:
    pool = WebhookPool(url=url, secret_env="SECRET", **{"timeout_s": 5.0, **settings})
    servers = tuple(Backend(url=one) if isinstance(one, str) else one for one in backends)
    provider = WebhookProvider(
        name,
        Model(backends=servers, pool=pool),
        found or (lambda: servers),
        health_path="/health",
        environ={"SECRET": secret},
        now_s=time.time,
        every_s=0.02,
    )
    try:
        yield provider
    finally:
        await provider.close()


# ---- the signature


def test_a_signature_is_of_the_time_and_the_body_under_the_secret():
    mac = hmac.new(b"s", b'1700000000.{"a":1}', hashlib.sha256).hexdigest()
    assert sign("s", b'{"a":1}', 1_700_000_000) == f"t=1700000000,v1={mac}"


@pytest.mark.parametrize(
    ("secret", "body", "now_s"),
    [("other", b"{}", 1000), (SECRET, b"{ }", 1000), (SECRET, b"{}", 1301), (SECRET, b"{}", 699)],
    ids=["secret", "body", "old", "future"],
)
def test_what_is_not_genuine_or_not_of_now_is_refused_by_the_verifier_of_the_docs(
    secret: str, body: bytes, now_s: float
):
    header = sign(SECRET, b"{}", 1000)
    assert verify(SECRET, header, b"{}", 1000)
    assert not verify(secret, header, body, now_s)


# ---- start and stop


async def test_a_start_is_told_signed_and_waits_for_the_server_and_a_stop_until_it_is_gone():
    with fleet() as (servers, heard):
        async with provider_for(heard.url, servers.urls) as provider:
            assert await provider.status() == {}
            running = await provider.ensure_ready(0, ORDER, 30)
            assert running.url is None  # the configuration says where it answers
            assert accepts("127.0.0.1", servers.ports[0])
            assert set(await provider.status()) == {0}
            await provider.ensure_stopped(0, Order("m:0:stop:token:2", fence=8), 30)
            assert not accepts("127.0.0.1", servers.ports[0])
            assert await provider.status() == {}
    start, stop = heard.posts
    assert start.genuine
    assert stop.genuine
    assert start.headers["idempotency-key"] == "m:0:start:token:1"
    assert start.headers["content-type"] == "application/json"
    sent_at = start.fields["sent_at"]
    assert f"t={sent_at}," in start.headers["x-penstock-signature"]
    assert start.fields == {
        "pool": "m",
        "model": "m",
        "action": "start",
        "replicas": 1,
        "member": 0,
        "fence": 7,
        "key": "m:0:start:token:1",
        "sent_at": sent_at,
    }
    assert stop.fields | {"sent_at": 0} == {
        "pool": "m",
        "model": "m",
        "action": "stop",
        "replicas": 0,
        "member": 0,
        "fence": 8,
        "key": "m:0:stop:token:2",
        "sent_at": 0,
    }


async def test_a_receiver_that_is_slow_and_fails_twice_and_whose_answer_is_lost_starts_one_server(
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.INFO, "penstock")
    with fleet() as (servers, heard):
        lost = threading.Event()
        heard.answers = [
            Answer(status=503),
            Answer(drop=True),  # it did it, and the connection breaks
            Answer(wait=lost),  # it would have, and says so too late
        ]
        async with provider_for(heard.url, servers.urls, timeout_s=0.5) as provider:
            await provider.ensure_ready(0, ORDER, 30)
            lost.set()
    assert len(heard.posts) == 4
    assert all(post.genuine for post in heard.posts)
    assert {post.headers["idempotency-key"] for post in heard.posts} == {ORDER.key}
    assert [fields["action"] for fields in heard.acted] == ["start"]
    told = [one.getMessage() for one in caplog.records if one.getMessage().startswith("webhook_")]
    assert told[0] == f"webhook_again key={ORDER.key} attempt=2 in_s=0.25: answered 503"
    assert told[-1] == f"webhook_accepted key={ORDER.key} attempts=4"


async def test_two_nodes_that_order_the_same_start_one_server():
    with fleet() as (servers, heard):
        async with provider_for(heard.url, servers.urls) as one, provider_for(heard.url, servers.urls) as two:
            await asyncio.gather(one.ensure_ready(0, ORDER, 30), two.ensure_ready(0, ORDER, 30))
    assert len(heard.posts) == 2
    assert len(heard.acted) == 1


async def test_a_model_of_any_name_has_a_key_that_fits_into_a_header():
    with fleet() as (servers, heard):
        async with provider_for(heard.url, servers.urls, name="通义 千问") as provider:
            await provider.ensure_ready(0, Order("通义 千问:0"), 30)
    assert heard.posts[0].headers["idempotency-key"] == "%E9%80%9A%E4%B9%89%20%E5%8D%83%E9%97%AE:0"
    assert heard.posts[0].fields["key"] == "通义 千问:0"


async def test_members_have_backends_in_their_order_and_replicas_count_them():
    with fleet(2) as (servers, heard):
        async with provider_for(heard.url, servers.urls, max=2) as provider:
            assert provider.ordered
            await provider.ensure_ready(0, ORDER, 30)
            assert set(await provider.status()) == {0}
            await provider.ensure_ready(1, Order("b"), 30)
            assert set(await provider.status()) == {0, 1}
            await provider.ensure_stopped(1, Order("c"), 30)
            assert set(await provider.status()) == {0}
    assert [(p.fields["action"], p.fields["replicas"]) for p in heard.posts] == [
        ("start", 1),
        ("start", 2),
        ("stop", 1),
    ]


async def test_members_behind_fewer_addresses_are_started_and_stopped_by_their_word_alone():
    with fleet(1) as (servers, heard):
        doors = [f"http://127.0.0.1:{free_port()}", *servers.urls]  # of which one is open
        async with provider_for(heard.url, doors, max=3) as provider:
            await provider.ensure_ready(0, ORDER, 30)
            await provider.ensure_ready(2, Order("b"), 30)
            await provider.ensure_stopped(2, Order("c"), 30)  # others still answer there
            assert set(await provider.status()) == {0}


async def test_of_servers_that_are_found_by_name_any_will_do():
    with fleet(2) as (servers, heard):
        found: list[Backend] = []
        named = Backend(url="http://servers.test:8000", discover="dns")
        async with provider_for(heard.url, [named], found=lambda: found) as provider:
            assert await provider.status() == {}
            starting = asyncio.ensure_future(provider.ensure_ready(0, ORDER, 30))
            await asyncio.to_thread(wait_until, lambda: servers.procs)
            found += [Backend(url=url) for url in reversed(servers.urls)]  # the first of which does not run
            await starting
            assert set(await provider.status()) == {0}
            await provider.ensure_stopped(0, Order("b"), 30)
            assert await provider.status() == {}


# ---- what goes wrong


async def test_what_is_refused_is_told_with_the_status_and_the_receivers_words_and_not_repeated():
    with receiver() as heard:
        heard.answers = [Answer(status=409, body=b'{"detail": "fence 7 is\\nolder than 9"}')]
        async with provider_for(heard.url, ["http://127.0.0.1:1"]) as provider:
            with pytest.raises(ProviderFault, match=r"^webhook answered 409: fence 7 is older than 9$"):
                await provider.ensure_stopped(0, ORDER, 30)
    assert len(heard.posts) == 1


async def test_a_wrong_secret_is_refused_by_the_receiver():
    with receiver() as heard:
        async with provider_for(heard.url, ["http://127.0.0.1:1"], secret="another") as provider:
            with pytest.raises(ProviderFault, match=r"^webhook answered 401"):
                await provider.ensure_ready(0, ORDER, 30)
    assert heard.acted == []


async def test_a_redirect_is_not_followed():
    with receiver() as elsewhere, receiver() as heard:
        heard.answers = [Answer(status=307, headers={"location": elsewhere.url})]
        async with provider_for(heard.url, ["http://127.0.0.1:1"]) as provider:
            with pytest.raises(ProviderFault, match=r"webhook answered 307: redirects are not followed"):
                await provider.ensure_ready(0, ORDER, 30)
    assert elsewhere.posts == []


async def test_what_never_succeeds_is_given_up_at_the_deadline_with_the_last_trouble():
    with receiver() as heard:
        heard.answers = [Answer(status=502, body=b"<h1>Bad gateway</h1>") for _ in range(50)]
        hook = Hook(heard.url, SECRET, 5.0, time.time, first_delay_s=7.0)
        with pytest.raises(
            ProviderFault, match=r"webhook: answered 502: <h1>Bad gateway</h1> \(1 attempts\)"
        ):
            await hook.post({}, "k", 7.0)  # the next one would be too late
        await hook.close()
    assert len(heard.posts) == 1


async def test_nobody_at_the_url_is_a_reason():
    hook = Hook(f"http://127.0.0.1:{free_port()}/", SECRET, 5.0, time.time, first_delay_s=60)
    with pytest.raises(ProviderFault, match=r"webhook: All connection attempts failed \(1 attempts\)"):
        await hook.post({}, "k", 30.0)
    await hook.close()


async def test_a_pause_is_as_long_as_the_receiver_asks_for():
    with receiver() as heard:
        later = {"retry-after": "1"}
        heard.answers = [
            Answer(status=429, headers=later),
            Answer(status=503, headers={"retry-after": "99999"}),
        ]
        hook = Hook(heard.url, SECRET, 5.0, time.time, first_delay_s=0.001)
        began = time.monotonic()
        with pytest.raises(ProviderFault, match=r"webhook: answered 503 \(2 attempts\)"):
            await hook.post({}, "k", 30.0)  # which is over before the receiver wants to hear more
        assert time.monotonic() - began >= 1.0
        moment = formatdate(time.time() + 3600, usegmt=True)
        heard.answers = [Answer(status=503, headers={"retry-after": moment})]
        with pytest.raises(ProviderFault, match=r"webhook: answered 503 \(1 attempts\)"):
            await hook.post({}, "k", 30.0)
        heard.answers = [
            Answer(status=503, headers={"retry-after": word}) for word in ("soon", "-1", "Mon, 99")
        ]
        await hook.post({}, "k", 30.0)
        await hook.close()


async def test_each_repetition_is_signed_anew_so_that_a_late_one_is_not_refused_as_old():
    with receiver() as heard:
        heard.answers = [Answer(status=503), Answer(status=503)]
        clock = itertools.count(int(time.time()), 100)
        hook = Hook(heard.url, SECRET, 5.0, lambda: next(clock), first_delay_s=0.001)
        await hook.post({}, "k", 30.0)
        await hook.close()
        assert [post.genuine for post in heard.posts] == [True, True, True]
        first, *_, last = (post.fields["sent_at"] for post in heard.posts)
        assert last - first >= 200


async def test_of_an_answer_no_more_is_read_than_makes_sense():
    with receiver() as heard:
        endless = {"content-length": str(1 << 40)}
        heard.answers = [Answer(headers=endless, body=b"x"), Answer(400, endless, b"y" * 100_000)]
        hook = Hook(heard.url, SECRET, 5.0, time.time)
        await hook.post({}, "k", 30.0)
        with pytest.raises(ProviderFault, match=r"^webhook answered 400: y{199}…$"):
            await hook.post({}, "k", 30.0)
        await hook.close()


async def test_a_server_that_never_answers_is_told_as_that():
    with receiver() as heard:
        async with provider_for(heard.url, [f"http://127.0.0.1:{free_port()}"]) as provider:
            with pytest.raises(ProviderFault, match=r"webhook accepted, but no server was healthy after 1 s"):
                await provider.ensure_ready(0, ORDER, 1)


async def test_a_server_that_goes_on_after_its_stop_is_told_as_that():
    with fleet() as (servers, heard):
        async with provider_for(heard.url, servers.urls) as provider:
            await provider.ensure_ready(0, ORDER, 30)
            servers.act = lambda fields: None  # type: ignore[method-assign]
            with receiver() as deaf:
                async with provider_for(deaf.url, servers.urls) as unheard:
                    with pytest.raises(ProviderFault, match=r"the server still answers after 1 s"):
                        await unheard.ensure_stopped(0, Order("b"), 1)


async def test_a_receiver_is_verified_by_the_systems_authorities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pem = certificate(tmp_path, "127.0.0.1")
    with receiver(tls=(str(pem), str(pem))) as heard:
        stranger = Hook(heard.url, SECRET, 5.0, time.time, first_delay_s=60)
        with pytest.raises(ProviderFault, match=r"webhook: .*certificate verify failed"):
            await stranger.post({}, "k", 30.0)
        await stranger.close()
        assert heard.posts == []
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))  # where OpenSSL looks for them
        known = Hook(heard.url, SECRET, 5.0, time.time)
        await known.post({}, "k", 30.0)
        await known.close()
        assert len(heard.posts) == 1


def test_the_verifier_of_the_docs_is_the_one_that_is_tested():
    page = (Path(__file__).parents[2] / "docs" / "pools.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    told: dict[str, Any] = {}
    exec(compile(code, "docs/pools.md", "exec"), told)
    header = sign(SECRET, b"{}", 1000)
    assert told["verify"](SECRET, header, b"{}", 1299)
    assert not told["verify"](SECRET, header, b"{}", 1301)
    assert not told["verify"](SECRET, header, b"[]", 1000)
    assert not told["verify"]("other", header, b"{}", 1000)
    assert not told["verify"](SECRET, "", b"{}", 1000)
