"""Every key of the configuration has an effect, and every key that is used or written about exists.

Told statically. A key has an effect where an attribute of its name is read outside `gateway/config`, in a file that
can know its Struct: one that gets hold of it by a chain of attributes, or names the Struct. Reading a name that no
Struct has, after a name that only the configuration's Structs have, is the use of a key that is not there.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from msgspec import inspect

from penstock.gateway.config import Config

from .test_documents import keys_there_are

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("gateway", "workers", "cache")
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
TOP = {field.encode_name for field in inspect.type_info(Config).fields}
NO_READER = {
    "models.*.pool.provider",  # it chooses the Struct
}
PASSED_ON = ("models.*.pool.pod.tolerations.*.",)
"""Below these a Struct is written into somebody else's document as it is."""


def structs(kind=None, found=None):
    """Every Struct of the tree, with its fields' names."""
    found = {} if found is None else found
    kind = kind or inspect.type_info(Config)
    match kind:
        case inspect.Metadata():
            structs(kind.type, found)
        case inspect.UnionType():
            for inner in kind.types:
                structs(inner, found)
        case inspect.DictType():
            structs(kind.value_type, found)
        case inspect.VarTupleType():
            structs(kind.item_type, found)
        case inspect.StructType() if kind.cls not in found:
            found[kind.cls] = kind
            for field in kind.fields:
                structs(field.type, found)
    return found


@cache
def used():
    """Names of attributes that are read outside `gateway/config`, by file; `getattr` with a text counts."""
    found = {}
    for place in PLACES:
        for path in (ROOT / place).rglob("*.py"):
            if (ROOT / "gateway/config") not in path.parents:
                found[path] = attributes(parsed(path))
    return found


@cache
def parsed(file):
    return ast.parse(file.read_text())


def attributes(tree):
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            names.add(node.attr)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            names |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return names


def homes(path):
    """Words one of which a file that reads this key has: its Struct's name, or the key that leads to it."""
    parts = [part for part in path.split(".") if part != "*"]
    kinds = {
        cls.__name__ for cls, kind in structs().items() for f in kind.fields if f.encode_name == parts[-1]
    }
    return {*parts[-2:-1], *kinds, "PoolTerms"}


KEYS = sorted(p for p in {path for path, _ in keys_there_are()} - NO_READER if not p.startswith(PASSED_ON))


@pytest.mark.parametrize("path", KEYS)
def test_a_key_is_read_somewhere(path):
    """Removing the last reader of a key from the code fails this."""
    assert is_read(path), f"{path} is documented, and nothing reads it"


def is_read(path):
    name, words = path.rpartition(".")[2], homes(path)
    return any(
        name in names and (path.count(".") < 2 or words & names or words & texts(file))
        for file, names in used().items()
    )


@pytest.mark.parametrize(
    "path", ["health.jitter_s", "models.*.backends.*.colour", "pools.kubernetes.retries_s"]
)
def test_a_key_that_nothing_reads_would_be_found(path):
    assert not is_read(path)


@cache
def texts(file):
    return set(re.findall(r"\w+", file.read_text()))


def test_a_key_that_is_read_of_the_configuration_exists():
    """`config.<section>.<key>` and what follows it, in all files: each name is a field of the Struct before it."""
    assert not [f"{file.relative_to(ROOT)}: {chain}" for file in used() for chain in unknown(parsed(file))]


def test_a_key_that_is_read_and_does_not_exist_would_be_found():
    text = "a = self._published.config.listen.backlog + config.health.fall\nb = told.cache.l2.nodez"
    assert sorted(unknown(ast.parse(text))) == ["config.listen.backlog", "told.cache.l2.nodez"]


def unknown(tree):
    """Chains of attributes from a configuration on that lead to no field."""
    for node in ast.walk(tree):
        chain = chained(node)
        if len(chain) > 1 and chain[1] in TOP:
            kind = inspect.type_info(Config)
            for name in chain[1:]:
                kind = struct_of(kind)
                if kind is None:
                    break
                fields = {field.encode_name: field.type for field in kind.fields}
                if name not in fields:
                    if not hasattr(kind.cls, name):
                        yield ".".join(chain)
                    break
                kind = fields[name]


def struct_of(kind):
    """The one Struct that a value of this type can be; None where it is something else."""
    match kind:
        case inspect.Metadata():
            return struct_of(kind.type)
        case inspect.UnionType():
            found = [one for one in map(struct_of, kind.types) if one is not None]
            return found[0] if len(found) == 1 else None
        case inspect.StructType():
            return kind
    return None


def chained(node):
    """`a.b.c` as a list of its last words from `config` on; empty where it is something else."""
    words = []
    while isinstance(node, ast.Attribute):
        words.insert(0, node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        words.insert(0, node.id)
    starts = [at for at, word in enumerate(words) if word in ("config", "told")]
    return words[starts[0] :] if starts else []


SECTIONS = "|".join(sorted(TOP - {"models", "log", "keys", "store"}))
MENTION = re.compile(
    rf"`((?:(?:{SECTIONS})\.|models\.(?:<name>|\*)\.|(?:log|keys|store)\.(?!py\b))[a-z0-9_.<>*\[\]]+)(?::[^`]*)?`"
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_key_that_a_page_names_exists(page):
    """A key that was removed, or that a page has misspelt, fails this."""
    known = {path.replace(".*", "") for path, _ in keys_there_are()}
    wrong = []
    for text in MENTION.findall(page.read_text()):
        path = re.sub(r"\.(<name>|\*)|\[\]", "", text).rstrip(".")
        if path.endswith((".py", ".md", ".yaml", ".yml", ".json")):
            continue
        if path not in known:
            wrong.append(text)
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_configuration_that_a_page_shows_has_no_key_that_does_not_exist(page):
    known = {path for path, _ in keys_there_are()}
    wrong = []
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL):
        for one in yaml.safe_load_all(re.sub(r"…|\{\{.*?\}\}", "x", block)):
            if isinstance(one, dict) and set(one) <= TOP and not is_of_keys(one):
                wrong += [path for path in shown(one) if path not in known]
    assert not wrong


def is_of_keys(shown):
    """Whether it is a file of API keys, which has a `keys` of its own."""
    return set(shown) == {"keys"} and not {"file", "redis"} & set(shown["keys"])


def shown(tree, path=""):
    """Every key that is written, but those of mappings that may have any."""
    for one in tree if isinstance(tree, list) else ():
        yield from shown(one, f"{path}.*")
    if not isinstance(tree, dict) or path.endswith((".env", ".labels", ".node_selector")):
        return
    for key, value in tree.items():
        here = f"{path}.{'*' if path == 'models' else key}".lstrip(".")
        if not here.endswith("*"):
            yield here
        yield from shown(value, here)
