"""Loads for seconds: every scenario with real generators before real gateways, counted on both sides.

What is asserted is counts, outcomes and what becomes of an SLO that cannot be met; no latency of this machine.
"""

import json
import os
import shutil
import signal
import subprocess

import pytest

from penstock.loadtests.bench.rig.exposition import Exposition
from penstock.loadtests.suite import k6, plain
from penstock.loadtests.suite.counts import counted
from penstock.loadtests.suite.plain import PLAIN
from penstock.loadtests.suite.questions import Terms, make
from penstock.loadtests.suite.scenario import scenarios

from ..support.gateway import gateway, with_environment
from ..support.procs import Proc, console_script, run, wait_until
from ..support.sim import simulator

#: Of the full scenario, so that each has about a hundred requests a second for two seconds.
SCALES = {
    "baseline": (0.1, 0.0006),
    "sustained": (0.01, 0.0001),
    "spike": (0.02, 0.0004),
    "soak": (0.0125, 0.00002),
    "cache-on": (0.02, 0.0005),
    "cache-off": (0.02, 0.0006),
    "ramp": (0.02, 0.0007),
}
ANY_MS = 60_000  # how fast this machine is, is not the question here


@pytest.fixture(scope="module")
def stand():
    """One gateway for all scenarios of k6; laps begin anew in each, so each has a corpus of its own seed."""
    models = {}
    with simulator(canned=True) as sim:
        for name in ("chat-large", "chat-small"):
            models[name] = {"backends": [{"url": sim.url}], "max_concurrent": 500}
        with gateway({"models": models, "cache": {"mode": "deterministic"}}) as gate:
            yield gate


def test_every_scenario_is_tried_here():
    assert set(SCALES) == set(scenarios())


@pytest.mark.parametrize("name", [name for name in SCALES if name != "cache-off"])
def test_a_scenario_of_k6_hits_as_its_corpus_says_and_counts_as_the_gateway_does(stand, name, tmp_path):
    rate, time = SCALES[name]
    plan = scenarios(rate, time)[name]
    steady = sum(phase.requests for phase in plan.phases if not phase.until_failure)
    corpus, summary = tmp_path / "corpus.jsonl", tmp_path / "summary.json"
    draws = round(steady)
    made = make(Terms(prompts=draws, draws=draws, seed=1 + list(SCALES).index(name)))
    corpus.write_text("\n".join(made.lines()) + "\n")
    env = {"TARGET": stand.url, "CORPUS": str(corpus), "SUMMARY": str(summary), "P95_MS": str(ANY_MS)}
    env |= {"RATE": f"{rate:.6f}", "TIME": f"{time:.6f}"}
    before = counted([Exposition(stand.metrics())])
    done = subprocess.run(
        k6.command(k6.program(), name),
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    told = k6.figures(summary, plan, done.returncode)
    assert told.status == 0, done.stdout + done.stderr
    assert f"scale: rate x {rate:.6f}, time x {time:.6f}" in done.stdout
    wait_until(
        lambda: counted([Exposition(stand.metrics())]).since(before).requests >= told.requests, 10, "counts"
    )
    seen = counted([Exposition(stand.metrics())]).since(before)
    assert told.failed == seen.failed == 0
    assert told.requests >= 0.9 * steady
    cut = told.more["vus_max"] if told.gave_way else 0  # a climb that is given up cuts off what is under way
    assert 0 <= seen.requests - told.requests <= cut
    if not cut:
        assert {key: n for key, n in told.outcomes.items() if n} == {
            k: n for k, n in seen.outcomes.items() if n
        }
    saved = told.outcomes["HIT-L1"] + told.outcomes["COALESCED"]  # a busy machine may make one of the other
    assert (0.2 if name == "baseline" else 0.4) < saved / told.requests < 0.5  # a climb's lap is cut short
    by_threshold = json.loads(summary.read_text())["metrics"]["cache_hits"]["values"]["rate"]
    assert by_threshold == pytest.approx(told.hit_rate, abs=0.001)
    assert told.more["streams"] > 0


def load(tmp_path, name, *args, p95_ms=ANY_MS):
    rate, time = SCALES.get(name, (0.05, 0.02))
    argv = [
        console_script(),
        "loadtest",
        name,
        "--rate",
        str(rate),
        "--time",
        str(time),
        "--p95-ms",
        str(p95_ms),
    ]
    status, said = run([*argv, "--out", str(tmp_path), *args], timeout_s=100)
    report = (
        json.loads((tmp_path / "report.json").read_text()) if (tmp_path / "report.json").exists() else None
    )
    return status, said, report


def met(report):
    """Which SLOs were, by name; but how much of a shared machine was left to the generator is not said here."""
    return {
        line["name"]: line["met"] for line in report["slos"] if line["name"] != "the generator's processor"
    }


def test_a_load_without_the_cache_goes_whole_to_the_servers_and_an_slo_that_is_missed_is_status_1(tmp_path):
    status, said, report = load(tmp_path, "cache-off", p95_ms=0.001)
    assert status == 1, said
    assert [name for name, good in met(report).items() if not good] == ["p95 (answer, whole)"]
    assert report["counts"]["gateway"] == {"BYPASS": report["figures"]["requests"]}
    assert "MISSED  p95" in said
    assert "SLOs are missed" in (tmp_path / "report.html").read_text()


def test_locust_distributed_measures_streams_and_counts_as_the_gateway_does(tmp_path):
    status, said, report = load(tmp_path, "cache-on", "--locust", "2")
    assert report, said
    assert all(met(report).values()), said
    told = report["figures"]
    assert report["tool"] == "Locust, 2 processes"
    assert told["requests"] > 100
    # two workers that asked the same questions would miss every one of them once
    assert told["outcomes"]["MISS"] > 0.5 * told["requests"]
    assert told["more"]["streams"] > 0
    assert told["more"]["ttft_p50_ms"] > 0
    # of the 31 gaps of a stream some are the simulator's 2 ms and none is lost
    assert told["more"]["inter_token_p99_ms"] > 0
    assert status == (0 if all(line["met"] for line in report["slos"]) else 1)


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_a_plain_generator_sends_what_the_gateway_counts(stand, tmp_path, name):
    tool = {"constant": "h2load"}.get(name, name)
    if shutil.which(tool) is None:
        pytest.fail(f"{tool} is not installed: make test-tools")
    bodies, log = tmp_path / "bodies", tmp_path / "log"
    made = make(Terms(prompts=100, draws=100, streams=0, seed=100 + sorted(PLAIN).index(name)))
    bodies.write_text("\n".join(made.questions[number].body for number in made.draws) + "\n")
    env = {"TARGET": stand.url, "BODIES": str(bodies), "LOG": str(log), "SECONDS_LONG": "1"}
    env |= {"CONNECTIONS": "4", "RPS": "200"}
    before = counted([Exposition(stand.metrics())])
    script = plain.SCRIPTS / f"{name}.sh"
    done = subprocess.run(
        ["sh", str(script)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    told = plain.figures(name, done.stdout, log, done.returncode)
    assert done.returncode == 0, done.stderr
    seen = counted([Exposition(stand.metrics())]).since(before)
    assert told.failed == seen.failed == 0
    assert 20 < told.requests <= seen.requests <= told.requests + 8  # what was under way at the end
    if name == "wrk":
        assert seen.outcomes["MISS"] > 0.4 * seen.requests  # the corpus, and other questions in every lap
    if name == "constant" and shutil.which("wrk2") is None:
        assert told.requests <= 220


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_a_load_that_is_given_up_leaves_nothing_behind(tmp_path, name):
    """Ctrl-C, and a terminal that is closed; what is started hears neither."""
    number = signal.Signals[name]
    argv = [console_script(), "loadtest", "baseline", "--rate", "0.01", "--out", str(tmp_path / "out")]
    mark = tmp_path / "files"
    mark.mkdir()

    def started():
        return len(with_environment("TMPDIR", str(mark))) > 1

    with Proc(argv, name="loadtest", ready=started, env={"TMPDIR": str(mark)}) as load:
        load.send(number)
        assert load.wait() == 128 + number
        assert load.log() == f"penstock loadtest: ended by {name}\n"
        assert with_environment("TMPDIR", str(mark)) == []
        assert list(mark.iterdir()) == []
