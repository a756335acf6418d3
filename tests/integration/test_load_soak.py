"""Every scenario for two minutes behind HAProxy, with k6 and with Locust: what `make soak` asks of a quiet machine."""

import json

import pytest

from ..support.procs import console_script, run
from .test_loadtests import SCALES

#: Rates for k6 and for Locust, and the time: two minutes each. At most 2,000 requests a second: so much carries k6
#: beside the gateways on two cores, and spikes of 1,200. A user of Locust costs far more.
MINUTES = {
    "baseline": (1.0, 0.15, 0.067),  # without its climb, which ends where it ends
    "sustained": (0.1, 0.015, 0.0085),
    "spike": (0.06, 0.015, 0.034),
    "soak": (0.2, 0.03, 0.0014),
    "cache-on": (0.2, 0.03, 0.034),
    "cache-off": (0.2, 0.03, 0.034),
    "ramp": (0.13, 0.0195, 0.058),
}


@pytest.mark.soak
@pytest.mark.parametrize("tool", ["k6", "locust"])
@pytest.mark.parametrize("name", list(MINUTES))
def test_a_scenario_meets_its_slos_behind_haproxy_for_two_minutes(tmp_path, name, tool):
    rate, rate_of_locust, time = MINUTES[name]
    argv = [console_script(), "loadtest", name, "--haproxy", "--out", str(tmp_path)]
    if tool == "locust":
        # streams with a pace are measured there, by a client in Python: its own share of the latency is not judged
        rate = rate_of_locust
        argv += ["--locust", "2", "--p95-ms", "50"]
        time *= 1.4  # it has no climb
    status, said = run([*argv, "--rate", str(rate), "--time", str(time)], timeout_s=400)
    print(said)
    assert status == 0, said
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["figures"]["seconds"] >= 119
    if tool == "k6":
        assert report["figures"]["dropped"] == 0
        assert report["figures"]["more"]["vus_max"] <= 750  # baseline's, for both of its phases


def test_each_scenario_has_its_two_minutes():
    assert set(MINUTES) == set(SCALES)
