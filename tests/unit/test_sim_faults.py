"""Which requests a switched-on fault strikes, and what the switch accepts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.loadtests.sim.faults import Faults
from penstock.loadtests.sim.main import parse
from penstock.loadtests.sim.wire import Request


def request(path="/v1/chat/completions", ordinal=1):
    return Request("POST", path, path, "", [], b"", True, ordinal)


def struck(faults, times=10, **fields):
    return [faults.pick(request(**fields)) is not None for _ in range(times)]


def test_a_count_limits_how_often_a_fault_strikes():
    faults = Faults(0)
    faults.replace([{"kind": "reset_before_headers", "count": 3}])
    assert struck(faults) == [True] * 3 + [False] * 7


def test_skip_lets_the_first_requests_pass():
    faults = Faults(0)
    faults.replace([{"kind": "status", "skip": 2, "count": 1}])
    assert struck(faults, 4) == [False, False, True, False]


def test_a_probability_strikes_about_that_share_and_the_same_ones_for_a_seed():
    first, second = Faults(7), Faults(7)
    for faults in (first, second):
        faults.replace([{"kind": "no_terminal", "probability": 0.5}])
    hits = struck(first, 400)
    assert hits == struck(second, 400)
    assert 120 < sum(hits) < 280


def test_a_path_or_a_prefix_narrows_a_fault():
    faults = Faults(0)
    faults.replace([{"kind": "truncated", "path": "/v1/embeddings"}])
    assert faults.pick(request()) is None
    assert faults.pick(request("/v1/embeddings")) is not None
    faults.replace([{"kind": "truncated", "path": "/v1/*"}])
    assert faults.pick(request()) is not None
    assert faults.pick(request("/tokenize")) is None


def test_a_fault_without_a_path_spares_health_probes_and_one_for_everything_does_not():
    faults = Faults(0)
    faults.replace([{"kind": "status"}])
    assert faults.pick(request("/health")) is None
    faults.replace([{"kind": "status", "path": "*"}])
    assert faults.pick(request("/health")) is not None


def test_stale_strikes_only_connections_that_served_before():
    faults = Faults(0)
    faults.replace([{"kind": "stale"}])
    assert faults.pick(request(ordinal=1)) is None
    assert faults.pick(request(ordinal=2)) is not None


def test_a_switch_replaces_what_was_on_and_releases_what_hung():
    faults = Faults(0)
    (hang,) = faults.replace([{"kind": "hang"}])
    faults.replace([{"kind": "slow", "seconds": 1}])
    assert hang.over.is_set()
    assert [f["kind"] for f in faults.describe()] == ["slow"]
    faults.clear()
    assert not faults.active


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ({}, "kind must be one of"),
        ({"kind": "nonsense"}, "kind must be one of"),
        ({"kind": "slow", "seconds": "1"}, "seconds must be a number"),
        ({"kind": "slow", "seconds": 1e9}, "seconds must be a number"),
        ({"kind": "slow", "probability": 2}, "probability must be a number"),
        ({"kind": "slow", "bogus": 1}, "unknown field for slow: bogus"),
        ({"kind": "garbage", "variant": "x"}, "variant must be one of"),
        ({"kind": "status", "statuses": []}, "list of 1 to 64"),
        ({"kind": "status", "path": 5}, "path must be a string"),
        ({"kind": "oversized", "bytes": True}, "bytes must be a number"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence_and_changes_nothing(spec, complaint):
    faults = Faults(0)
    faults.replace([{"kind": "slow"}])
    with pytest.raises(ValueError, match=complaint):
        faults.replace([{"kind": "status"}, spec])
    assert [f["kind"] for f in faults.describe()] == ["slow"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from(["kind", "path", "probability", "count", "skip", "seconds", "after", "how", "bytes"])


@given(
    st.dictionaries(names, json_values | st.sampled_from(["slow", "hang", "status", "oversized"]), max_size=6)
)
def test_any_json_at_all_is_taken_or_refused(spec):
    try:
        Faults(0).replace([spec])
    except ValueError as err:
        assert str(err)


def test_the_command_line_has_a_flag_for_every_setting():
    settings = parse(
        ["--model", "a", "--model", "b", "--port", "1", "--decode-ms", "2.5", "--canned", "--no-any-model"]
    )
    assert settings.models == ("a", "b")
    assert (settings.port, settings.decode_ms, settings.canned, settings.any_model) == (1, 2.5, True, False)


@pytest.mark.parametrize(
    "argv",
    [
        ["--tls-cert", "x"],
        ["--port", "70000"],
        ["--max-seqs", "0"],
        ["--decode-ms", "-1"],
        ["--kv-blocks", "10", "--max-model-len", "1000"],
    ],
)
def test_settings_that_make_no_sense_are_refused(argv, capsys):
    with pytest.raises(SystemExit):
        parse(argv)
    assert "error:" in capsys.readouterr().err
