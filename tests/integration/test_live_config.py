"""Two gateways with two workers each, one real Redis that has the configuration they share, and traffic."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock.cache.redis_client import RedisSettings
from penstock.gateway.config import ConfigError, Layer
from penstock.workers.live import kept
from penstock.workers.live.far import KEPT, MOST_NUMBER, ConfigRedis, Document, Raced
from penstock.workers.live.file import ConfigFile
from penstock.workers.live.source import BadDocument
from penstock.workers.pools import state
from penstock.workers.source import Source
from tests.support.asking import Question, Traffic, ask
from tests.support.gateway import Gateway, gateway
from tests.support.live import KEY, Documents, everywhere, raw, told, version
from tests.support.procs import console_script, run, wait_until
from tests.support.redis import AclUser, RedisServer, redis_server
from tests.support.sim import Simulator, simulator

NEVER_S = 3600


def document(*urls: str) -> dict[str, Any]:
    model = {"backends": [{"url": url} for url in urls], "max_concurrent": 200}
    return {"models": {"m": model, "n": model}, "cache": {"mode": "deterministic"}}


@contextmanager
def store_of(
    now: dict[str, Any], folder: Path, refresh_s: float
) -> Iterator[tuple[RedisServer, Documents, dict[str, Any]]]:
    """A Redis with a first document, and what a node's own file says."""
    with redis_server() as redis:
        own = {"workers": {"count": 2}, "store": {"url": redis.url, "refresh_s": refresh_s}}
        file = folder / "own.yaml"
        documents = Documents(file, folder, now)
        file.write_text(f"store: {{url: '{redis.url}'}}\n")
        documents.change()
        yield redis, documents, own


class Site:
    """The whole of it."""

    def __init__(
        self, redis: RedisServer, documents: Documents, gates: tuple[Gateway, Gateway], sim: Simulator
    ) -> None:
        self.redis = redis
        self.documents = documents
        self.gates = gates
        self.sim = sim

    @property
    def number(self) -> int:
        """The version that counts."""
        return int(self.redis.command("HGET", KEY, "head").split(b"-")[0])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with (
        simulator("--model", "m", "--model", "n") as sim,
        store_of(document(sim.url), folder, NEVER_S) as (redis, documents, own),
    ):
        own["cache"] = {"l2": {"url": redis.url, "deadline_ms": 5000}}
        with gateway(own) as one, gateway(own) as two:
            yield Site(redis, documents, (one, two), sim)


async def test_changes_are_in_force_in_every_worker_of_both_and_no_request_fails(site: Site) -> None:
    url = site.sim.url
    changes: list[dict[str, Any]] = [
        {"models": {"m": {"aliases": ["other-name"]}}},
        {"models": {"m": {"policy": "peak_ewma"}}},
        {"models": {"m": {"backends": [{"url": url, "weight": 3}]}}},
        {"models": {"m": {"max_queue": 77}}},
        {"models": {"third": {"backends": [{"url": url}]}}},
        {"cache": {"mode": "all"}},
        {"cache": {"l1": {"ttl_s": 17}}},
        {"models": {"m": {"version": "2"}}},
        {"health": {"interval_s": 1}},
        {"log": {"level": "DEBUG"}},
    ]
    traffic = Traffic([gate.port for gate in site.gates])
    async with traffic.running():
        for change in changes:
            traffic.begin(str(change))
            await asyncio.to_thread(site.documents.change, **change)
            await asyncio.to_thread(everywhere, site.number, *site.gates)
            await traffic.more(8)
    assert traffic.wrong == []
    for gate in site.gates:
        config = told(gate)["configuration"]
        assert config["cache"]["l1"] == {"size": 32 << 20, "ttl_s": 17.0, "max_entry": 2 << 20, "keep": False}
        assert (config["models"]["m"]["max_queue"], config["health"]["interval_s"]) == (77, 1.0)
        asked = await ask(gate.port, Question("by another name", model="other-name"))
        assert asked.status == 200
        for worker in ("worker-0", "worker-1"):
            while f" DEBUG {worker}[" not in gate.log():
                await ask(gate.port, Question("what is logged at that level alone"))
        assert "config_refused" not in gate.log()


async def test_a_new_version_tag_empties_exactly_that_model_on_both_nodes(site: Site) -> None:
    m, n = (Question("what is kept", model=name) for name in ("m", "n"))

    async def met(question: Question, *gates: Gateway) -> list[str]:
        return [(await ask(gate.port, question)).cache for gate in gates]

    for _ in range(2):
        kept = [await met(one, *site.gates) for one in (m, n)]
    assert all(one.startswith("HIT") for both in kept for one in both)
    # the first to be asked finds nothing, not in its own memory and not in Redis, whichever node that is
    for number, gates in enumerate((site.gates, site.gates[::-1])):
        await asyncio.to_thread(site.documents.change, models={"m": {"version": f"other weights {number}"}})
        await asyncio.to_thread(everywhere, site.number, *site.gates)
        first, second = await met(m, *gates)
        assert first == "MISS"
        assert second != "HIT-L1"
        assert all(one.startswith("HIT") for one in await met(n, *gates))


BAD = [
    "models: [",
    "listen: {port: 1}",
    "# sk-thisisnotoneofours1234\nmodels: {m: {backends: [{url: 'http://h'}]}}",
    "models: {m: {backends: [{url: 'http://h', api_key_env: NOWHERE_SET}]}}",
]


def test_garbage_is_refused_whole_said_and_shown_and_what_was_in_force_stays(site: Site) -> None:
    good = site.number
    for number, text in enumerate(BAD, good + 1):
        before = [gate.metric("penstock_config_refused_total", source="store") for gate in site.gates]
        raw(site.redis, text, number)
        for gate, count in zip(site.gates, before, strict=True):
            wait_until(
                lambda gate=gate, count=count: (
                    gate.metric("penstock_config_refused_total", source="store") == count + 1
                ),
                what=f"the refusal of {text!r}",
            )
            assert gate.metric("penstock_config_refused", source="store") == 1
            assert version(gate) == str(good)
            assert told(gate)["sources"]["store"]["refused"]
    site.redis.command("HSET", KEY, "head", b"\xff")
    site.redis.command("PUBLISH", KEY, "")
    for gate in site.gates:
        wait_until(
            lambda gate=gate: "`head` is no version" in told(gate)["sources"]["store"]["refused"],
            what="the refusal",
        )
    log = site.gates[0].log()
    assert "sk-thisisnot" not in log
    assert "line 1: this looks like a secret; set a variable" in log
    assert "$.listen: not for a document that nodes share; write it in each node's own file" in log
    assert asyncio.run(ask(site.gates[0].port, Question("served still"))).status == 200
    # a push puts it right, as the next version of all there were
    site.documents.change(models={"m": {"max_queue": 5}})
    everywhere(good + len(BAD) + 1, *site.gates)
    for gate in site.gates:
        assert gate.metric("penstock_config_refused", source="store") == 0


def test_a_document_is_pulled_changed_pushed_shown_and_taken_back(
    site: Site, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    site.documents.change(models={"m": {"max_queue": 5}}, health={"fall": 3})
    start = site.number
    capsys.readouterr()
    assert site.documents.verb("pull") == 0
    pulled = capsys.readouterr().out
    assert pulled.startswith(f"# penstock config version {start}\nmodels:\n")
    edited = tmp_path / "edited.yaml"
    edited.write_text(pulled.replace("max_queue: 5", "max_queue: 6"))
    assert site.documents.verb("diff", str(edited)) == 0
    assert "-    max_queue: 5\n+    max_queue: 6\n" in capsys.readouterr().out
    assert site.documents.verb("push", str(edited), "--note", "more room") == 0
    everywhere(start + 1, *site.gates)
    assert told(site.gates[1])["models"]["m"]["max_queue"] == 6

    capsys.readouterr()
    assert site.documents.verb("push", str(edited)) == 2, "made from what does not count any more"
    said = capsys.readouterr().err
    assert f"not pushed: version {start + 1} counts, by " in said
    assert f"this was made from version {start}" in said

    assert site.documents.verb("pull", "--version", str(start)) == 0
    assert capsys.readouterr().out == pulled
    assert site.documents.verb("diff", "--version", str(start)) == 0
    assert "-    max_queue: 6\n+    max_queue: 5\n" in capsys.readouterr().out
    assert site.documents.verb("rollback", str(start)) == 0
    everywhere(start + 2, *site.gates)
    assert told(site.gates[1])["models"]["m"]["max_queue"] == 5
    capsys.readouterr()
    assert site.documents.verb("history") == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[1].startswith(f"{start + 2} *")
    assert f"version {start} again" in rows[1]
    assert "more room" in rows[2]
    for refused, fault in (
        ("models: {}", "document.yaml: $.models: a mapping that must not be empty"),
        ("node: {zone: a}", "document.yaml: $.node: not for a document"),
    ):
        assert site.documents.push(refused) == 2
        assert fault in capsys.readouterr().err
    assert site.documents.verb("rollback", "999999") == 2
    assert "version 999999: no such version is kept" in capsys.readouterr().err
    assert site.number == start + 2


# ---- the Redis alone


def far(redis: RedisServer, **more: str) -> ConfigRedis:
    return ConfigRedis(RedisSettings(redis.url, **more), "penstock", os.urandom)  # type: ignore[arg-type]


def a_version(number: int, text: str = "models: {}") -> Document:
    return Document(number=number, text=text, at=0.0)


def test_of_two_who_write_at_once_one_is_told() -> None:
    user = AclUser(rules="~penstock:config -@all +hget +hstrlen +hgetall +hset +hdel +eval +ping +select")
    with redis_server(user=user) as redis:
        one = far(redis, username=user.name, password=user.password)
        assert (one.once(), one.base()) == (None, (b"", 0, None))
        head = one.put(b"", a_version(1))

        def write(name: str) -> bytes | None:
            try:
                return far(redis, username=user.name, password=user.password).put(head, a_version(2, name))
            except Raced as race:
                assert race.document is not None
                assert race.document.text != name
                return None

        names = [f"writer {number}" for number in range(6)]
        with ThreadPoolExecutor(len(names)) as pool:
            heads = list(pool.map(write, names))
        assert sum(one is not None for one in heads) == 1
        winner = names[next(at for at, head in enumerate(heads) if head is not None)]
        assert one.base() == (next(filter(None, heads)), 2, a_version(2, winner))


def test_a_push_puts_right_whatever_somebody_else_wrote_there_and_passes_on_none_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "models: {m: {backends: [{url: 'http://h'}]}}\n"
    with redis_server() as redis:
        file = tmp_path / "own.yaml"
        file.write_text(f"store: {{url: '{redis.url}'}}\n")
        documents = Documents(file, tmp_path, {})
        raw(redis, text, MOST_NUMBER, bell=False)
        assert documents.push(text + "breaker: {failures: 9}") == 0
        assert redis.command("HGET", KEY, "head").startswith(b"1-")
        forged = json.dumps(
            {"number": 2, "text": text, "at": 1e300, "by": "\x1b[2J\nme" + "x" * 999, "note": "\r"}
        )
        redis.command("HSET", KEY, "head", "2-0123abcd", "doc:2", forged)
        capsys.readouterr()
        assert documents.verb("history") == 0
        assert documents.push(text, "--base", "1") == 2
        said = "".join(capsys.readouterr())
        assert "not pushed: version 2 counts, by  [2J mexxx" in said
        assert all(len(line) < 400 and line.isprintable() for line in said.splitlines())
        redis.command("HSET", KEY, "doc:2", "garbage")
        assert documents.verb("history") == 0
        kept = capsys.readouterr().out
        assert kept.splitlines()[-1].startswith("1  "), "there to be gone back to"
        assert "*" not in kept
        assert documents.verb("rollback", "1") == 0


def test_as_many_versions_as_are_told_are_kept_and_no_more() -> None:
    with redis_server() as redis:
        one, head = far(redis), b""
        for number in range(1, KEPT + 4):
            head = one.put(head, a_version(number, f"text {number}"))
        kept = [document.number for document in one.history()]
        assert kept == list(range(KEPT + 3, 3, -1))
        assert one.version(3) is None
        redis.command("HSET", KEY, f"doc:{KEPT + 3}", "x" * (9 << 20))
        redis.command("CONFIG", "RESETSTAT")
        with pytest.raises(BadDocument, match=f"version {KEPT + 3} is too large"):
            one.once()
        assert int(redis.info("stats")["total_net_output_bytes"]) < 1 << 20, "it was not even fetched"
        assert redis.command("HLEN", KEY) == KEPT + 1
        redis.command("SET", KEY, "x")
        with pytest.raises(BadDocument, match="WRONGTYPE"):
            one.once()
    with pytest.raises(BadDocument, match="Connect"):
        one.once()


async def test_what_was_written_while_messages_could_not_be_heard_is_read_once_they_can_be_again() -> None:
    with redis_server() as redis:
        said = Said()
        following = asyncio.ensure_future(
            ConfigRedis(RedisSettings(redis.url), "penstock", os.urandom, NEVER_S).follow(said)
        )

        async def until(*words: str) -> None:
            await asyncio.to_thread(
                wait_until, lambda: said.words[-len(words) :] == list(words), 20, str(words)
            )

        raw(redis, "first", 1)
        await until("first")
        await asyncio.to_thread(
            wait_until, lambda: redis.command("PUBSUB", "NUMSUB", KEY)[1] == 1, 20, "it listens"
        )
        raw(redis, "second", 2, bell=False)
        redis.command("CLIENT", "KILL", "TYPE", "pubsub")
        await until("second")
        # the numbers do not decide: a failover may have lost a write
        raw(redis, "third", 1)
        await until("third")
        following.cancel()
        await asyncio.wait([following])


def test_a_start_takes_what_counts_else_what_was_in_force_last_else_the_file_if_it_has_models(
    tmp_path: Path,
) -> None:
    good, older, own = (
        f"models: {{{name}: {{backends: [{{url: 'http://h'}}]}}}}\n" for name in ("good", "older", "own")
    )
    file = tmp_path / "own.yaml"
    environ = {"XDG_STATE_HOME": str(tmp_path / "state")}
    with redis_server() as redis:
        file.write_text(f"store: {{url: '{redis.url}'}}\n")
        source = Source(file)
        folder = state.of_gateway(None, environ, file, 8080)

        def starts_with() -> list[str]:
            return list(source.settle(environ)[0].models)

        with pytest.raises(
            ConfigError, match=r"no `models` here, and no document .there is none in the store yet"
        ):
            source.settle(environ)
        raw(redis, "models: {}", 1, bell=False)
        with pytest.raises(
            ConfigError, match=r"penstock:config version 1: \$\.models: a mapping that must not be"
        ):
            source.settle(environ)
        kept.write(folder, Layer(name="the last one", text=older, version="7"))
        assert starts_with() == ["older"]
        raw(redis, good, 2, bell=False)
        assert starts_with() == ["good"]
        redis.stop()
        assert starts_with() == ["older"]
    (folder / "config-document.json").unlink()
    file.write_text(file.read_text() + own)
    assert starts_with() == ["own"]


# ---- a Redis that is away, and the file beside it


def test_what_a_message_did_not_tell_is_noticed_and_a_redis_that_goes_and_comes_costs_nothing(
    tmp_path: Path,
) -> None:
    with (
        simulator("--model", "m", "--model", "n") as sim,
        store_of(document(sim.url), tmp_path, 0.3) as (redis, documents, own),
        gateway(own) as gate,
    ):
        text = documents.write(documents.now).read_text()
        raw(redis, f"{text}health: {{fall: 7}}\n", 2, bell=False)
        everywhere(2, gate)

        redis.kill()
        wait_until(lambda: gate.metric("penstock_config_source_up", source="store") == 0, what="it is missed")
        assert version(gate) == "2"
        gate.write({**gate.config, "node": {"zone": "b"}})
        wait_until(
            lambda: told(gate)["configuration"]["node"]["zone"] == "b", what="the file, without SIGHUP"
        )
        assert told(gate)["configuration"]["health"]["fall"] == 7

        redis.start()
        wait_until(lambda: "config_store_empty version=2 kept" in gate.log(), what="it is empty")
        assert version(gate) == "2"
        redis.kill()

        # a start without it: the document that was in force last counts
        before = gate.worker_pids()
        controller = gate.controller_pid()
        assert controller is not None
        os.kill(controller, 9)
        wait_until(lambda: gate.controller_pid() not in (None, controller), what="another controller")
        wait_until(lambda: gate.is_up(), what="it answers")
        wait_until(lambda: version_or_none(gate) == "2", what="the new controller knows it")
        assert gate.worker_pids() == before
        gate.proc.stop()
        gate.proc.start()
        gate.wait_up()
        wait_until(lambda: version_or_none(gate) == "2", what="a start without Redis")
        assert told(gate)["configuration"]["health"]["fall"] == 7

        redis.start()
        documents.change(health={"fall": 9})
        wait_until(lambda: told(gate)["configuration"]["health"]["fall"] == 9, what="it is back")

        # a broken file holds up no document, and a broken document no file
        good = gate.file.read_text()
        gate.file.write_text(good + "nonsense: 1\n")
        wait_until(
            lambda: gate.metric("penstock_config_refused", source="file") == 1, what="the file's refusal"
        )
        documents_file = documents.push({**documents.now, "health": {"fall": 11}})
        assert documents_file == 0
        wait_until(lambda: told(gate)["configuration"]["health"]["fall"] == 11, what="the document")
        raw(redis, "models: {}", 9)
        wait_until(lambda: gate.metric("penstock_config_refused", source="store") == 1, what="the refusal")
        gate.file.write_text(good.replace("zone: b", "zone: c"))
        wait_until(lambda: told(gate)["configuration"]["node"]["zone"] == "c", what="the file")
        assert gate.metric("penstock_config_refused", source="file") == 0
        assert gate.metric("penstock_config_refused", source="store") == 1


def version_or_none(gate: Gateway) -> str | None:
    try:
        return version(gate)
    except Exception:
        return None


def test_a_start_without_redis_and_without_models_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("store: {url: redis://127.0.0.1:1}\n")
    status, output = run([console_script(), "serve", "-c", str(file)], timeout_s=60)
    assert status == 2
    assert "no `models` here, and no document (redis redis://127.0.0.1:1 penstock:config: " in output
    assert output.count("\n") == 1


class Said:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def found(self, layer: Layer | None) -> None:
        self.words.append(layer.text if layer is not None else "")

    def unchanged(self) -> None:
        """Nothing to remember."""

    def refused(self, why: str) -> None:
        self.words.append(why)

    def lost(self, why: str) -> None:
        self.words.append(why)


async def test_a_file_behind_links_as_kubernetes_has_them_renamed_written_in_pieces_and_removed_is_noticed(
    tmp_path: Path,
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "penstock.yaml").write_text(name)
    (tmp_path / "..data").symlink_to("one")
    file = tmp_path / "penstock.yaml"
    file.symlink_to("..data/penstock.yaml")
    said = Said()
    following = asyncio.ensure_future(ConfigFile(file).follow(said))

    async def until(*words: str) -> None:
        await asyncio.to_thread(wait_until, lambda: said.words == list(words), 20, str(words))

    await until("one")
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").rename(tmp_path / "..data")
    await until("one", "two")
    (tmp_path / "beside").write_text("three")
    (tmp_path / "beside").rename(file)
    await until("one", "two", "three")
    with file.open("w") as pieces:
        pieces.write("four")
    await until("one", "two", "three", "four")
    file.unlink()
    gone = f"{file}: cannot be read: No such file or directory; check the path"
    await until("one", "two", "three", "four", gone)
    following.cancel()
    await asyncio.wait([following])


def test_a_worker_that_is_replaced_has_nothing_that_only_a_new_start_applies() -> None:
    """It would ask a Redis of which this node does not hear what others have flushed there."""
    with simulator(model="m") as sim, redis_server() as one, redis_server() as two:

        def reaching(redis: RedisServer) -> dict[str, Any]:
            return {**document(sim.url), "cache": {"l2": {"url": redis.url, "deadline_ms": 5000}}}

        with gateway(reaching(one)) as gate:
            gate.write(reaching(two))
            wait_until(lambda: "config_needs_start keys=cache.l2.url: stop" in gate.log(), what="it is said")
            (worker,) = gate.worker_pids()
            os.kill(worker, signal.SIGKILL)
            wait_until(lambda: gate.worker_pids() not in ([], [worker]) and gate.is_up(), what="another")
            assert asyncio.run(ask(gate.port, Question("kept where it always was"))).cache == "MISS"
            wait_until(lambda: one.calls("set") + one.calls("eval") + one.calls("evalsha"), what="it is kept")
            assert two.info("clients")["connected_clients"] == 1, "the test itself"
