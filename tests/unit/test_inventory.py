"""What is known of this node's GPUs: by configuration, by NVML, or not at all; and asking NVML never hangs."""

import asyncio
import logging

import pytest

from penstock.gateway.config.pool import Gpu
from penstock.workers.pools.inventory import Inventory
from penstock.workers.pools.nvml import Nvml, Unavailable
from penstock.workers.pools.views import Device
from tests.support.nvml import LOST, NOT_LOADED, FakeGpu, FakeLibrary, pynvml_over

GIB = 1 << 30

FIGURES = {
    "index": 0,
    "name": "NVIDIA H200",
    "uuid": "GPU-5d1e",
    "utilization_percent": 73,
    "memory_used_mb": 35_840,
    "memory_total_mb": 143_360,
    "memory_util_percent": 25,
    "temperature_c": 64,
    "power_draw_w": 412.3,
    "power_limit_w": 700.0,
    "fan_speed_percent": 30,
    "encoder_util_percent": 5,
    "decoder_util_percent": 7,
}


def nvml(*gpus: FakeGpu, init: int = 0, timeout_s: float = 10.0) -> tuple[FakeLibrary, Nvml]:
    library = FakeLibrary(list(gpus), init=init)
    return library, Nvml(lambda: pynvml_over(library), timeout_s=timeout_s, open_timeout_s=timeout_s)


async def test_figures_are_in_the_units_their_names_say():
    _, asked = nvml(FakeGpu(140 * GIB, 35 * GIB))
    assert await asked.stats() == [FIGURES]


@pytest.mark.parametrize(
    ("function", "keys"),
    [
        ("utilization", ["utilization_percent"]),
        ("memory", ["memory_used_mb", "memory_total_mb", "memory_util_percent"]),
        ("temperature", ["temperature_c"]),
        ("power", ["power_draw_w"]),
        ("limit", ["power_limit_w"]),
        ("fan", ["fan_speed_percent"]),
        ("encoder", ["encoder_util_percent"]),
        ("decoder", ["decoder_util_percent"]),
    ],
)
async def test_what_a_gpu_does_not_support_is_0_and_the_rest_is_told(function: str, keys: list[str]):
    _, asked = nvml(FakeGpu(140 * GIB, 35 * GIB, unsupported={function}))
    assert await asked.stats() == [{**FIGURES, **dict.fromkeys(keys, 0)}]


async def test_a_name_that_is_not_told_is_an_empty_one():
    _, asked = nvml(FakeGpu(GIB, unsupported={"name", "uuid"}))
    (told,) = await asked.stats()
    assert (told["name"], told["uuid"]) == ("", "")


async def test_memory_is_told_by_process_where_nvml_does():
    _, asked = nvml(FakeGpu(8 * GIB, 3 * GIB, {41: GIB, 42: 2 * GIB}), FakeGpu(4 * GIB, processes={7: None}))
    first, second = await asked.memory()
    assert (first.index, first.total_bytes, first.used_bytes) == (0, 8 * GIB, 3 * GIB)
    assert first.processes == {41: GIB, 42: 2 * GIB}
    assert second.index == 1
    assert second.processes is None, "a process of which nothing is said makes the sum wrong"


async def test_an_older_driver_tells_no_processes_and_the_rest():
    library, asked = nvml(FakeGpu(8 * GIB, 3 * GIB, {41: GIB}))
    library.absent.add("nvmlDeviceGetComputeRunningProcesses_v3")
    (one,) = await asked.memory()
    assert (one.used_bytes, one.processes) == (3 * GIB, None)


async def test_a_gpu_without_memory_of_its_own_is_none():
    _, asked = nvml(FakeGpu(GIB, unsupported={"memory"}), FakeGpu(2 * GIB))
    assert [one.index for one in await asked.memory()] == [1]


async def test_nvml_is_initialised_once():
    library, asked = nvml(FakeGpu(GIB))
    await asked.memory()
    await asked.stats()
    assert library.calls.count("nvmlInitWithFlags") == 1


async def test_without_a_driver_no_gpu_is_known_and_it_is_said_once(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    _, asked = nvml(init=NOT_LOADED)
    found = Inventory((), asked)
    assert not await found.look()
    assert not await found.look()
    assert found.devices == ()
    assert await found.stats() == []
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "gpus_unknown: memory limits no pool (NVML: Driver Not Loaded)"


async def test_without_nvidia_ml_py_no_gpu_is_known():
    def missing() -> None:
        raise ModuleNotFoundError("No module named 'pynvml'")

    found = Inventory((), Nvml(missing))
    assert not await found.look()
    assert (found.devices, found.total_bytes, await found.stats()) == ((), 0, [])


async def test_a_driver_that_comes_later_is_found_then():
    library, asked = nvml(FakeGpu(GIB), init=NOT_LOADED)
    found = Inventory((), asked)
    assert not await found.look()
    library.init = 0
    assert await found.look()
    assert found.devices == (Device(0, GIB),)


async def test_a_call_that_hangs_costs_its_bound_and_no_second_one_is_made():
    library, asked = nvml(FakeGpu(GIB), timeout_s=0.05)
    library.go_on.clear()
    with pytest.raises(Unavailable, match="did not answer within"):
        await asked.memory()
    with pytest.raises(Unavailable, match="still has not answered"):
        await asked.stats()
    assert library.calls.count("nvmlDeviceGetCount_v2") == 1
    library.go_on.set()
    async with asyncio.timeout(20):
        while True:
            await asyncio.sleep(0.01)
            try:
                assert len(await asked.memory()) == 1
                return
            except Unavailable:
                continue


async def test_the_loop_runs_while_nvml_is_asked():
    library, asked = nvml(FakeGpu(GIB))
    library.go_on.clear()
    asking = asyncio.ensure_future(asked.memory())
    for _ in range(5):
        await asyncio.sleep(0)
    library.go_on.set()  # only a loop that is not blocked comes here
    assert len(await asking) == 1


async def test_what_is_configured_goes_before_what_is_found_and_is_used_by_what_nvml_says():
    _, asked = nvml(FakeGpu(8 * GIB, GIB), FakeGpu(8 * GIB, 2 * GIB))
    found = Inventory((Gpu(memory=6 * GIB), Gpu(memory=4 * GIB)), asked)
    assert found.devices == (Device(0, 6 * GIB), Device(1, 4 * GIB)), "before anything was looked at"
    await found.look()
    assert found.devices == (Device(0, 6 * GIB, GIB), Device(1, 4 * GIB, 2 * GIB))
    assert found.total_bytes == 10 * GIB


async def test_memory_of_other_programs_is_what_is_used_while_no_server_of_ours_is_there():
    library, asked = nvml(FakeGpu(8 * GIB, GIB))
    found = Inventory((), asked)
    await found.look()
    library.gpus[0].used = 7 * GIB
    await found.look(lambda: {0})
    assert found.devices == (Device(0, 8 * GIB, GIB),)
    library.gpus[0].used = 2 * GIB
    await found.look()
    assert found.foreign(0) == 2 * GIB


async def test_a_server_that_comes_while_nvml_is_asked_is_no_other_program():
    _, asked = nvml(FakeGpu(8 * GIB, 7 * GIB))
    found = Inventory((), asked)
    there = iter([set(), {0}])
    await found.look(lambda: next(there))
    assert found.foreign(0) is None


async def test_a_gpu_that_is_lost_leaves_what_was_known(caplog: pytest.LogCaptureFixture):
    library, asked = nvml(FakeGpu(8 * GIB, GIB))
    found = Inventory((), asked)
    await found.look()
    library.gpus[0].lost = True
    assert not await found.look()
    assert found.devices == (Device(0, 8 * GIB, GIB),)
    assert LOST == 15
