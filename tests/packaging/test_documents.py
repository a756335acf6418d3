"""Files made from the configuration's Structs are current, and the example shows every key there is."""

import json
import os
import re
from pathlib import Path

import msgspec
import pytest
import yaml
from msgspec import inspect

from penstock.gateway.config import Config, Machine, load, schema
from penstock.gateway.config.reference import markdown
from penstock.gateway.config.shape import shape
from penstock.workers.store import RESTART, ROLL

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = (ROOT / "penstock.example.yaml").read_text()
AS_OF_L2 = re.compile(r"((limits|keys|pools)\.redis|store)\.(?!(url|refresh_s)$)")  # said once, at cache.l2
ROOMY = Machine(cores=frozenset(range(8)), max_descriptors=1_000_000)


def everything():
    """The example with its absent keys made present."""
    return yaml.safe_load(re.sub(r"(?m)^( *)#(?=\S)", r"\1", EXAMPLE))


def keys_there_are(kind=None, path=""):
    """Every key of the configuration, as `models.*.backends.*.url`."""
    kind = kind or inspect.type_info(Config)
    match kind:
        case inspect.Metadata():
            yield from keys_there_are(kind.type, path)
        case inspect.UnionType():
            for inner in kind.types:
                yield from keys_there_are(inner, path)
        case inspect.DictType():
            yield from keys_there_are(kind.value_type, path + ".*")
        case inspect.VarTupleType():
            yield from keys_there_are(kind.item_type, path + ".*")
        case inspect.StructType():
            if kind.tag_field:
                yield f"{path}.{kind.tag_field}", next(iter(kind.fields))
            for field in kind.fields:
                here = f"{path}.{field.encode_name}".lstrip(".")
                yield here, field
                yield from keys_there_are(field.type, here)


def leaves(tree, path=""):
    """Every key that is written, with its value."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            here = f"{path}.{'*' if path == 'models' else key}".lstrip(".")
            yield here, value
            yield from leaves(value, here)
    elif isinstance(tree, list):
        for value in tree:
            yield from leaves(value, path + ".*")


def test_the_example_is_a_configuration_as_it_stands():
    config = load(EXAMPLE, {}, machine=ROOMY)
    assert config.models["qwen3-coder"].backends[0].url == "http://127.0.0.1:8000"


def test_every_key_of_the_example_is_valid_those_that_are_commented_out_too():
    shape("example", everything(), {})


def test_the_example_mentions_every_key():
    written = {path for path, _ in leaves(everything()) if not path.endswith("*")}
    assert written == {path for path, _ in keys_there_are() if not AS_OF_L2.match(path)}


def test_the_example_shows_the_defaults():
    defaults = {path: field.default for path, field in keys_there_are() if not field.required}
    shown = msgspec.to_builtins(load(EXAMPLE, {}, machine=ROOMY))
    written = {path for path, _ in leaves(yaml.safe_load(EXAMPLE))}
    for path, value in leaves(shown):
        default = defaults.get(path, msgspec.NODEFAULT)
        if path in written and default is not msgspec.NODEFAULT and path != "models.*.backends":
            plain = msgspec.to_builtins(default)
            assert (list(value) if isinstance(value, tuple) else value) == plain or value == default, path


def test_every_key_has_a_description():
    described = schema()["$defs"]
    assert not [
        f"{name}.{key}"
        for name, struct in described.items()
        for key, prop in struct["properties"].items()
        if "description" not in prop and "enum" not in prop
    ]


@pytest.mark.parametrize(
    ("file", "made"),
    [
        ("config.schema.json", lambda: json.dumps(schema(), indent=2) + "\n"),
        ("docs/configuration.md", markdown),
    ],
)
def test_a_file_made_from_the_structs_is_current(file, made):
    assert (ROOT / file).read_text() == made(), "run `make docs`"


def test_the_reference_names_the_keys_that_a_reload_does_not_apply():
    rows = [
        line for line in markdown().splitlines() if line.startswith(("| `penstock restart`", "| a new start"))
    ]
    assert [
        tuple(re.findall("`([a-z0-9_.]+)`", row.partition("| ")[2].partition(" | ")[2])) for row in rows
    ] == [ROLL, RESTART]


def test_documents_name_files_that_exist():
    missing = []
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                missing.append(f"{page.relative_to(ROOT)}: {target}")
        for name in re.findall(
            r"`((?:cache|gateway|workers|loadtests|tests|docs|deploy)/[\w./-]+)`", page.read_text()
        ):
            if not os.path.exists(ROOT / name):
                missing.append(f"{page.relative_to(ROOT)}: {name}")
    assert not missing


def test_make_targets_named_in_documents_exist():
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    named = {
        word
        for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
        for word in re.findall(r"`make ([a-z-]+)", page.read_text())
    }
    assert named <= targets
