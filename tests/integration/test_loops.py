"""Backends whose address leads back to the gateway: a request that comes by a second time is refused, not sent on."""

from typing import Any

import httpx
import yaml

from ..support.dataplane import DataPlane, data_plane, published
from ..support.procs import free_port

_ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def _config(port: int) -> dict[str, Any]:
    return {"models": {"m": {"backends": [{"url": f"http://localhost:{port}"}]}}, "cache": {"mode": "off"}}


def _lead(plane: DataPlane, config: dict[str, Any]) -> None:
    plane.call(lambda: plane.worker.swap(published(yaml.safe_dump(config))))


def _ask(plane: DataPlane, **fields: str) -> httpx.Response:
    url = f"http://127.0.0.1:{plane.port}/v1/chat/completions"
    return httpx.post(url, json=_ASKED, headers=fields, timeout=20, trust_env=False)


def test_a_backend_that_is_the_gateway_itself_is_found_out_at_once() -> None:
    with data_plane(_config(free_port())) as plane:
        _lead(plane, {**_config(plane.port), "upstream": {"dns_ttl_s": 7}})
        assert plane.worker._resolver.ttl_s == 7, "how long a name is good is taken at once"
        answer = _ask(plane)
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "request_loop")
        assert answer.headers["x-should-retry"] == "false"
        plane.wait_settled()
        assert plane.statuses() == {"502": 2}


def test_so_it_is_through_another_gateway() -> None:
    with data_plane(_config(free_port())) as one, data_plane(_config(one.port)) as two:
        _lead(one, _config(two.port))
        answer = _ask(one)
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "request_loop")
        one.wait_settled()
        two.wait_settled()
        assert (one.statuses(), two.statuses()) == ({"502": 2}, {"502": 1})


def test_what_came_through_other_gateways_is_served() -> None:
    with data_plane(_config(free_port())) as plane:
        assert _ask(plane, **{"x-penstock-via": "ab" * 16}).json()["error"]["code"] != "request_loop"
