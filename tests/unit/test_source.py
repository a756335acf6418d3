"""A configuration file read again, later and elsewhere, is judged as it was at the start."""

import os

import pytest

from penstock.gateway.config import ConfigError, Layer, Machine
from penstock.workers.source import Source

MODEL = "models:\n  m: {backends: [{url: http://h:1}]}\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "penstock.yaml"
    path.write_text(MODEL)
    return path


def test_a_process_pinned_to_one_core_reads_a_file_that_names_others(file):
    machine = Machine(cores=frozenset({0, 1, 2, 3}), max_descriptors=1_000_000)
    file.write_text(MODEL + "workers: {cores: [2, 3]}\n")
    source = Source(file, machine=machine)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert source.read({}).workers.cores == (2, 3)
    finally:
        os.sched_setaffinity(0, before)


def test_the_command_line_takes_precedence_at_every_reading(file):
    source = Source(file, port=8181, workers=3, log_level="DEBUG")
    for _ in range(2):
        config = source.read({})
        assert (config.listen.port, config.workers.count, config.log.level) == (8181, 3, "DEBUG")
        file.write_text(MODEL + "listen: {port: 80}\nlog: {level: ERROR}\n")


def test_what_the_command_line_says_is_checked_too(file):
    with pytest.raises(ConfigError, match="9090 is the API port too"):
        Source(file, port=9090).read({})


def test_what_the_command_line_replaces_is_not_held_against_the_file(file):
    file.write_text("models:\n  m: {backends: [{url: http://127.0.0.1:8080}]}\n")
    assert Source(file, port=8081).read({}).listen.port == 8081
    with pytest.raises(ConfigError, match="Penstock itself listens"):
        Source(file).read({})


def test_what_no_check_was_ready_for_is_refused_like_anything_that_is_wrong(file, monkeypatch, caplog):
    """A controller that ended over a document would meet it again, and so would the next."""
    monkeypatch.setattr("penstock.workers.source.load", lambda *_, **__: [][1])
    source = Source(file)
    document = Layer(name="redis version 4", text="x")
    with pytest.raises(
        ConfigError, match=r"redis version 4: \$: the check itself failed \(IndexError\); undo"
    ):
        source.compose(source.file(), document, {})
    assert [record.getMessage() for record in caplog.records if record.exc_info] == ["config_check_failed"]
