"""Redis paused, replaced by an empty one, and full, while clients ask two gateways on it."""

from ..support.outage import scene

COUNT = 20


async def test_no_request_notices_what_happens_to_redis_and_each_change_is_one_line() -> None:
    # a far deadline: a machine that is busy with other tests is no outage
    with scene(nodes=2, l1={"size": "32MiB"}, deadline_ms=100) as set_up:
        redis = set_up.redis
        async with set_up.traffic() as pulse:
            await pulse.outage(redis.pause, redis.resume, count=COUNT)
            await pulse.outage(redis.kill, redis.start, count=COUNT)
            await pulse.outage(
                lambda: redis.configure(maxmemory="1mb"),
                lambda: redis.configure(maxmemory="0"),
                count=COUNT,
                said="l2_full",
            )
