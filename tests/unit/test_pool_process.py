"""The provider of processes, with real ones."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvloop

from penstock.gateway.config import Backend, Config, Model
from penstock.gateway.config.pool import ProcessPool
from penstock.workers.pools.processes import kin, output, ports, record
from penstock.workers.pools.processes.leftover import LeftOver, end_unwanted
from penstock.workers.pools.providers import process
from penstock.workers.pools.providers.base import Order, ProviderFault
from penstock.workers.pools.providers.process import ProcessProvider
from tests.support import tiny_server
from tests.support.gateway import with_environment
from tests.support.procs import is_running, wait_until

SERVER = (sys.executable, tiny_server.__file__, "{port}")
PORTS = ports.Ports(random.SystemRandom().randrange)
Make = Callable[..., ProcessProvider]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Providers on one state folder; what they leave is ended."""
    made: list[ProcessProvider] = []

    def provider(
        *does: str, config: Config | None = None, command: tuple[str, ...] = SERVER, **terms: object
    ):
        pool = ProcessPool(command=(*command, *does), **{"stop_timeout_s": 5.0, **terms})  # type: ignore[arg-type]
        environ = {**os.environ, "THIS_TEST": str(tmp_path)}
        one = ProcessProvider(
            "m", pool, config or Config(models={}), environ=environ, state=tmp_path, ports=PORTS
        )
        made.append(one)
        return one

    yield provider
    for one in made:
        await one.close()
    for pid in _of(tmp_path):
        os.kill(pid, signal.SIGKILL)


def _of(state: Path) -> list[int]:
    """Processes that were started by these providers."""
    return with_environment("THIS_TEST", str(state))


def _the(state: Path, member: int = 0) -> record.Record:
    known = record.read(state, "m", member)
    assert known is not None
    return known


async def _gone(pid: int) -> None:
    await asyncio.to_thread(wait_until, lambda: not is_running(pid))


ORDER = Order("m:0:start:1")


async def test_a_server_is_started_answers_and_is_ended(make: Make, tmp_path: Path) -> None:
    provider = make()
    running = await provider.ensure_ready(0, ORDER, 20)
    pid = _the(tmp_path).pid
    assert running.url == f"http://127.0.0.1:{_the(tmp_path).port}"
    assert await provider.ensure_ready(0, ORDER, 20) == running  # one that runs is started by nothing
    assert _the(tmp_path).pid == pid
    assert await provider.status() == {0: running}
    await provider.ensure_stopped(0, ORDER, 5)
    assert not is_running(pid)
    assert await provider.status() == {}
    await provider.ensure_stopped(0, ORDER, 5)  # one that is gone is stopped by nothing


async def test_what_a_server_inherits_is_the_environment_without_the_secrets_and_all_cores(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OTHERS_KEY", "OWN_KEY", "ORDINARY"):
        monkeypatch.setenv(name, name.lower())
    config = Config(models={"other": Model(backends=(Backend(url="http://x", api_key_env="OTHERS_KEY"),))})
    told = tmp_path / "told"
    provider = make(
        "--tell",
        str(told),
        config=config,
        env={"MINE": "yes", "ORDINARY": "changed"},
        api_key_env="OWN_KEY",
        sleep_after_s=5.0,
    )
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        await provider.ensure_ready(0, Order("k", gpus=(2, 5)), 20)
    finally:
        os.sched_setaffinity(0, before)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    saw = json.loads(told.read_text())
    environ = saw["environ"]
    assert "OTHERS_KEY" not in environ
    assert (environ["OWN_KEY"], environ["VLLM_API_KEY"]) == ("own_key", "own_key")
    assert (environ["MINE"], environ["ORDINARY"]) == ("yes", "changed")
    assert environ["CUDA_VISIBLE_DEVICES"] == "2,5"
    assert environ["VLLM_SERVER_DEV_MODE"] == "1"
    assert set(saw["cores"]) == before
    assert saw["ignored"] == []
    assert _the(tmp_path).gpus == (2, 5)


async def test_a_start_that_ends_at_once_says_so_with_the_last_line_and_leaves_nothing(
    make: Make, tmp_path: Path
) -> None:
    provider = make("--exit", "3")
    with pytest.raises(
        ProviderFault, match=r"ended with status 3 before it was ready: no weights were found$"
    ):
        await provider.ensure_ready(0, ORDER, 20)
    assert (_of(tmp_path), list(record.read_all(tmp_path))) == ([], [])


async def test_a_program_that_is_not_there_is_a_start_that_failed(make: Make, tmp_path: Path) -> None:
    provider = make(command=("/no/such/program",))
    with pytest.raises(ProviderFault, match="cannot run /no/such/program: No such file"):
        await provider.ensure_ready(0, ORDER, 20)
    assert list(record.read_all(tmp_path)) == []


async def test_a_server_that_never_answers_is_ended_at_the_deadline(make: Make, tmp_path: Path) -> None:
    provider = make("--deaf", "--stubborn", "--child")
    with pytest.raises(ProviderFault, match=r"did not answer /health within 1 s"):
        await provider.ensure_ready(0, ORDER, 1.0)
    assert (_of(tmp_path), list(record.read_all(tmp_path))) == ([], [])


async def test_one_that_ends_because_its_port_was_taken_gets_another(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        mine = taken.getsockname()[1]
        real, asked = ports.Ports.take, []

        def take(self: ports.Ports) -> int:
            asked.append(1)
            return mine if len(asked) == 1 else real(self)

        monkeypatch.setattr(ports.Ports, "take", take)
        provider = make()
        running = await provider.ensure_ready(0, ORDER, 20)
    assert len(asked) == 2
    assert running.url != f"http://127.0.0.1:{mine}"


def test_a_port_that_somebody_has_on_any_address_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert not ports.is_free(taken.getsockname()[1])
    with socket.create_server(("", 0)) as taken:
        mine = taken.getsockname()[1]
        assert not ports.is_free(mine)
        answers = iter([mine, mine, *range(20_000, 20_200)])
        assert ports.Ports(lambda low, high: next(answers)).take() != mine


async def test_no_grandchild_is_left_neither_in_its_own_session_nor_with_another_environment(
    make: Make, tmp_path: Path
) -> None:
    provider = make("--child", "--far-child", "--stubborn")
    await provider.ensure_ready(0, ORDER, 20)
    family = kin.kin_of(_the(tmp_path))
    assert len(family) == 4
    await provider.ensure_stopped(0, ORDER, 0.1)
    assert kin.still(family) == {}


async def test_the_end_of_a_server_is_told_at_once_and_what_it_leaves_is_ended_before_the_next_start(
    make: Make, tmp_path: Path
) -> None:
    provider = make("--child")
    ended: asyncio.Queue[tuple[int, str]] = asyncio.Queue()
    provider.ended = lambda member, reason: ended.put_nowait((member, reason))
    await provider.ensure_ready(0, ORDER, 20)
    family = kin.kin_of(_the(tmp_path))
    os.kill(_the(tmp_path).pid, signal.SIGKILL)
    assert await ended.get() == (0, "the process was ended by SIGKILL")
    running = await provider.ensure_ready(0, ORDER, 20)
    assert kin.still(family) == {}
    assert await provider.status() == {0: running}


async def test_another_provider_takes_over_what_runs_and_sees_its_end(make: Make, tmp_path: Path) -> None:
    first = make()
    running = await first.ensure_ready(0, ORDER, 20)
    await first.close()
    second = make()
    assert await second.status() == {0: running}
    ended: asyncio.Queue[int] = asyncio.Queue()
    second.ended = lambda member, reason: ended.put_nowait(member)
    os.kill(_the(tmp_path).pid, signal.SIGKILL)
    assert await ended.get() == 0


async def test_one_that_was_started_otherwise_is_stale(make: Make) -> None:
    await make().ensure_ready(0, ORDER, 20)
    assert [one.stale for one in (await make().status()).values()] == [False]
    assert [one.stale for one in (await make(env={"A": "b"}).status()).values()] == [True]


async def test_a_start_that_is_cancelled_goes_on_and_is_found_again(make: Make, tmp_path: Path) -> None:
    provider = make("--deaf")
    starting = asyncio.ensure_future(provider.ensure_ready(0, ORDER, 20))
    await asyncio.to_thread(wait_until, lambda: _of(tmp_path) and list(record.read_all(tmp_path)))
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert list(await provider.status()) == [0]
    await provider.ensure_stopped(0, ORDER, 1)
    assert _of(tmp_path) == []


@pytest.mark.parametrize("lie", ["pid", "start", "boot", "mark"])
async def test_a_record_that_is_about_another_process_is_not_believed(
    make: Make, tmp_path: Path, lie: str
) -> None:
    provider = make()
    await provider.ensure_ready(0, ORDER, 20)
    true = _the(tmp_path)
    false = {"pid": os.getpid(), "start": true.start + 1, "boot": "x", "mark": "0" * 32}
    assert kin.is_alive(true)
    told = record.Record(**{**{f: getattr(true, f) for f in true.__struct_fields__}, lie: false[lie]})
    assert not kin.is_alive(told)
    assert os.getpid() not in kin.kin_of(told)


async def test_what_was_told_to_end_is_not_taken_over_but_seen_off(make: Make, tmp_path: Path) -> None:
    first = make("--stubborn", stop_timeout_s=0.2)
    await first.ensure_ready(0, ORDER, 20)
    known = _the(tmp_path)
    stopping = asyncio.ensure_future(first.ensure_stopped(0, ORDER, 60))
    await asyncio.to_thread(wait_until, lambda: _the(tmp_path).ending)
    stopping.cancel()
    second = make(stop_timeout_s=0.2)
    assert await second.status() == {}
    running = await second.ensure_ready(0, ORDER, 20)
    assert not is_running(known.pid)
    assert running.url == f"http://127.0.0.1:{_the(tmp_path).port}"


_KILLED = """
import asyncio, os, random, signal, sys
from pathlib import Path
from penstock.gateway.config import Config
from penstock.gateway.config.pool import ProcessPool
from penstock.workers.pools.processes import child, record
from penstock.workers.pools.processes.ports import Ports
from penstock.workers.pools.providers.base import Order
from penstock.workers.pools.providers.process import ProcessProvider

step, state, server = sys.argv[1], Path(sys.argv[2]), sys.argv[3]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def before(real):
    return lambda *a, **k: die()

def after(real):
    return lambda *a, **k: (real(*a, **k), die())

if step == "forked":  # the process exists, nothing is on record
    child.write = before(child.write)
elif step == "recorded":  # on record, the gate is shut
    child.write = after(child.write)
elif step == "opened":  # told to go
    real = os.write
    os.write = lambda fd, data: (real(fd, data), die() if data == b"g" else None)[0]

async def main():
    pool = ProcessPool(command=(sys.executable, server, "{port}"))
    told = {"environ": dict(os.environ), "state": state, "ports": Ports(random.randrange)}
    provider = ProcessProvider("m", pool, Config(models={}), **told)
    await provider.ensure_ready(0, Order("k"), 20)
    die()

asyncio.run(main())
"""


@pytest.mark.parametrize("step", ["forked", "recorded", "opened", "ready"])
async def test_a_controller_that_is_killed_between_the_steps_leaks_nothing(
    make: Make, tmp_path: Path, step: str
) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", _KILLED, step, str(tmp_path), tiny_server.__file__],
        env={**os.environ, "THIS_TEST": str(tmp_path)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    if step in ("forked", "recorded"):
        await asyncio.to_thread(wait_until, lambda: not _of(tmp_path))
        assert await make().status() == {}
        assert list(record.read_all(tmp_path)) == [] or step == "recorded"
    provider = make()
    running = await provider.ensure_ready(0, ORDER, 20)
    assert [p for p in _of(tmp_path) if p != os.getpid()] == [_the(tmp_path).pid]
    assert running.url == f"http://127.0.0.1:{_the(tmp_path).port}"


async def test_the_supervisor_ends_what_is_left_but_not_what_is_to_be_kept(
    make: Make, tmp_path: Path
) -> None:
    provider = make("--stubborn", "--child", stop_timeout_s=0.1)
    await provider.ensure_ready(0, ORDER, 20)
    await make(keep=True).ensure_ready(1, ORDER, 20)
    gone, kept = _the(tmp_path, 0), _the(tmp_path, 1)
    await provider.close()
    left = LeftOver(tmp_path)
    at = [0.0]

    def step() -> bool:
        at[0] += 0.05
        return not left.end(at[0], at_once=False)

    await asyncio.to_thread(wait_until, step)
    assert kin.kin_of(gone) == {}
    assert kin.is_alive(kept)


async def test_processes_of_models_that_are_not_configured_are_ended(make: Make, tmp_path: Path) -> None:
    await make(keep=True).ensure_ready(0, ORDER, 20)
    await end_unwanted(tmp_path, {"m"})
    assert kin.is_alive(_the(tmp_path))
    await end_unwanted(tmp_path, {"other"})
    assert (_of(tmp_path), list(record.read_all(tmp_path))) == ([], [])


async def test_the_log_keeps_one_older_part_and_is_cut_while_the_server_writes(
    make: Make, tmp_path: Path
) -> None:
    provider = make("--talk", "64")
    await provider.ensure_ready(0, ORDER, 20)
    log = output.path_of(tmp_path, "m", 0)
    assert log.stat().st_size == 64 << 10
    assert not output.cut(log, 64 << 10)
    assert output.cut(log, 32 << 10)
    assert (log.stat().st_size, output.beside(log).stat().st_size) == (0, 64 << 10)
    await provider.ensure_stopped(0, ORDER, 5)
    await provider.ensure_ready(0, ORDER, 20)
    assert (log.stat().st_size, output.beside(log).stat().st_size) == (64 << 10, 0)


def test_it_works_under_uvloop(tmp_path: Path) -> None:
    async def life() -> None:
        pool = ProcessPool(command=SERVER)
        environ = {**os.environ, "THIS_TEST": str(tmp_path)}
        provider = ProcessProvider("m", pool, Config(models={}), environ=environ, state=tmp_path, ports=PORTS)
        ended: asyncio.Queue[str] = asyncio.Queue()
        provider.ended = lambda member, reason: ended.put_nowait(reason)
        await provider.ensure_ready(0, ORDER, 20)
        os.kill(_the(tmp_path).pid, signal.SIGKILL)
        assert await ended.get() == "the process was ended by SIGKILL"
        await provider.ensure_ready(0, ORDER, 20)
        await provider.ensure_stopped(0, ORDER, 5)
        await provider.close()

    uvloop.run(life())
    assert _of(tmp_path) == []


def test_records_that_make_no_sense_are_passed_over(tmp_path: Path) -> None:
    folder = record.folder_in(tmp_path)
    folder.mkdir()
    (folder / "0123456789abcdef-0.json").write_bytes(b"\xff{")
    (folder / "0123456789abcdef-1.json").write_bytes(b"[]")
    (folder / "other").write_bytes(b"")
    (folder / "0123456789abcdef-2.json").mkdir()
    os.mkfifo(folder / "0123456789abcdef-3.json")
    (folder / "0123456789abcdef-4.json").write_bytes(b'{"x":' + b"[" * 60_000)
    known = record.Record(model="m", member=5, pid=7, start=1, boot="b", port=1, mark="a", digest="d")
    lies = [{"member": 6}, {"member": -5}, {"model": "x"}, {"mark": ""}, {"port": 65_536}]
    for lie in [*lies, *({"pid": pid} for pid in (-1, 0, 1 << 31, 1 << 70))]:
        told = {field: getattr(known, field) for field in known.__struct_fields__} | lie
        record.path_of(tmp_path, "m", 5).write_text(json.dumps(told))
        assert list(record.read_all(tmp_path)) == [], lie
    record.write(tmp_path, known)
    assert list(record.read_all(tmp_path)) == [known]


async def test_a_state_folder_that_somebody_removed_is_made_again_and_what_runs_is_on_record_again(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "TEND_S", 0.02)
    provider = make()
    await provider.ensure_ready(0, ORDER, 20)
    known = _the(tmp_path)
    shutil.rmtree(tmp_path)
    await asyncio.to_thread(wait_until, lambda: record.read(tmp_path, "m", 0) == known)
    await provider.ensure_stopped(0, ORDER, 5)
    shutil.rmtree(tmp_path)
    await provider.ensure_ready(0, ORDER, 20)
    assert _the(tmp_path).pid != known.pid
