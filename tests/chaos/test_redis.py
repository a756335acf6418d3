"""Redis stopped, paused, full, slow and replaced under load: no request notices but for its time."""

import pytest

from ..support.outage import scene

COUNT = 400
CLIENTS = 4
L1 = {"size": 0}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stopped", "paused", "slow", "full", "cut off"])
async def test_an_outage_of_redis_costs_no_request(how: str, capsys: pytest.CaptureFixture[str]) -> None:
    with scene(workers=2, l1=L1, off=True, relayed=how in ("slow", "cut off")) as set_up:
        redis, line = set_up.redis, set_up.line

        def late(delay_s: float) -> None:
            line.delay_s = delay_s

        begin, end = {
            "stopped": (redis.stop, redis.start),
            "paused": (redis.pause, redis.resume),
            "slow": (lambda: late(0.03), lambda: late(0.0)),
            "full": (lambda: redis.configure(maxmemory="1mb"), lambda: redis.configure(maxmemory="0")),
            "cut off": (lambda: (redis.pause(), line.cut()), redis.resume),
        }[how]
        async with set_up.traffic(CLIENTS) as pulse:
            await pulse.outage(begin, end, count=COUNT, said="l2_full" if how == "full" else "l2_down")
        with capsys.disabled():
            print(f"\nRedis {how}: {dict(set_up.controllers())}\n{pulse.table()}")
