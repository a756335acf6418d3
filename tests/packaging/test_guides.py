"""What the documents say is there: links and their headings, pages, packages, commands, configurations, log events."""

import ast
import contextlib
import functools
import io
import re
import shlex
import tomllib
from pathlib import Path

import msgspec
import pytest
import yaml

from penstock.gateway.config import Config
from penstock.gateway.config.shape import shape
from penstock.loadtests.sim.main import main as simulate
from penstock.loadtests.suite.main import VERBS
from penstock.workers.cli import _parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?ms)^( *)```(\w*)\n(.*?)^ *```$")
WORD = re.compile(r"(?<![A-Za-z0-9_])[a-z][a-z0-9]*(?:_[a-z0-9]+)+(?![A-Za-z_])")
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
OF_OTHERS = {
    "proxy_read_timeout",
    "proxy_buffering",
    "image_url",
    "cache_salt",
    "max_retries",
}  # nginx's, APIs', SDKs'


def text_of(page: Path) -> str:
    """A page without its blocks of code."""
    return BLOCK.sub("", page.read_text())


def blocks(page: Path, *kinds: str) -> list[str]:
    return [found[3] for found in BLOCK.finditer(page.read_text()) if found[2] in kinds]


@functools.cache
def sources() -> dict[Path, str]:
    folders = ("cache", "gateway", "workers", "loadtests", "deploy")
    found = (path for folder in folders for path in (ROOT / folder).rglob("*"))
    return {path: path.read_text() for path in found if path.is_file() and path.suffix != ".pyc"}


def anchor(heading: str) -> str:
    """As GitHub makes it of a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


def test_links_lead_to_headings_that_there_are():
    headings = {
        page.resolve(): {anchor(line) for line in re.findall(r"(?m)^#+ (.*)$", page.read_text())}
        for page in PAGES
    }
    lost = []
    for page in PAGES:
        for target, heading in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", page.read_text()):
            if "://" not in target:
                aim = (page.parent / target).resolve() if target else page.resolve()
                if heading not in headings[aim]:
                    lost.append(f"{page.relative_to(ROOT)}: {target}#{heading}")
    assert not lost


def test_the_readme_leads_to_every_page():
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)\)", (ROOT / "README.md").read_text()))
    assert linked == {page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").glob("*.md")}


def test_the_index_of_decisions_has_each_under_its_title():
    folder = ROOT / "docs" / "adr"
    pages = sorted(page for page in folder.glob("*.md") if page.name != "README.md")
    titles = [(page.read_text().splitlines()[0].partition(". ")[2], page.name) for page in pages]
    assert re.findall(r"(?m)^\d+\. \[(.*)\]\((.*)\)$", (folder / "README.md").read_text()) == titles


def test_the_architecture_names_every_package():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert not [
        folder for folder in packages.values() if f"`{folder}/`" not in page and f"`{folder}/*" not in page
    ]


def test_a_requests_life_is_told_in_the_pipelines_words():
    told = re.search(r"(?ms)^    (parse -> .*?)\n\n", (ROOT / "gateway" / "pipeline.py").read_text())
    page = (ROOT / "docs" / "request.md").read_text()
    assert told[1] in page
    steps = re.findall(r"[a-z]+", told[1])
    rows = re.findall(r"(?m)^\| (\w+) \|", page)
    assert [row for row in rows if row in steps] == [step for step in steps if step in rows]
    assert {*steps} - {*rows} == {"limits"}  # it has a page of its own
    assert all(re.search(rf"\b{step}\b", page[page.index("mermaid") :]) for step in steps)


def configurations():
    keys = {field.name for field in msgspec.structs.fields(Config)}
    for page in GUIDES:
        for number, text in enumerate(blocks(page, "yaml")):
            with contextlib.suppress(yaml.YAMLError):
                tree = yaml.safe_load(text)
                if isinstance(tree, dict) and tree.keys() <= keys:
                    yield pytest.param(tree, id=f"{page.name}-{number}")


@pytest.mark.parametrize("tree", list(configurations()))
def test_a_configuration_that_is_shown_is_one(tree):
    if any("hash" in str(value) for value in tree.get("keys", {}).values()):
        return  # a file of keys
    shape("shown", {"models": {"any": {"backends": [{"url": "http://any"}]}}, **tree}, {})


def commands():
    """Every command line of ours in a block, or between backticks with an option."""
    for page in GUIDES:
        lines = [line for text in blocks(page, "sh", "") for line in text.replace("\\\n", " ").splitlines()]
        lines += re.findall(r"`(penstock [^`]* --?[a-z][^`]*)`", text_of(page))
        for line in lines:
            found = re.match(r"(?:\$ )?(?:\.venv/bin/|/opt/penstock/bin/)?penstock (.*)", line.strip())
            if found and not found[1].startswith((" ", "0.")):
                plain = re.sub(r"(<\w|[>&|;]|   ).*", "", found[1]).replace(" KEY", " " + 64 * "0")
                words = shlex.split(plain, comments=True)
                yield pytest.param(words, id=f"{page.name}: {' '.join(words)}")


@pytest.mark.parametrize("words", list(commands()))
def test_a_command_that_is_shown_is_understood(words):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            if words[0] == "sim":
                simulate([*words[1:], "--help"])
            elif words[0] in VERBS:
                VERBS[words[0]]([*words[1:], "--help"])
            else:
                _parser().parse_args(words)
        except SystemExit as end:
            assert end.code == 0, said.getvalue()


@pytest.mark.parametrize("verb", ["sim", *VERBS])
def test_a_verb_with_options_of_its_own_is_among_the_others(verb):
    assert re.search(rf"^    {verb} +\w", _parser().format_help(), re.MULTILINE)


@functools.cache
def events() -> tuple[set[str], list[re.Pattern[str]]]:
    """The first words of lines that are logged: whole ones, and those of which a part is filled in."""
    whole, parts = set(), []
    for path, text in sources().items():
        if path.suffix != ".py" or "loadtests" in path.parts or "log" not in text:
            continue
        for call in ast.walk(ast.parse(text)):
            if not (
                isinstance(call, ast.Call)
                and isinstance(call.func, ast.Attribute)
                and call.func.attr in LEVELS
            ):
                continue
            if not ast.unparse(call.func.value).endswith("log"):
                continue
            words = call.args[1 if call.func.attr == "log" else 0]
            if isinstance(words, ast.Constant):
                first = words.value.split()[0]
            elif isinstance(words, ast.JoinedStr):
                first = "".join(
                    str(p.value) if isinstance(p, ast.Constant) else "%s" for p in words.values
                ).split()[0]
            else:
                continue
            first = first.rstrip(":,")
            if "%s" in first and first != "%s":
                parts.append(re.compile(first.replace("%s", "[a-z0-9_]+")))
            elif re.fullmatch("[a-z][a-z0-9]*(_[a-z0-9]+)*", first):
                whole.add(first)
    return whole, parts


def test_events_that_the_log_may_have_are_those_that_are_listed():
    page = (ROOT / "docs" / "operating.md").read_text()
    table = page[page.index("| about | events |") :].partition("\n\n")[0]
    listed = set(re.findall(r"`([a-z0-9_]+)`", table))
    whole, parts = events()
    literals = "\n".join(text for path, text in sources().items() if path.suffix == ".py")
    named = {name for name in whole if "_" in name}  # a line may also begin with an ordinary word
    assert not named - listed, "in the code alone"
    assert not [part.pattern for part in parts if not any(part.fullmatch(name) for name in listed)]
    assert not [
        name
        for name in listed - whole
        if not any(part.fullmatch(name) for part in parts) and f'"{name}"' not in literals
    ], "in the table alone"


def test_words_with_underscores_are_of_the_code():
    known = {word for text in sources().values() for word in WORD.findall(text)}
    for path in (ROOT / "tests").rglob("*.py"):
        known |= {path.stem, *re.findall(r"def (test_\w+)", path.read_text())}
    known |= OF_OTHERS
    known |= {f"{word}_{part}" for word in known for part in ("bucket", "count", "sum") if "penstock" in word}
    _, parts = events()
    lost = []
    for page in GUIDES:
        for code in re.findall(r"`([^`\n]+)`", text_of(page)):
            lost += [
                f"{page.name}: {word}"
                for word in WORD.findall(code)
                if word not in known and not any(part.fullmatch(word) for part in parts)
            ]
    assert not lost
