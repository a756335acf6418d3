"""From YAML text to plain dicts and lists, with every bound a hostile or broken file needs.

YAML lets a few hundred bytes stand for gigabytes (aliases of aliases), lets a key be given twice, and lets
a mapping contain itself. The text is parsed to nodes first, the nodes are counted as they would unfold, and
only then built. This file knows nothing of the configuration's keys.
"""

from typing import Any

import yaml

from .faults import ConfigError

MAX_FILE_BYTES = 1024 * 1024
MAX_NODES = 200_000
MAX_DEPTH = 32

_Fastest = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_O = {"o", "O"}
#: As YAML 1.2 has it, `on` and `off` are words, not booleans: `off` is a choice of some keys.
_Loader: Any = type(
    "_Loader",
    (_Fastest,),
    {"yaml_implicit_resolvers": {c: k for c, k in _Fastest.yaml_implicit_resolvers.items() if c not in _O}},
)


def _number(loader: Any, node: yaml.Node) -> int:
    """As PyYAML has it, as far as 64 bits go: Python refuses to write much longer ones even into an error."""
    number: int = loader.construct_yaml_int(node)
    if not -(1 << 63) <= number < 1 << 64:
        line = node.start_mark.line + 1
        raise yaml.constructor.ConstructorError(None, None, f"a number of more than 64 bits in line {line}")
    return number


_Loader.add_constructor("tag:yaml.org,2002:int", _number)


def _tab(text: str, mark: Any) -> bool:
    return bool(mark) and text[mark.index : mark.index + 1] == "\t"


def parse(name: str, text: str) -> dict[str, Any]:
    """Parse `text`; `name` is what errors call the file. Raises ConfigError."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_FILE_BYTES:
        raise ConfigError(name, "$", "larger than 1 MiB", "split the deployment or remove what is generated")
    try:
        _bound(name, text)
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark or fault.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "$"
        raise ConfigError(
            name,
            place,
            f"not YAML: {fault.problem or fault.context}",
            "indent with spaces, not tabs"
            if _tab(text, mark)
            else "check quotes, colons and indentation here",
        ) from None
    except yaml.YAMLError as fault:
        what = str(fault).splitlines()[0]
        raise ConfigError(name, "$", f"not YAML: {what}", "save the file as UTF-8 text") from None
    if root is None:
        raise ConfigError(name, "$", "the file is empty", "start from penstock.example.yaml")
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(
            name,
            "$",
            "not a mapping of keys to values",
            "write `models:` at the top, as in penstock.example.yaml",
        )
    _Walk(name).size(root, "$")
    loader = _Loader("")
    try:
        built: dict[str, Any] = loader.construct_document(root)
    except (yaml.YAMLError, ValueError) as fault:
        what = getattr(fault, "problem", None) or str(fault)
        raise ConfigError(name, "$", f"{what}", "write plain values, or put them in quotes") from None
    finally:
        loader.dispose()
    return built


def _bound(name: str, text: str) -> None:
    """Before anything is built of it."""
    depth = nodes = 0
    for event in yaml.parse(text, Loader=_Loader):
        nodes += isinstance(event, yaml.NodeEvent)
        if nodes > MAX_NODES:
            raise ConfigError(name, "$", f"more than {MAX_NODES} values", "remove what is generated")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                line = event.start_mark.line + 1 if event.start_mark else 0
                raise ConfigError(
                    name, f"line {line}", "nested too deeply", f"use at most {MAX_DEPTH} levels"
                )
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Walk:
    """Counts nodes as they unfold, refusing keys given twice, cycles and bombs."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._sizes: dict[int, int] = {}
        self._open: set[int] = set()

    def size(self, node: yaml.Node, path: str) -> int:
        known = self._sizes.get(id(node))
        if known is not None:
            return known
        if id(node) in self._open or len(self._open) > 2 * MAX_DEPTH:
            raise ConfigError(self._name, path, "an alias that contains itself", "write the value out")
        self._open.add(id(node))
        total = 1
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise ConfigError(self._name, path, "a key that is not a word", "use plain words as keys")
                if key.tag != "tag:yaml.org,2002:str" and key.value != "<<":
                    raise ConfigError(
                        self._name,
                        f"{path}.{key.value}",
                        "a key that is not text",
                        f'quote it: "{key.value}"',
                    )
                if key.value in seen:
                    line = key.start_mark.line + 1 if key.start_mark else 0
                    raise ConfigError(
                        self._name,
                        f"{path}.{key.value}",
                        f"given twice (again in line {line})",
                        "keep one of them",
                    )
                seen.add(key.value)
                total += 1 + self.size(value, f"{path}.{key.value}")
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                total += self.size(value, f"{path}[{index}]")
        self._open.discard(id(node))
        if total > MAX_NODES:
            raise ConfigError(
                self._name,
                path,
                f"more than {MAX_NODES} values once aliases are unfolded",
                "write the values out",
            )
        self._sizes[id(node)] = total
        return total
