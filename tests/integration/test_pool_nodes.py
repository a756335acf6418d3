"""Two real gateways on one Redis that share a `webhook` pool; what takes longer than a few seconds is in chaos."""

from concurrent.futures import ThreadPoolExecutor

from ..support.pool_gateway import ask, pool, wait_phase
from ..support.procs import wait_until
from ..support.shared_pool import shared_pool


def test_a_wake_from_both_is_one_start_and_each_serves() -> None:
    with shared_pool(options=("--startup-s", "1")) as shared, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask, shared.gateways * 4))
        assert [answer.status_code for answer in answers] == [200] * 8
        assert len(shared.machines.started) == 1
        for one in shared.gateways:
            wait_phase(one, "ready")
        wait_until(lambda: shared.owner() is not None, what="one of them owns it")
        owner = shared.owner()
        assert owner is not None
        assert shared.other(owner).metric("penstock_pool_fence", model="m") > 0
        assert owner.metric("penstock_pools_lease_store_up") == 1


def test_what_one_has_woken_the_other_uses_without_a_start() -> None:
    with shared_pool() as shared:
        first, second = shared.gateways
        assert ask(first).status_code == 200
        wait_phase(second, "ready")
        assert pool(second)["waiting"] == 0
        assert ask(second).status_code == 200
        assert len(shared.machines.started) == 1


def test_with_redis_away_either_starts_it() -> None:
    with shared_pool() as shared:
        shared.redis.kill()
        assert [ask(one).status_code for one in shared.gateways] == [200, 200]
        assert shared.machines.stopped == []
