"""`penstock keys`: a secret is shown once, everything else as often as one likes; what cannot be is one line."""

import datetime
import json
from pathlib import Path

import pytest
import yaml

from penstock.gateway.keys import MAX_KEYS, Key, hashed
from penstock.workers.cli import main
from penstock.workers.keys.text import dump

MODELS = {"m": {"aliases": ["nick"], "backends": [{"url": "http://127.0.0.1:9"}]}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "penstock.yaml"
    path.write_text(yaml.safe_dump({"models": MODELS, "keys": {"file": "keys.yaml"}}))
    return path


def run(capsys: pytest.CaptureFixture[str], file: Path, *words: str) -> tuple[int, str, str]:
    try:
        status = main(["keys", *words, "-c", str(file)])
    except SystemExit as end:
        status = int(str(end.code))
    said = capsys.readouterr()
    return status, said.out, said.err


def test_a_key_is_made_listed_and_revoked(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    assert run(capsys, file, "list") == (0, "no keys\n", "")
    words = ["--models", "m,nick", "--rpm", "60", "--tpm", "1000", "--concurrent", "4", "--burst", "5"]
    words += ["--priority", "-2", "--weight", "2.5", "--expires", "30"]
    status, out, err = run(capsys, file, "create", "--tenant", "acme", *words)
    assert (status, err) == (0, "")
    told = dict(line.split(None, 1) for line in out.splitlines() if line and not line.startswith("The key"))
    secret = told["key"]
    assert secret.startswith("sk-penstock-")
    assert len(secret) == len("sk-penstock-") + 43, "256 bits"
    kept = (file.parent / "keys.yaml").read_text()
    assert secret not in kept
    assert hashed(secret) in kept
    _, out, _ = run(capsys, file, "list")
    head, row = out.splitlines()
    shown = dict(zip(head.split(), row.split(), strict=True))
    assert shown.pop("expires")[:2] == "20"
    assert shown == {
        "id": told["id"],
        "tenant": "acme",
        "models": "m,nick",
        "rpm": "60",
        "tpm": "1000",
        "concurrent": "4",
        "burst": "5",
        "priority": "-2",
        "weight": "2.5",
    }
    _, out, _ = run(capsys, file, "list", "--json")
    assert json.loads(out)[0]["rpm"] == 60
    for text in (head, row, out):
        assert secret not in text
        assert "sha256" not in text
        assert hashed(secret)[7:] not in text
    assert run(capsys, file, "revoke", told["id"]) == (0, f"revoked {told['id']}\n", "")
    assert run(capsys, file, "list") == (0, "no keys\n", "")


def test_two_keys_are_never_the_same(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    made = [json.loads(run(capsys, file, "create", "--tenant", "a", "--json")[1]) for _ in range(3)]
    assert len({one["key"] for one in made} | {one["id"] for one in made}) == 6
    assert {one["expires"] for one in made} == {None}


@pytest.mark.parametrize(("told", "expired"), [("2000-01-01", True), ("2999-01-01", False)])
def test_a_key_that_is_over_is_shown_as_such(
    capsys: pytest.CaptureFixture[str], file: Path, told: str, expired: bool
) -> None:
    when = datetime.datetime.fromisoformat(told).replace(tzinfo=datetime.UTC)
    (file.parent / "keys.yaml").write_text(dump({"k": Key(hash=hashed("k"), tenant="a", expires=when)}))
    assert ("(expired)" in run(capsys, file, "list")[1]) is expired


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["create"], "--tenant"),
        (["create", "--tenant", "a b"], "not 1 to 64 letters"),
        (["create", "--tenant", ""], "not 1 to 64 letters"),
        (["create", "--tenant", "a", "--models", "x"], "there is no model 'x'; there are: m, nick"),
        (["create", "--tenant", "a", "--models", "m,"], "an empty name"),
        (["create", "--tenant", "a", "--rpm", "0"], "not a number from 1"),
        (["create", "--tenant", "a", "--rpm", "-5"], "--rpm"),
        (["create", "--tenant", "a", "--tpm", "1e3"], "not a number from 1"),
        (["create", "--tenant", "a", "--burst", "5"], "of no use without --rpm"),
        (["create", "--tenant", "a", "--weight", "nan"], "not a number over 0"),
        (["create", "--tenant", "a", "--priority", "2000"], "from -1000 to 1000"),
        (["create", "--tenant", "a", "--expires", "soon"], "neither a number of days nor a date"),
        (["create", "--tenant", "a", "--expires", "2000-01-01"], "is over"),
        (["create", "--tenant", "a", "--expires", "0"], "is over"),
        (["revoke", "key_none"], "there is no key 'key_none'"),
        (["revoke"], "ID"),
        (["steal"], "steal"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], file: Path, words: list[str], said: str
) -> None:
    (file.parent / "keys.yaml").write_text("keys: {}\n")
    status, out, err = run(capsys, file, *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert (file.parent / "keys.yaml").read_text() == "keys: {}\n"


def test_a_configuration_without_keys_and_a_broken_file_are_said(
    capsys: pytest.CaptureFixture[str], file: Path
) -> None:
    (file.parent / "keys.yaml").write_text("keys: {")
    status, _, err = run(capsys, file, "create", "--tenant", "a")
    assert (status, err.count("\n")) == (2, 1)
    assert "not YAML" in err
    file.write_text(yaml.safe_dump({"models": MODELS}))
    status, _, err = run(capsys, file, "list")
    assert (status, err.count("\n")) == (2, 1)
    assert "`keys` is not there" in err
    file.write_text(yaml.safe_dump({"models": MODELS, "keys": {"redis": {"url": "redis://127.0.0.1:1/0"}}}))
    status, _, err = run(capsys, file, "list")
    assert (status, err.count("\n")) == (2, 1)
    assert "127.0.0.1:1" in err


def test_more_limited_keys_than_there_is_room_for_are_refused(
    capsys: pytest.CaptureFixture[str], file: Path
) -> None:
    full = {f"k{n}": Key(hash=hashed(str(n)), tenant="a", rpm=1) for n in range(MAX_KEYS)}
    (file.parent / "keys.yaml").write_text(dump(full))
    status, _, err = run(capsys, file, "create", "--tenant", "a", "--tpm", "5")
    assert (status, err.count("\n")) == (2, 1)
    assert "4096 keys have limits already" in err
    assert run(capsys, file, "create", "--tenant", "a")[0] == 0, "one without limits needs no room"
