"""deploy/docker makes what it copies into an image whose process is nobody's root."""

import json
import re
import tomllib
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from penstock.workers.cli import main

from ..support.procs import free_port, run

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "deploy" / "docker" / "Dockerfile"
INSTRUCTIONS = {
    "FROM", "WORKDIR", "COPY", "ARG", "RUN", "ENV", "USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD",
}  # fmt: skip
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def stages(text: str) -> list[list[tuple[str, str]]]:
    """Instructions with their arguments, by stage; whatever is none is refused."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found: list[list[tuple[str, str]]] = []
    for line in re.sub(r"\\\n", "", "\n".join(lines)).splitlines():
        word, _, rest = line.partition(" ")
        if word not in INSTRUCTIONS or not rest.strip():
            raise ValueError(line)
        if word == "FROM":
            found.append([])
        found[-1].append((word, " ".join(rest.split())))
    return found


BUILD, IMAGE = stages(FILE.read_text())


def of(stage: list[tuple[str, str]], word: str) -> list[str]:
    return [rest for name, rest in stage if name == word]


def copied() -> set[str]:
    """What the first stage takes from the checkout."""
    return {source for rest in of(BUILD, "COPY") for source in rest.split()[:-1]}


def let_through() -> set[str]:
    """What the ignore file leaves of the checkout's top level."""
    rules = [
        line
        for line in FILE.with_name("Dockerfile.dockerignore").read_text().split()
        if not line.startswith("#")
    ]
    kept = set()
    for entry in (path.name for path in ROOT.iterdir()):
        ignored = False
        for rule in rules:
            if fnmatch(entry, rule.lstrip("!")):
                ignored = not rule.startswith("!")
        if not ignored:
            kept.add(entry)
    return kept


def test_what_is_copied_is_there_and_is_all_that_the_package_is_made_from():
    folders = {path.partition("/")[0] for path in PROJECT["tool"]["setuptools"]["package-dir"].values()}
    project = PROJECT["project"]
    assert copied() == folders | {
        "pyproject.toml",
        "requirements.lock",
        project["readme"],
        *project["license-files"],
    }
    assert all((ROOT / path).exists() for path in copied())


def test_the_ignore_file_lets_through_what_is_copied_and_nothing_else():
    assert let_through() == copied()


def test_the_versions_are_those_that_were_tested_and_the_extras_there_are():
    (extras,) = of(BUILD, "ARG")
    (install,) = of(BUILD, "RUN")
    assert install.count("-c requirements.lock") == install.count("pip install")
    assert set(extras.removeprefix("EXTRAS=").split(",")) <= set(PROJECT["project"]["optional-dependencies"])
    minor = re.search(r"python:(3\.\d+)-", of(BUILD, "FROM")[0])
    assert minor is not None
    # a virtual environment runs on the Python that made it
    assert of(BUILD, "FROM")[0] == of(IMAGE, "FROM")[0] + " AS build"


def test_the_image_is_the_built_environment_run_by_nobody_s_root():
    assert of(IMAGE, "COPY") == ["--from=build /opt/penstock /opt/penstock"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", of(IMAGE, "USER")[-1])
    words = [word for word, _ in IMAGE]
    assert words.index("COPY") < words.index("USER"), "what runs must not be able to change itself"
    assert "STATE_DIRECTORY=/var/lib/penstock" in of(IMAGE, "ENV")[0].split()


def test_its_command_is_one_that_penstock_takes(capsys):
    entry, command = (json.loads(of(IMAGE, word)[0]) for word in ("ENTRYPOINT", "CMD"))
    assert entry == [*PROJECT["project"]["scripts"]]
    assert command == ["serve", "-c", "/etc/penstock/penstock.yaml"]
    with pytest.raises(SystemExit) as ended:
        main([command[0], "--help"])
    assert ended.value.code == 0
    assert re.search(r"-c\b", capsys.readouterr().out)


def test_its_health_check_says_what_the_gateway_says():
    """Run as it stands, with another port: 0 for 200, not 0 where nobody answers or the answer is 503."""
    statuses = iter((200, 503))

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(next(statuses) if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    (check,) = of(IMAGE, "HEALTHCHECK")
    words = json.loads(check.partition("CMD ")[2])
    assert ("127.0.0.1:8080" in words[-1], words[0]) == (True, "python")
    with HTTPServer(("127.0.0.1", 0), Health) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        words[-1] = words[-1].replace(":8080", f":{server.server_port}")
        assert [run(words)[0] == 0 for _ in range(2)] == [True, False]
        server.shutdown()
    words[-1] = words[-1].replace(f":{server.server_port}", f":{free_port()}")
    assert run(words)[0] != 0


@pytest.mark.parametrize("line", ["COPPY a b", "RUN", "ADD x y"])
def test_a_line_that_is_no_instruction_is_found(line):
    with pytest.raises(ValueError, match=line):
        stages("FROM a\n" + line)
