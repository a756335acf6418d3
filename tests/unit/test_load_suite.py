"""A load's plan, its figures, its SLOs and its report, without a load."""

import json
import os
import subprocess
from collections import Counter
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest

from penstock.loadtests.bench.rig.exposition import Exposition
from penstock.loadtests.suite import k6, plain, report
from penstock.loadtests.suite.counts import Counts, counted
from penstock.loadtests.suite.figures import Figures
from penstock.loadtests.suite.main import loadtest
from penstock.loadtests.suite.run import Order, Result
from penstock.loadtests.suite.scenario import scenarios
from penstock.loadtests.suite.slo import Limits, Line, Ran, judge

LOADTESTS = Path(k6.__file__).resolve().parents[1]


# --- the plan ---


def test_the_full_scenarios_are_those_that_were_agreed():
    full = scenarios()
    assert set(full) == {"baseline", "sustained", "spike", "soak", "cache-on", "cache-off", "ramp"}
    steady, climb = full["baseline"].phases
    assert (steady.seconds, steady.peak, steady.until_failure) == (1800, 1000, False)
    assert climb.until_failure
    assert (full["sustained"].seconds, full["sustained"].peak) == (4 * 3600, 10_000)
    assert full["sustained"].requests == 144_000_000
    assert full["spike"].seconds == 3600
    assert [full["spike"].rate(at) for at in (0, 150, 299, 300, 450)] == [1000, 20_000, 1000, 1000, 20_000]
    soak = full["soak"]
    assert soak.seconds == 24 * 3600
    assert {round(soak.rate(at)) for at in range(0, 86_400, 900)} == {8000, 9600, 6400}
    assert full["cache-on"].phases == full["cache-off"].phases
    assert (full["cache-on"].seconds, full["cache-on"].cache, full["cache-off"].cache) == (3600, True, False)
    rates = [round(rate) for _, rate in full["ramp"].phases[0].points]
    assert list(dict.fromkeys(rates)) == [2000, 10_000, 15_000, 0]
    assert rates[-3:] == [10_000, 10_000, 0]


def test_two_factors_scale_a_scenario_and_nothing_else():
    full, small = scenarios()["spike"], scenarios(rate=0.01, time=0.1)["spike"]
    assert small.seconds == pytest.approx(full.seconds * 0.1)
    assert small.requests == pytest.approx(full.requests * 0.001)
    assert [small.rate(at / 10) for at in (0, 125, 150, 500)] == [
        pytest.approx(full.rate(at) / 100) for at in (0, 125, 150, 500)
    ]


def test_every_scenario_has_a_script_that_asks_for_it():
    scripts = {path.stem for path in (LOADTESTS / "k6").glob("*.js")} - {"suite"}
    assert scripts == set(scenarios())
    for name in scripts:
        assert f'scenario("{name}")' in (LOADTESTS / "k6" / f"{name}.js").read_text()


def options(name, **env):
    argv = [k6.program(), "inspect", *(word for pair in env.items() for word in ("-e", "=".join(pair)))]
    done = subprocess.run(
        [*argv, str(LOADTESTS / "k6" / f"{name}.js")], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_k6_takes_the_full_rates_by_default_with_arrival_rate_executors(tmp_path):
    corpus = tmp_path / "c.jsonl"
    corpus.write_text('{"corpus": 1}\n{"model": "m", "stream": false, "body": "{}"}\n{"draws": [0]}\n')
    status, said = options("sustained", CORPUS=str(corpus))
    assert status == 0, said
    (steady,) = json.loads(said)["scenarios"].values()
    assert (steady["executor"], steady["rate"], steady["duration"]) == (
        "constant-arrival-rate",
        10_000,
        "4h0m0s",
    )
    status, said = options("ramp", CORPUS=str(corpus), RATE="0.1", TIME="0.01")
    (ramp,) = json.loads(said)["scenarios"].values()
    assert ramp["executor"] == "ramping-arrival-rate"
    assert ramp["maxVUs"] <= 500
    assert [stage["target"] for stage in ramp["stages"]] == [1000, 1000, 1500, 1500, 1000, 1000, 0]
    assert {stage["duration"] for stage in ramp["stages"]} == {"3s"}
    thresholds = json.loads(said)["thresholds"]
    assert thresholds["http_req_duration{scenario:ramp}"][0] == "p(95)<5"
    assert thresholds["failed{scenario:ramp}"][0] == "rate<0.001"
    assert thresholds["cache_hits{scenario:ramp}"][0] == "rate>=0.4"


@pytest.mark.parametrize(
    "target",
    [
        "http://10.0.0.1:8080",
        "http://127.0.0.1@evil.example",
        "http://127.0.0.1.evil.example",
        "http://localhost.evil.example:80",
    ],
)
def test_no_generator_leaves_this_machine(target, tmp_path):
    bodies = tmp_path / "bodies"
    bodies.write_text("{}\n")
    status, said = options("baseline", TARGET=target)
    assert status != 0
    assert "a load stays on this machine" in said
    for script in sorted((LOADTESTS / "wrk").glob("*.sh")):
        if script.name == "common.sh":
            continue
        env = {"TARGET": target, "BODIES": str(bodies), "SECONDS_LONG": "1", "PATH": "/usr/bin:/bin"}
        done = subprocess.run(
            ["sh", str(script)], capture_output=True, text=True, env=env, timeout=60, check=False
        )
        assert done.returncode == 2, script
        assert "a load stays on this machine" in done.stderr


@pytest.mark.parametrize("name", ["common.sh", *(f"{name}.sh" for name in plain.PLAIN)])
def test_the_scripts_are_sound_shell(name):
    assert (
        subprocess.run(["sh", "-n", str(LOADTESTS / "wrk" / name)], timeout=60, check=False).returncode == 0
    )


# --- what the gateways counted ---

PAGE = """
penstock_requests_total{model="m",endpoint="/v1/chat/completions",status="200",cache="HIT-L1"} 45
penstock_requests_total{model="m",endpoint="/v1/chat/completions",status="200",cache="MISS"} 50
penstock_requests_total{model="m",endpoint="/v1/chat/completions",status="503",cache="MISS"} 5
penstock_requests_total{model="",endpoint="/ready",status="200",cache=""} 900
penstock_added_latency_seconds_bucket{endpoint="/v1/chat/completions",le="0.001"} 50
penstock_added_latency_seconds_bucket{endpoint="/v1/chat/completions",le="0.002"} 100
penstock_added_latency_seconds_bucket{endpoint="/v1/chat/completions",le="+Inf"} 100
"""


def test_counts_of_gateways_are_added_and_a_balancers_probes_are_none_of_them():
    two = counted([Exposition(PAGE), Exposition(PAGE)])
    assert (two.requests, two.failed, two.hit_rate) == (200, 10, 0.45)
    after = two.since(counted([Exposition(PAGE)]))
    assert (after.requests, after.outcomes["HIT-L1"]) == (100, 45)
    assert two.quantile_ms(0.25) == pytest.approx(0.5)
    assert two.quantile_ms(0.95) == pytest.approx(1.9)
    assert Counts().quantile_ms(0.95) == 0


# --- SLOs ---


def figures(**changed):
    usual = {
        "requests": 1000,
        "failed": 0,
        "seconds": 10.0,
        "measures": "answer, whole",
        "p50_ms": 1.0,
        "p95_ms": 3.0,
        "p99_ms": 4.0,
        "outcomes": {"HIT-L1": 450, "MISS": 550},
        "dropped": 0,
    }
    return Figures(**(usual | changed))


def seen(failed=0, **outcomes):
    outcomes = outcomes or {"HIT_L1": 450, "MISS": 550}
    named = Counter({name.replace("_", "-"): count for name, count in outcomes.items()})
    return Counts(named, Counter({"200": named.total() - failed, "500": failed}))


def missed(told, counts=None, cpu=0.3, cut=0, cache=True, **limits):
    counts = counts or seen()
    ran = Ran(told, counts, counts, cpu, cut, cache)
    return [line.name for line in judge(ran, Limits(**limits)) if not line.met]


def test_a_good_run_meets_every_slo():
    assert missed(figures()) == []


@pytest.mark.parametrize(
    ("told", "counts", "more", "name"),
    [
        ({"p95_ms": 5.0}, None, {}, "p95 (answer, whole)"),
        ({"failed": 1}, None, {}, "failures, by the generator"),
        ({}, seen(failed=1), {}, "failures, by the gateway"),
        ({"dropped": 1}, None, {}, "dropped iterations"),
        ({"status": 1}, None, {}, "the generator's exit status"),
        ({}, None, {"cpu": 0.8}, "the generator's processor"),
        ({"outcomes": {"HIT-L1": 449, "MISS": 551}}, None, {}, "answers, generator/gateway"),
        ({"requests": 0, "outcomes": {}}, seen(), {"cut": None}, "requests"),
    ],
    ids=["p95", "failed", "gateway-failed", "dropped", "status", "cpu", "outcomes", "nothing"],
)
def test_each_slo_can_be_missed_by_itself(told, counts, more, name):
    assert missed(figures(**told), counts, **more) == [name]


def test_hit_rates_below_the_slo_or_apart_are_misses():
    low = {"HIT-L1": 399, "MISS": 601}
    assert missed(figures(outcomes=low), seen(HIT_L1=399, MISS=601)) == [
        "hit rate, by the gateway",
        "hit rate, by the generator",
    ]
    apart = missed(figures(outcomes={"HIT-L1": 452, "MISS": 548}))
    assert apart == ["hit rates apart", "answers, generator/gateway"]


def test_without_the_cache_a_single_hit_is_a_miss_of_the_slo():
    off = {"BYPASS": 1000}
    assert missed(figures(outcomes=off), seen(BYPASS=1000), cache=False) == []
    one = figures(outcomes={"BYPASS": 999, "HIT-L1": 1})
    assert missed(one, seen(BYPASS=999, HIT_L1=1), cache=False) == ["hit rate, by the gateway"]


def test_a_climb_that_is_given_up_may_cut_off_as_many_answers_as_there_are_virtual_users():
    told = figures(outcomes={"HIT-L1": 450, "MISS": 550})
    more = seen(HIT_L1=450, MISS=554)
    assert "answers, generator/gateway" not in missed(told, more, cut=5, apart=1.0)
    assert "answers, generator/gateway" in missed(told, more, cut=3, apart=1.0)
    assert "answers, generator/gateway" in missed(told, seen(HIT_L1=450, MISS=549), cut=5, apart=1.0)


# --- what plain generators say ---

HEY = """
Summary:
  Total:	2.0100 secs
Latency distribution:
  50% in 0.0010 secs
  95%% in 0.0030 secs
  99% in 0.0040 secs

Status code distribution:
  [200]	100 responses
  [503]	4 responses

Error distribution:
  [2]	Post "http://127.0.0.1:1": EOF
"""
AB = """
Time taken for tests:   2.000 seconds
Complete requests:      106
Failed requests:        2
Non-2xx responses:      4

Percentage of the requests served within a certain time (ms)
  50%      1
  95%      3
  99%      4
 100%      9 (longest request)
"""
H2LOAD = """
finished in 2.00s, 53.00 req/s, 1.0MB/s
requests: 106 total, 106 started, 106 done, 100 succeeded, 6 failed, 0 errored, 0 timeout
"""
WRK = '\n@@{"requests":106,"seconds":2.000,"failed":6,"p50_ms":1.0,"p95_ms":3.0,"p99_ms":4.0}\n'


@pytest.mark.parametrize(
    ("name", "said"), [("hey", HEY), ("ab", AB), ("h2load", H2LOAD), ("constant", WRK), ("wrk", WRK)]
)
def test_what_each_plain_generator_says_is_understood(name, said, tmp_path):
    log = tmp_path / "log"
    durations = [1000] * 90 + [3000] * 10 + [4000] * 6
    log.write_text("".join(f"1\t200\t{us}\n" for us in durations))
    found = plain.figures(name, said, log, 0)
    assert (found.requests, found.failed, found.seconds) == (106, 6, pytest.approx(2.0, abs=0.02))
    assert (found.p50_ms, found.p99_ms) == (1, 4)
    assert found.p95_ms in (3, 4)


@pytest.mark.parametrize("name", list(plain.PLAIN))
def test_a_generator_that_says_something_else_is_a_fault(name, tmp_path):
    with pytest.raises(plain.PlainError):
        plain.figures(name, "Segmentation fault", tmp_path / "none", 0)


# --- the report ---


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.paths, self.outside = Counter(), [], []

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.outside += [value for name, value in attrs if name in ("src", "href")]
        self.paths += [
            value for name, value in attrs if tag == "path" and name == "d" and value.count("L") > 1
        ]


def result(lines, **changed):
    usual = {
        "order": Order("spike", 0.1, 0.01),
        "about": "<b>about</b>",
        "tool": "k6",
        "began": datetime(2026, 1, 1, tzinfo=UTC),
        "planned": 1000.0,
        "seconds": 10.0,
        "figures": figures(),
        "lines": lines,
        "counts": {"generator": {"HIT-L1": 450}, "gateway": {"HIT-L1": 450, "MISS": 550}},
        "series": {
            name: [(float(at), float(at % 7)) for at in range(50)]
            for name in ("requests/s", "planned", "p50", "p95", "p99", "hit rate, %", "gateways, cores")
        },
        "corpus": {"prompts": 10},
        "machine": {"cpu": "one"},
    }
    return Result(**(usual | changed))


def test_a_report_is_one_page_with_its_plots_in_it():
    good = judge(Ran(figures(), seen(), seen(), 0.2, 0), Limits())
    text = report.as_html(result(good))
    page = Page()
    page.feed(text)
    assert page.outside == []
    assert "<script" not in text
    assert "@import" not in text
    assert page.tags["svg"] == 4
    assert len(page.paths) == 7  # a line for each series
    assert "every SLO is met" in text
    assert "rate × 0.1, time × 0.01" in text
    assert "&lt;b&gt;about" in text
    for line in good:
        assert line.measured in text


@pytest.mark.parametrize(
    ("names", "dashed"),
    [((), 1), (("p95 (answer, whole)",), 2), (("hit rate, by the gateway", "hit rates apart"), 2)],
)
def test_a_plot_shows_the_bound_of_what_was_judged_and_of_nothing_else(names, dashed):
    series = {name: [(0.0, 1.0), (1.0, 1.0)] for name in ("p95", "hit rate, %", "not answered well, %")}
    page = report.as_html(result([Line(name, "≥ 40 %", "1", True) for name in names], series=series))
    assert page.count(">SLO<") == dashed


def test_a_report_says_what_was_missed():
    bad = judge(Ran(figures(p95_ms=9.0), seen(), seen(), 0.2, 0), Limits())
    one = result(bad)
    assert not one.met
    assert "SLOs are missed" in report.as_html(one)
    assert "MISSED  p95 (answer, whole)" in report.text(one)
    plain_json = json.loads(report.as_json(one))
    assert plain_json["met"] is False
    assert [line["name"] for line in plain_json["slos"] if not line["met"]] == ["p95 (answer, whole)"]
    assert plain_json["scale"] == "rate × 0.1, time × 0.01"


def test_what_cannot_be_asked_for_is_one_line_and_status_2(capsys):
    for argv in (["nothing"], ["spike", "--rate", "0"], ["spike", "--time", "nan"], ["wrk", "--locust", "2"]):
        with pytest.raises(SystemExit) as ended:
            loadtest(argv)
        assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 4


def test_what_came_of_a_load_is_said_though_its_report_cannot_be_written(tmp_path, capsys, monkeypatch):
    done = result(judge(Ran(figures(), seen(), seen(), 0.2, 0), Limits()))
    monkeypatch.setattr("penstock.loadtests.suite.main.run", lambda *_: done)
    monkeypatch.setattr("penstock.loadtests.suite.main._ENDING", ())
    (tmp_path / "report.json").symlink_to("/dev/full")
    assert loadtest(["spike", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert report.text(done) in said.out
    assert said.err == f"penstock loadtest: {tmp_path}: No space left on device\n"


def test_k6_collects_seldom_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("GOMEMLIMIT", raising=False)
    monkeypatch.setenv("GOGC", "50")
    told = k6.environment()
    assert told["GOGC"] == "50"
    assert 0 < int(told["GOMEMLIMIT"]) < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
