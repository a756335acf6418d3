"""The configuration's reference page, made from the Structs, so that it cannot say anything else than they do.

`python -m penstock.gateway.config.reference` prints it; `make docs` writes it to `docs/configuration.md`.
"""

import sys
from typing import Any

import msgspec
from msgspec import inspect

from .fields import GIB, KIB, MIB
from .load import schema
from .structs import Config

_HEAD = """\
# Configuration

One YAML file, given with `penstock serve -c FILE`. Only `models` is required; `penstock.example.yaml` shows every
key with its default. An unknown key is an error, so a typing mistake cannot go unnoticed.

* `penstock config check FILE` prints what is wrong with a file as one line: the place, the fault, the likely fix.
* `penstock config schema` prints the JSON Schema, which is also in the repository as `config.schema.json`.
* Sizes are bytes, or a number with `B`, `KiB`, `MiB` or `GiB`. Times are seconds (`_s`).
* `${NAME}` and `${NAME:-default}` are replaced from the environment in the keys marked *env* below, nowhere else.
* Secrets are never in the file: a key ending in `_env` names the environment variable that holds one.

A file is at most 1 MiB. At most 256 models and 256 backends fit in one node.

A running gateway notices when the file changes, and SIGHUP makes it read the file at once; with `store` a document that
nodes share is laid over it ([configuring](configuring.md)). What is refused changes nothing. Most keys take effect at
once, between requests; the log names those that need more:

| applied by | keys |
|---|---|
| `penstock restart`, after the change | \
`listen.http`, `listen.tls`, `listen.max_connections`, `listen.read_timeout_s`, `listen.keep_alive_s` |
| a new start | `listen.host`, `listen.port`, `listen.uds`, `admin`, `workers.count`, `workers.cores`, \
`cache.l1.size`, `cache.l1.max_entry`, `cache.l1.keep`, `cache.l2`, `keys`, `pools.state`, `pools.lease`, \
`pools.redis`, `store`, `limits.redis` |

`cache.l2.ttl_s` takes effect at once. Until the new start all others of these keys stay as they were, in processes that
are replaced too.

This page is made from the Structs in `gateway/config` by `make docs`.
"""


def markdown() -> str:
    """The page."""
    parts = [_HEAD]
    _section(inspect.type_info(Config), "", parts)
    return "\n".join(parts)


def _section(kind: inspect.Type, path: str, parts: list[str]) -> None:
    if not isinstance(kind, inspect.StructType):
        return
    title = f"`{path}`" if path else "Top level"
    if kind.tag_field:
        title += f", `{kind.tag_field}: {kind.tag}`"
    lines = [f"\n## {title}\n", f"{kind.cls.__doc__}\n"]
    lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
    below: list[tuple[inspect.Type, str]] = []
    for field in kind.fields:
        here = f"{path}.{field.encode_name}".lstrip(".")
        describes = schema()["$defs"][kind.cls.__name__]["properties"][field.encode_name].get(
            "description", ""
        )
        lines.append(f"| `{field.encode_name}` | {_value(field.type)} | {_default(field)} | {describes} |")
        below += _nested(field.type, here)
    parts.append("\n".join(lines))
    for inner, where in below:
        _section(inner, where, parts)


def _nested(kind: inspect.Type, path: str) -> list[tuple[inspect.Type, str]]:
    match kind:
        case inspect.Metadata():
            return _nested(kind.type, path)
        case inspect.UnionType():
            return [found for inner in kind.types for found in _nested(inner, path)]
        case inspect.DictType():
            return _nested(kind.value_type, f"{path}.<name>")
        case inspect.VarTupleType():
            return _nested(kind.item_type, f"{path}[]")
        case inspect.StructType():
            return [(kind, path)]
    return []


def _value(kind: inspect.Type) -> str:
    match kind:
        case inspect.Metadata():
            extra = kind.extra or {}
            if extra.get("size"):
                return "size"
            return _value(kind.type) + (" *(env)*" if extra.get("env") else "")
        case inspect.UnionType():
            words = (_value(t) for t in kind.types if not isinstance(t, inspect.NoneType))
            return " or ".join(dict.fromkeys(words))
        case inspect.LiteralType():
            return ", ".join(_text(str(v)) for v in kind.values)
        case inspect.DictType():
            return "mapping"
        case inspect.VarTupleType():
            return "list"
        case inspect.StructType():
            return "see below"
        case inspect.StrType():
            return "text"
        case inspect.BoolType():
            return "`true`, `false`"
        case inspect.IntType() | inspect.FloatType():
            return _number(kind)
    return type(kind).__name__


def _number(kind: inspect.IntType | inspect.FloatType) -> str:
    word = "whole number" if isinstance(kind, inspect.IntType) else "number"
    bounds = [
        f"{sign} {int(bound) if bound == int(bound) else bound}"
        for sign, bound in ((">", kind.gt), ("≥", kind.ge), ("<", kind.lt), ("≤", kind.le))
        if bound is not None
    ]
    return f"{word} {', '.join(bounds)}".strip()


def _default(field: inspect.Field) -> str:
    value: Any = field.default
    if field.required:
        return "**required**"
    if value is msgspec.NODEFAULT or isinstance(value, msgspec.Struct):
        return "see below"
    if value is None:
        return "absent"
    if isinstance(field.type, inspect.Metadata) and (field.type.extra or {}).get("size"):
        for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
            if value % unit == 0:
                return f"`{value // unit}{name}`"
    if isinstance(value, tuple):
        return "`[]`"
    if field.default_factory is dict:
        return "`{}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    return _text(str(value)) if isinstance(value, str) else f"`{value}`"


def _text(value: str) -> str:
    return f'`"{value}"`' if value.isdigit() else f"`{value}`"


if __name__ == "__main__":
    sys.stdout.write(markdown())
