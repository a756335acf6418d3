"""Members of a pool as containers, against a double of the Docker Engine in which simulators run."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest

from penstock.gateway.config import DockerPool
from penstock.workers.pools.providers.base import Order, ProviderFault
from penstock.workers.pools.providers.docker import DockerProvider
from penstock.workers.pools.providers.docker_strays import end_strays
from tests.support.docker_containers import Container, script_image, sim_image
from tests.support.docker_engine import DockerDouble, docker_engine
from tests.support.procs import is_running, wait_until

ORDER = Order("key-1")
SAYS_AND_DIES = script_image(
    sys.executable,
    "-c",
    "print('loading weights'); print('torch.OutOfMemoryError: CUDA'); raise SystemExit(3)",
)
STUBBORN = script_image(
    sys.executable,
    "-uc",
    "import signal, http.server as h\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "class H(h.BaseHTTPRequestHandler):\n"
    "  def do_GET(self): self.send_response(200); self.end_headers()\n"
    "h.HTTPServer(('127.0.0.1', {port}), H).serve_forever()",
)
SILENT = script_image(sys.executable, "-uc", "print('still loading'); import signal; signal.pause()")


@pytest.fixture
def engine() -> Iterator[DockerDouble]:
    with docker_engine() as double:
        double.images["vllm/vllm-openai:v1"] = sim_image()
        yield double


@asynccontextmanager
async def provider_at(
    engine: DockerDouble, *, gateway: str = "here", name: str = "Qwen/Qwen3-8B", **settings: Any
) -> AsyncIterator[DockerProvider]:
    fields: dict[str, Any] = {
        "image": "vllm/vllm-openai:v1",
        "command": ["--model", "{model}", "--port", "{port}"],
        "socket": str(engine.socket),
        "gpus": 0,
        "stop_timeout_s": 5,
        **settings,
    }
    pool = msgspec.convert(fields, DockerPool)
    provider = DockerProvider(engine.folder / gateway, name, pool, health_path="/health", api_key="sesame")
    try:
        yield provider
    finally:
        await provider.close()


async def until(condition: Callable[[], object]) -> None:
    await asyncio.to_thread(wait_until, condition)


async def told(provider: DockerProvider) -> Callable[[], Awaitable[tuple[int, str]]]:
    heard: asyncio.Queue[tuple[int, str]] = asyncio.Queue()
    provider.ended = lambda member, reason: heard.put_nowait((member, reason))
    return heard.get


def _said(container: Container) -> bool:
    return container.log.exists() and container.log.stat().st_size > 0


def only(engine: DockerDouble) -> Container:
    (container,) = engine.containers
    return container


# ---- a member is started and stopped


async def test_a_container_is_made_from_what_is_configured_and_answers_on_the_port_that_the_engine_chose(
    engine: DockerDouble,
):
    async with provider_at(
        engine,
        env={"HF_HOME": "/cache", "A": "b=c"},
        volumes=["/srv/models:/models:ro"],
        shm_size=1 << 30,
        container_port=9000,
        sleep_after_s=60,
        stop_timeout_s=7.5,
    ) as provider:
        running = await provider.ensure_ready(0, ORDER, 30)
        container = only(engine)
        assert running.url == f"http://127.0.0.1:{container.published}"
        async with httpx.AsyncClient(trust_env=False) as http:
            models = (await http.get(f"{running.url}/v1/models")).json()
        assert [model["id"] for model in models["data"]] == ["Qwen/Qwen3-8B"]
        (call,) = [call for call in engine.calls if call.path == "/containers/create"]
        assert call.version == "1.47"
        made = json.loads(call.body)
        assert made["Cmd"] == ["--model", "Qwen/Qwen3-8B", "--port", "9000"]
        assert made["Env"] == ["A=b=c", "HF_HOME=/cache", "VLLM_API_KEY=sesame", "VLLM_SERVER_DEV_MODE=1"]
        assert made["ExposedPorts"] == {"9000/tcp": {}}
        assert made["StopTimeout"] == 8
        assert made["HostConfig"] == {
            "Binds": ["/srv/models:/models:ro"],
            "ShmSize": 1 << 30,
            "IpcMode": "private",
            "PortBindings": {"9000/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]},
            "RestartPolicy": {"Name": "no"},
        }
        assert "sesame" not in json.dumps(made["Labels"])
        assert container.process is not None
        assert container.process.pid in provider.pids(0)
        await provider.ensure_stopped(0, ORDER, 5)
        assert engine.containers == []
        assert container.stops == 1
        assert provider.pids(0) == ()
        assert container.exit_code == 0  # it was asked, not made to


async def test_a_member_that_runs_is_started_by_nothing_and_one_that_is_gone_is_stopped_by_nothing(
    engine: DockerDouble,
):
    async with provider_at(engine) as provider:
        first = await provider.ensure_ready(0, ORDER, 30)
        assert await provider.ensure_ready(0, ORDER, 30) == first
        assert engine.called("POST", "/containers/create") == 1
        await provider.ensure_stopped(0, ORDER, 5)
        await provider.ensure_stopped(0, ORDER, 5)
        assert engine.called("POST", "/stop$") == 1


async def test_two_at_once_make_one_container(engine: DockerDouble):
    engine.fault("GET", "/json$", "hangs", times=2)
    async with provider_at(engine) as one, provider_at(engine) as two:
        both = asyncio.gather(one.ensure_ready(0, ORDER, 30), two.ensure_ready(0, ORDER, 30))
        await until(lambda: engine.called("GET", "/json$") == 2)
        await asyncio.to_thread(engine.mend)  # neither has seen a container
        first, second = await both
        assert first == second
        assert first.url == f"http://127.0.0.1:{only(engine).published}"


async def test_members_and_pools_and_gateways_have_containers_of_their_own(engine: DockerDouble):
    async with (
        provider_at(engine, max=2) as mine,
        provider_at(engine, name="Qwen/Qwen3 8B") as other,
        provider_at(engine, gateway="there") as theirs,
    ):
        await asyncio.gather(
            mine.ensure_ready(0, ORDER, 30),
            mine.ensure_ready(1, ORDER, 30),
            other.ensure_ready(0, ORDER, 30),
            theirs.ensure_ready(0, ORDER, 30),
        )
        assert len({container.name for container in engine.containers}) == 4
        assert set(await mine.status()) == {0, 1}
        assert set(await other.status()) == {0}
        await mine.ensure_stopped(0, ORDER, 5)
        assert set(await mine.status()) == {1}
        assert set(await theirs.status()) == {0}


async def test_one_that_does_not_end_is_made_to_after_the_time_it_was_given(engine: DockerDouble):
    engine.images["vllm/vllm-openai:v1"] = STUBBORN
    async with provider_at(engine) as provider:
        await provider.ensure_ready(0, ORDER, 30)
        container = only(engine)
        await provider.ensure_stopped(0, ORDER, 0.5)
        assert container.exit_code == 128 + signal.SIGKILL
        assert engine.containers == []
        (call,) = [call for call in engine.calls if call.path.endswith("/stop")]
        assert call.query == {"t": "1"}


# ---- GPUs


async def test_a_member_gets_the_gpus_of_its_order_and_the_next_controller_sees_which(engine: DockerDouble):
    engine.gpus = 4
    async with provider_at(engine, gpus=2) as provider:
        running = await provider.ensure_ready(0, Order("k", gpus=(1, 3)), 30)
        assert running.gpus == (1, 3)
        assert only(engine).host["DeviceRequests"] == [
            {"Driver": "nvidia", "Capabilities": [["gpu"]], "DeviceIDs": ["1", "3"]}
        ]
        async with provider_at(engine, gpus=2) as successor:
            assert (await successor.status())[0].gpus == (1, 3)


async def test_without_an_order_for_gpus_it_gets_as_many_as_are_configured(engine: DockerDouble):
    engine.gpus = 4
    async with provider_at(engine, gpus=2) as provider:
        assert (await provider.ensure_ready(0, ORDER, 30)).gpus == ()
        assert only(engine).host["DeviceRequests"] == [
            {"Driver": "nvidia", "Capabilities": [["gpu"]], "Count": 2}
        ]


async def test_gpus_that_the_engine_cannot_give_are_a_reason_and_nothing_is_left(engine: DockerDouble):
    async with provider_at(engine, gpus=1) as provider:
        with pytest.raises(
            ProviderFault, match=r'start penstock-.*: 500: could not select device driver "nvidia"'
        ):
            await provider.ensure_ready(0, ORDER, 30)
        assert engine.containers == []


# ---- images


async def test_an_image_that_is_missing_is_fetched(engine: DockerDouble):
    engine.registry["far/away:latest"] = sim_image()
    async with provider_at(engine, image="far/away") as provider:
        await provider.ensure_ready(0, ORDER, 30)
    assert engine.called("POST", "/images/create") == 1


async def test_an_image_that_nobody_has_is_the_reason(engine: DockerDouble):
    async with provider_at(engine, image="nobody/has:this") as provider:
        with pytest.raises(
            ProviderFault,
            match=r"docker: image nobody/has:this is missing, and fetching it: 404: pull access denied for nobody/has",
        ):
            await provider.ensure_ready(0, ORDER, 30)


async def test_an_error_amid_the_fetching_is_the_reason_though_the_status_was_200(engine: DockerDouble):
    engine.registry["far/away:latest"] = sim_image()
    engine.fault("PULL", "far/away", "status")
    async with provider_at(engine, image="far/away") as provider:
        with pytest.raises(ProviderFault, match=r"image far/away is missing: .*no space left on device"):
            await provider.ensure_ready(0, ORDER, 30)


async def test_fetching_that_takes_too_long_is_told_as_that(engine: DockerDouble):
    engine.fault("POST", "/images/create", "hangs")
    async with provider_at(engine, image="far/away") as provider:
        with pytest.raises(ProviderFault, match=r"docker: image far/away was not ready after 1 s"):
            await provider.ensure_ready(0, ORDER, 1)


# ---- starts that fail


async def test_one_that_dies_at_start_is_told_with_its_status_and_its_last_line_and_nothing_is_left(
    engine: DockerDouble,
):
    engine.images["vllm/vllm-openai:v1"] = SAYS_AND_DIES
    async with provider_at(engine) as provider:
        with pytest.raises(
            ProviderFault, match=r"the container exited with 3: torch.OutOfMemoryError: CUDA$"
        ):
            await provider.ensure_ready(0, ORDER, 30)
        assert engine.containers == []


async def test_one_that_never_answers_is_given_up_and_removed_and_its_last_line_is_told(engine: DockerDouble):
    engine.images["vllm/vllm-openai:v1"] = SILENT
    async with provider_at(engine) as provider:
        starting = asyncio.ensure_future(provider.ensure_ready(0, ORDER, 2))
        await until(lambda: engine.containers and engine.containers[0].process and _said(only(engine)))
        process = only(engine).process
        assert process is not None
        with pytest.raises(
            ProviderFault, match=r"the server in the container was not ready after 2 s: still loading$"
        ):
            await starting
        assert engine.containers == []
        assert not is_running(process.pid)


async def test_a_start_that_is_called_off_leaves_the_container_to_who_comes_next(engine: DockerDouble):
    engine.images["vllm/vllm-openai:v1"] = SILENT
    async with provider_at(engine) as provider:
        starting = asyncio.ensure_future(provider.ensure_ready(0, ORDER, 30))
        await until(lambda: engine.containers and engine.containers[0].running)
        starting.cancel()
        await asyncio.wait([starting])
        assert set(await provider.status()) == {0}
        await provider.ensure_stopped(0, ORDER, 5)
        assert engine.containers == []


async def test_a_start_called_off_while_the_container_is_made_does_not_outrun_the_making(
    engine: DockerDouble,
):
    engine.fault("POST", "/containers/create", "hangs")
    async with provider_at(engine) as provider:
        starting = asyncio.ensure_future(provider.ensure_ready(0, ORDER, 30))
        await until(lambda: engine.called("POST", "/containers/create"))
        starting.cancel()
        assert not (await asyncio.wait([starting], timeout=0.05))[0]
        await asyncio.to_thread(engine.mend)
        await asyncio.wait([starting])
        assert len(engine.containers) == 1  # so a stop that follows finds it
        await provider.ensure_stopped(0, ORDER, 5)
        assert engine.containers == []


async def test_a_container_of_the_same_name_that_is_somebody_elses_is_left_alone(engine: DockerDouble):
    async with provider_at(engine) as provider:
        await provider.ensure_ready(0, ORDER, 30)
        container = only(engine)
        container.config["Labels"] = {}
        with pytest.raises(ProviderFault, match=r"is somebody else's container"):
            await provider.ensure_ready(0, ORDER, 30)
        await provider.ensure_stopped(0, ORDER, 5)
        assert container.running
        assert await provider.status() == {}


# ---- what was there before


async def test_the_next_controller_takes_over_what_runs_and_hears_of_its_end(engine: DockerDouble):
    async with provider_at(engine) as before:
        first = await before.ensure_ready(0, ORDER, 30)
    async with provider_at(engine) as between:
        assert await between.ensure_ready(0, ORDER, 30) == first
    async with provider_at(engine) as after:
        hears = await told(after)
        assert await after.status() == {0: first}
        assert not first.stale
        assert engine.called("POST", "/containers/create") == 1
        engine.kill(only(engine))
        member, reason = await hears()
        assert member == 0
        assert reason.startswith("docker: the container exited with 137: penstock sim: serving")


async def test_what_was_never_started_is_and_what_has_ended_or_is_of_another_configuration_gives_way(
    engine: DockerDouble,
):
    async with provider_at(engine) as provider:
        await provider.ensure_ready(0, ORDER, 30)
        ended = only(engine)
        engine.kill(ended)
        await until(lambda: not ended.running)
        assert await provider.status() == {}
        await provider.ensure_ready(0, ORDER, 30)
        second = only(engine)
        assert second is not ended
    engine.fault("POST", "/start$", "hangs")
    async with provider_at(engine, gateway="dies between making and starting") as killed:
        starting = asyncio.ensure_future(killed.ensure_ready(0, ORDER, 30))
        await until(lambda: engine.called("POST", "/start$") == 3)
        starting.cancel()
        await asyncio.wait([starting])
    async with provider_at(engine, gateway="dies between making and starting") as successor:
        assert await successor.status() == {}
        await successor.ensure_ready(0, ORDER, 30)
        assert len(engine.containers) == 2
    async with provider_at(engine, env={"NEW": "1"}) as changed:
        assert (await changed.status())[0].stale  # it serves until it is idle
        await changed.ensure_ready(0, ORDER, 30)
        assert second not in engine.containers
        assert second.exit_code == 0


# ---- a server that ends


async def test_an_end_is_told_once_with_its_reason_and_a_stop_is_not_an_end(engine: DockerDouble):
    async with provider_at(engine) as provider:
        hears = await told(provider)
        heard: list[tuple[int, str]] = []
        await provider.ensure_ready(0, ORDER, 30)
        await provider.ensure_stopped(0, ORDER, 5)
        provider.ended = lambda member, reason: heard.append((member, reason))
        await provider.ensure_ready(0, ORDER, 30)
        assert heard == []
        hears = await told(provider)
        only(engine).oom = True
        engine.kill(only(engine))
        _, reason = await hears()
        assert reason.startswith("docker: the container was killed for want of memory")


async def test_a_container_that_somebody_removes_has_ended(engine: DockerDouble):
    async with provider_at(engine) as provider:
        hears = await told(provider)
        await provider.ensure_ready(0, ORDER, 30)
        name = only(engine).name
        async with httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(engine.socket)), trust_env=False
        ) as http:
            await http.delete(f"http://docker/containers/{name}", params={"force": "true"})
        assert await hears() == (0, "docker: the container was removed")


async def test_an_engine_that_was_away_is_asked_again_and_what_ended_meanwhile_is_told(engine: DockerDouble):
    async with provider_at(engine) as provider:
        hears = await told(provider)
        running = await provider.ensure_ready(0, ORDER, 30)
        await until(lambda: engine.called("POST", "/wait$") >= 2)
        await asyncio.to_thread(engine.down)
        async with httpx.AsyncClient(trust_env=False) as http:
            assert (await http.get(f"{running.url}/health")).status_code == 200
        with pytest.raises(ProviderFault, match=r"docker: ping: no answer at .*docker.sock"):
            await provider.status()
        container = only(engine)
        engine.kill(container)
        await until(lambda: not container.running)
        await asyncio.to_thread(engine.up)
        member, reason = await hears()
        assert (member, reason.split(":")[1]) == (0, " the container exited with 137")


async def test_an_engine_that_was_away_while_the_server_went_on_is_no_end(engine: DockerDouble):
    async with provider_at(engine) as provider:
        hears = await told(provider)
        await provider.ensure_ready(0, ORDER, 30)
        await until(lambda: engine.called("POST", "/wait$") == 2)
        await asyncio.to_thread(engine.down)
        await asyncio.to_thread(engine.up)
        await until(lambda: engine.called("POST", "/wait$") == 3)
        engine.kill(only(engine), signal.SIGTERM)
        assert (await hears())[1].startswith("docker: the container exited with 0")


# ---- containers that nobody wants


async def test_containers_of_pools_that_are_gone_are_ended_once_their_engine_is_there(engine: DockerDouble):
    async with (
        provider_at(engine, name="kept") as kept,
        provider_at(engine, name="gone") as gone,
        provider_at(engine, name="gone", gateway="there") as theirs,
    ):
        for provider in (kept, gone, theirs):
            await provider.ensure_ready(0, ORDER, 30)
    socket, state = str(engine.socket), engine.folder / "here"
    stray = engine.named("gone")[0]
    await asyncio.to_thread(engine.down)
    ending = asyncio.ensure_future(end_strays(state, {"kept": socket}))
    await until(lambda: ending.done() or not engine.socket.exists())
    await asyncio.to_thread(engine.up)
    await ending
    assert stray not in engine.containers
    assert stray.exit_code == 0  # it was asked
    assert len(engine.named("kept")) == 1
    assert len(engine.named("gone")) == 1  # another gateway's
    await end_strays(state, {"kept": "/another.sock"})  # the pool is now at another engine
    assert engine.named("kept") == []
    calls = len(engine.calls)
    await end_strays(state, {})  # nothing is there any more, so nobody is asked
    assert len(engine.calls) == calls


# ---- engines of every kind


@pytest.mark.parametrize(
    ("api", "spoken"), [((1, 40), "1.40"), ((1, 47), "1.47"), ((1, 99), "1.51")], ids=["old", "known", "new"]
)
async def test_the_api_that_is_spoken_is_the_newest_that_both_know(api: tuple[int, int], spoken: str):
    with docker_engine(api=api) as engine:
        engine.images["vllm/vllm-openai:v1"] = SAYS_AND_DIES
        async with provider_at(engine) as provider:
            # also the log, which older engines give another type, is understood
            with pytest.raises(ProviderFault, match=r"exited with 3: torch.OutOfMemoryError: CUDA$"):
                await provider.ensure_ready(0, ORDER, 30)
        assert {call.version for call in engine.calls if call.path != "/_ping"} == {spoken}


async def test_an_engine_that_was_replaced_is_spoken_to_in_its_own_version(engine: DockerDouble):
    async with provider_at(engine) as provider:
        await provider.status()
        engine.api = (1, 41)
        await provider.status()
        assert [call.version for call in engine.calls if call.path != "/_ping"] == ["1.47", "1.41"]


async def test_an_engine_too_old_for_gpus_is_told_as_that():
    with docker_engine(api=(1, 39)) as engine:
        async with provider_at(engine) as provider:
            with pytest.raises(ProviderFault, match=r"docker: the engine speaks API 1.39; 1.40 is needed"):
                await provider.ensure_ready(0, ORDER, 30)


async def test_no_engine_at_all_is_one_line(engine: DockerDouble):
    await asyncio.to_thread(engine.down)
    async with provider_at(engine) as provider:
        for doing in (
            provider.ensure_ready(0, ORDER, 30),
            provider.ensure_stopped(0, ORDER, 5),
            provider.status(),
        ):
            with pytest.raises(ProviderFault, match=r"^docker: ping: no answer at .*docker.sock: ") as fault:
                await doing
            assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("status", r"look at penstock-.*: 500: the disk is on fire Please call$"),
        ("dies", "no answer at .*docker.sock: "),
        ("half", "no answer at .*docker.sock: "),
        ("html", "the engine's answer is not JSON"),
        ("endless", "an answer of more than 8388608 bytes"),
        ("not_http", "no answer at .*docker.sock: "),
    ],
)
async def test_an_engine_that_does_not_answer_as_it_should_is_one_line(
    engine: DockerDouble, kind: str, words: str
):
    engine.fault("GET", "/containers/penstock", kind, message="the disk is\non fire\x1b Please call", times=0)
    async with provider_at(engine) as provider:
        for doing in (provider.ensure_ready(0, ORDER, 30), provider.ensure_stopped(0, ORDER, 5)):
            with pytest.raises(ProviderFault, match=words) as fault:
                await doing
            assert "\n" not in str(fault.value)
        engine.mend()
        await provider.ensure_ready(0, ORDER, 30)


async def test_an_engine_that_is_slow_is_waited_for_until_the_deadline(engine: DockerDouble):
    engine.fault("POST", "/containers/create", "slow", seconds=0.05)
    async with provider_at(engine) as provider:
        await provider.ensure_ready(0, ORDER, 30)
        engine.fault("GET", "/_ping", "hangs")
        with pytest.raises(ProviderFault, match=r"docker: the engine was not ready after 1 s"):
            await provider.ensure_ready(0, ORDER, 1)


async def test_what_cannot_be_removed_after_a_failed_start_is_removed_as_soon_as_it_can_be(
    engine: DockerDouble,
):
    engine.images["vllm/vllm-openai:v1"] = SAYS_AND_DIES
    engine.fault("DELETE", "/containers/", "status", times=2)
    async with provider_at(engine) as provider:
        with pytest.raises(ProviderFault, match=r"exited with 3"):
            await provider.ensure_ready(0, ORDER, 30)
        assert len(engine.containers) == 1
        await until(lambda: not engine.containers)


async def test_a_stop_that_the_engine_refuses_becomes_a_removal_by_force(engine: DockerDouble):
    engine.fault("POST", "/stop$", "status", status=500, message="cannot stop container: tried to kill")
    async with provider_at(engine) as provider:
        await provider.ensure_ready(0, ORDER, 30)
        await provider.ensure_stopped(0, ORDER, 5)
        assert engine.containers == []


async def test_a_removal_that_the_engine_refuses_is_told_and_works_the_next_time(engine: DockerDouble):
    engine.fault("DELETE", "/containers/", "status", status=500, message="device or resource busy")
    async with provider_at(engine) as provider:
        await provider.ensure_ready(0, ORDER, 30)
        with pytest.raises(ProviderFault, match=r"remove penstock-.*: 500: device or resource busy"):
            await provider.ensure_stopped(0, ORDER, 5)
        await provider.ensure_stopped(0, ORDER, 5)
        assert engine.containers == []


async def test_a_log_that_cannot_be_read_leaves_the_reason_without_its_line(engine: DockerDouble):
    engine.images["vllm/vllm-openai:v1"] = SAYS_AND_DIES
    engine.fault("GET", "/logs$", "status", message="configured logging driver does not support reading")
    async with provider_at(engine) as provider:
        with pytest.raises(ProviderFault, match=r"the container exited with 3$"):
            await provider.ensure_ready(0, ORDER, 30)
