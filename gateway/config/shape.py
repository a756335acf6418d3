"""From plain dicts and lists to the Struct tree: unknown keys, sizes, `${NAME}`, types.

The tree of types is walked beside the tree of values. The walk refuses keys that no Struct has (with the
nearest that one has), turns `10MiB` into bytes, and replaces `${NAME}` in the fields marked for it and nowhere
else. Types and bounds are then msgspec's. The process's environment is not read here: it is passed in.
"""

import datetime
import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import inspect

from .faults import ConfigError, did_you_mean, show
from .fields import GIB, HEALTH_PATH, KIB, MIB
from .structs import Config

_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?) ?(B|KiB|MiB|GiB)")
_MOST_BYTES = 1 << 60
_FACTORS = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB}
_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_IN_A_MODEL = "$.models[...]"
_AT = re.compile(r"^(?P<what>.*?)(?: - at (?:`key` in )?`(?P<path>[^`]*)`)?$", re.DOTALL)


def shape(name: str, raw: Mapping[str, Any], environ: Mapping[str, str]) -> Config:
    """The configuration that `raw` describes; `name` is what errors call the file. Raises ConfigError."""
    root = inspect.type_info(Config)
    plain = _Walk(name, environ).value(raw, root, "$")
    try:
        return msgspec.convert(plain, Config)
    except msgspec.ValidationError as fault:
        _explain(name, plain, fault)
        raise


class _Walk:
    def __init__(self, name: str, environ: Mapping[str, str]) -> None:
        self._name = name
        self._environ = environ

    def value(self, raw: Any, kind: inspect.Type, path: str, extra: Mapping[str, Any] | None = None) -> Any:
        if isinstance(kind, inspect.Metadata):
            return self.value(raw, kind.type, path, kind.extra or extra)
        if isinstance(kind, inspect.UnionType):
            marked = [(t.type, t.extra) if isinstance(t, inspect.Metadata) else (t, None) for t in kind.types]
            extra = extra or next((e for _, e in marked if e), None)
            tagged = [
                inner for inner, _ in marked if isinstance(inner, inspect.StructType) and inner.tag_field
            ]
            if len(tagged) > 1 and isinstance(raw, dict):
                return self._tagged(raw, tagged, path)
            for inner, _ in marked:
                if isinstance(inner, inspect.StructType | inspect.VarTupleType) and raw is not None:
                    return self.value(raw, inner, path, extra)
            return self._leaf(raw, path, extra)
        if isinstance(kind, inspect.StructType) and isinstance(raw, dict):
            return self._struct(raw, kind, path)
        if isinstance(kind, inspect.DictType) and isinstance(raw, dict):
            return {k: self.value(v, kind.value_type, f"{path}.{k}") for k, v in raw.items()}
        if isinstance(kind, inspect.VarTupleType) and isinstance(raw, list):
            return [self.value(v, kind.item_type, f"{path}[{i}]") for i, v in enumerate(raw)]
        return self._leaf(raw, path, extra)

    def _tagged(self, raw: dict[str, Any], kinds: list[inspect.StructType], path: str) -> dict[str, Any]:
        """One of several Structs, as one of its keys says."""
        key = str(kinds[0].tag_field)
        choices = [str(kind.tag) for kind in kinds]
        if key not in raw:
            raise ConfigError(
                self._name, path, f"`{key}` is missing", f"add `{key}:`, one of {', '.join(choices)}"
            )
        chosen = next((kind for kind in kinds if kind.tag == raw[key]), None)
        if chosen is None:
            near = did_you_mean(str(raw[key]), choices)
            fix = f"did you mean `{near}`?" if near else "the choices are " + ", ".join(choices)
            raise ConfigError(self._name, f"{path}.{key}", f"{show(raw[key])} is not one of the choices", fix)
        return self._struct(raw, chosen, path)

    def _struct(self, raw: dict[str, Any], kind: inspect.StructType, path: str) -> dict[str, Any]:
        fields = {field.encode_name: field for field in kind.fields}
        for key in raw:
            if key == kind.tag_field:
                continue
            if key not in fields:
                raise ConfigError(self._name, f"{path}.{key}", "unknown key", _suggest(key, fields))
        for field in fields.values():
            if field.required and field.encode_name not in raw:
                raise ConfigError(
                    self._name, path, f"`{field.encode_name}` is missing", f"add `{field.encode_name}:` here"
                )
        shaped = {}
        for key, value in raw.items():
            if key == kind.tag_field:
                shaped[key] = value
                continue
            inner = _bare(fields[key].type)
            if value is None and isinstance(inner, inspect.StructType | inspect.DictType):
                raise ConfigError(self._name, f"{path}.{key}", "nothing follows", "indent its keys below it")
            shaped[key] = self.value(value, fields[key].type, f"{path}.{key}")
        return shaped

    def _leaf(self, raw: Any, path: str, extra: Mapping[str, Any] | None) -> Any:
        if isinstance(raw, float) and not math.isfinite(raw):
            raise ConfigError(self._name, path, f"{raw} is not a finite number", "write a number")
        if not isinstance(raw, str):
            return raw
        if extra and extra.get("env"):
            return self._expand(raw, path)
        if "${" in raw:
            raise ConfigError(
                self._name, path, "`${...}` is not replaced here", "only hosts, paths and URLs may use it"
            )
        return self._bytes(raw, path) if extra and extra.get("size") else raw

    def _bytes(self, raw: str, path: str) -> int:
        match = _SIZE.fullmatch(raw)
        if match is None:
            raise ConfigError(
                self._name, path, f"{show(raw)} is not a size", "write bytes, or as in 10MiB or 2GiB"
            )
        number, unit = match.groups()
        size = int(float(number) * _FACTORS[unit]) if "." in number else int(number) * _FACTORS[unit]
        if size > _MOST_BYTES:  # a snapshot has no place for just any number
            raise ConfigError(self._name, path, f"{raw} is more than any machine has", "write a smaller size")
        return size

    def _expand(self, raw: str, path: str) -> str:
        if raw.rfind("${") > raw.rfind("}"):  # also, of many each would be looked for an end of to the end
            raise ConfigError(self._name, path, "`${` without a `}`", "write ${NAME} or ${NAME:-default}")

        def put(match: re.Match[str]) -> str:
            name, dash, fallback = match.group(1).partition(":-")
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    self._name,
                    path,
                    f"`{match.group(0)}` names no variable",
                    "write ${NAME} or ${NAME:-default}",
                )
            value = self._environ.get(name, "")
            if not value and not dash:
                raise ConfigError(
                    self._name,
                    path,
                    f"environment variable {name} is not set",
                    f"set it, or write ${{{name}:-default}}",
                )
            return value or fallback

        return _VARIABLE.sub(put, raw)


def _bare(kind: inspect.Type) -> inspect.Type:
    return kind.type if isinstance(kind, inspect.Metadata) else kind


def _suggest(key: str, fields: Mapping[str, Any]) -> str:
    near = did_you_mean(key, fields) or next((f for f in fields if f.rpartition("_")[0] == key), None)
    if near:
        return f"did you mean `{near}`?"
    homes = _homes(key)
    if homes:
        return f"`{key}` belongs under {' or '.join(homes)}"
    return "known here: " + ", ".join(fields)


def _homes(key: str) -> list[str]:
    """Where in the tree a key of this name belongs."""
    found: list[str] = []

    def visit(kind: inspect.Type, path: str) -> None:
        kind = _bare(kind)
        if isinstance(kind, inspect.StructType):
            for field in kind.fields:
                if field.encode_name == key:
                    found.append(f"`{path}`" if path else "the top level")
                visit(field.type, f"{path}.{field.encode_name}".lstrip("."))
        elif isinstance(kind, inspect.UnionType):
            for inner in kind.types:
                visit(inner, path)
        elif isinstance(kind, inspect.DictType):
            visit(kind.value_type, f"{path}.<name>")
        elif isinstance(kind, inspect.VarTupleType):
            visit(kind.item_type, f"{path}[]")

    visit(inspect.type_info(Config), "")
    return found


def _explain(name: str, plain: Any, fault: msgspec.ValidationError) -> None:
    """Raise the ConfigError that says in our words what msgspec found."""
    match = _AT.match(str(fault))
    what = match["what"] if match else str(fault)
    path = (match["path"] if match else None) or "$"
    start, rest, shown = plain, path, path
    if path.startswith(_IN_A_MODEL):
        model = _guilty(plain, str(fault))
        rest = path.removeprefix(_IN_A_MODEL)
        start, shown = plain["models"][model], f"$.models.{model}{rest}"
    if "[...]" in rest and what.startswith("Expected `"):
        entry = _entry(start, rest, what)
        shown, rest = shown.removesuffix(rest) + entry, entry
    value = _at(start, rest)
    raise ConfigError(name, shown, _what(what, value), _fix(what, path, value)) from None


def _guilty(plain: Any, fault: str) -> str:
    """msgspec writes `[...]` for a mapping's key: find the model that is meant."""
    for key, model in plain["models"].items():
        try:
            msgspec.convert({**plain, "models": {key: model}}, Config)
        except msgspec.ValidationError as again:
            if str(again) == fault:
                return str(key)
    raise KeyError(fault)


_TYPES = {"int": int, "float": float, "bool": bool, "null": type(None), "object": dict, "array": list}


def _entry(start: Any, path: str, what: str) -> str:
    """The same of a mapping in which one value alone has the wrong type: the path with its key in it."""
    held = _at(start, path.partition("[...]")[0])
    if path.count("[...]") != 1 or not path.endswith("[...]") or not isinstance(held, dict):
        return path
    got = what.rpartition("`, got `")[2].rstrip("`")
    guilty = [key for key, value in held.items() if _TYPES.get(got) is type(value)]
    return f"{path.removesuffix('[...]')}.{guilty[0]}" if guilty else path


def _at(plain: Any, path: str) -> Any:
    value = plain
    for key, index in re.findall(r"\.([^.\[\]]+)|\[(\d+)\]", path):
        try:
            value = value[key] if key else value[int(index)]
        except (KeyError, IndexError, TypeError):
            return None
    return value


_WORDS = {
    "array": "a list",
    "object": "a mapping",
    "str": "text",
    "int": "a whole number",
    "float": "a number",
}
_WORDS |= {"bool": "true or false", "null": "nothing", "date": "a date", "datetime": "a date and time"}


def _words(kinds: str) -> str:
    return " or ".join(_WORDS.get(k, k) for k in kinds.replace("`", "").split(" | ") if k != "null")


def _what(what: str, value: Any) -> str:
    if got := re.fullmatch(r"Expected `([^`]+)`, got `([^`]+)`", what):
        return f"expected {_words(got[1])}, got {_words(got[2]) or 'nothing'}"
    if got := re.fullmatch(r"Invalid enum value (.*)", what):
        return f"{got[1]} is not one of the choices"
    if got := re.fullmatch(r"Expected `(array|object|str)` of length >= 1", what):
        return f"{_words(got[1])} that must not be empty"
    if got := re.fullmatch(r"Expected `[^`]+` (.*)", what):
        bound = got[1].replace("matching regex", "to match")
        return f"{show(value)} is out of bounds" if bound[0] in "<>" else f"{show(value)} has the wrong form"
    return what[:1].lower() + what[1:]


def _fix(what: str, path: str, value: Any) -> str:
    if re.match(r"Expected `str", what) and isinstance(value, int | float | datetime.date):
        return f'put it in quotes: "{str(value).lower() if isinstance(value, bool) else value}"'
    if re.match(r"Expected `str", what) and isinstance(value, dict) and [*value.values()] == [None]:
        return f'put it in quotes: "{{{next(iter(value))}}}"'  # {port}, which YAML takes for a mapping
    if what.startswith("Expected `array"):
        return "write a list, each item after a dash"
    if what.startswith("Expected `object"):
        return "write its keys below it, indented"
    if re.match(r"Expected `(int|float|bool)", what) and "`, got `" in what:
        return (
            "write true or false" if what.startswith("Expected `bool") else "write a number, without quotes"
        )
    if what.startswith("Invalid enum"):
        choices = _choices(path)
        near = did_you_mean(str(value), choices) or did_you_mean(str(value).upper(), choices)
        return f"did you mean `{near}`?" if near else "the choices are " + ", ".join(choices)
    if got := re.search(r"(<=?|>=?) ([0-9.]+)$", what):
        sign = {">=": "at least", ">": "more than", "<=": "at most", "<": "less than"}[got[1]]
        return f"write {sign} {got[2].removesuffix('.0')}"
    if got := re.search(r"matching regex (.*)$", what):
        if got[1].strip("'") == HEALTH_PATH and not str(value).startswith("/"):
            return "begin it with /"
        return f"it must match {got[1]}"
    return "see docs/configuration.md"


def _choices(path: str) -> list[str]:
    kind: inspect.Type = inspect.type_info(Config)
    for key, _ in re.findall(r"\.([^.\[\]]+)|(\[[^\]]*\])", path):
        while not isinstance(kind, inspect.StructType | inspect.DictType):
            if isinstance(kind, inspect.Metadata):
                kind = kind.type
            elif isinstance(kind, inspect.VarTupleType):
                kind = kind.item_type
            elif isinstance(kind, inspect.UnionType):
                kind = next(t for t in map(_bare, kind.types) if not isinstance(t, inspect.NoneType))
            else:
                return []
        if isinstance(kind, inspect.DictType):
            kind = kind.value_type
        elif key in {f.encode_name for f in kind.fields}:
            kind = next(f.type for f in kind.fields if f.encode_name == key)
    kind = _bare(kind)
    options = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    return [str(v) for o in map(_bare, options) if isinstance(o, inspect.LiteralType) for v in o.values]
