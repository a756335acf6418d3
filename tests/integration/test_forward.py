"""The admin paths on the API port: what a worker makes of the controller's answers, and how it counts them."""

import httpx

from ..support.gateway import gateway, one_model
from ..support.procs import wait_until

DEAD = "http://127.0.0.1:9"
KEY = {"authorization": "Bearer s3cret"}


def test_the_api_port_answers_and_counts_admin_requests_as_the_admin_port_does() -> None:
    config = {**one_model(DEAD), "admin": {"key_env": "TEST_ADMIN_KEY", "on_api_port": True}}
    with (
        gateway(config, env={"TEST_ADMIN_KEY": "s3cret"}, ready=None) as gate,
        httpx.Client(trust_env=False) as client,
    ):
        gate.wait_up()
        wait_until(
            lambda: client.get(f"{gate.url}/metrics", headers=KEY).status_code == 200, what="the controller"
        )
        expected = {
            (method, number): client.request(method, f"{gate.admin_url}/metrics", headers=headers).status_code
            for method in ("GET", "HEAD", "POST")
            for number, headers in enumerate(({}, KEY))
        }
        assert set(expected.values()) == {200, 401, 405}
        for (method, number), status in expected.items():
            headers = {**(KEY if number else {}), "x-request-id": f"mine-{method}"}
            answer = client.request(method, f"{gate.url}/metrics", headers=headers)
            assert answer.status_code == status
            assert answer.headers["x-request-id"] == f"mine-{method}"
            assert bool(answer.content) is (method != "HEAD")
        assert client.get(f"{gate.url}/metrics", headers=KEY).headers["x-request-id"]
        page = client.get(f"{gate.url}/metrics", headers=KEY).text
        counted = [line for line in page.splitlines() if line.startswith("penstock_requests_total")]
        assert any('status="401"' in line and line.endswith(" 3.0") for line in counted), counted
        assert any('status="405"' in line and line.endswith(" 1.0") for line in counted), counted
