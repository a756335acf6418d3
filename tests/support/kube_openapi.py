"""The API's types as the OpenAPI 2 document that kubectl validates by, in the one form it takes: protocol buffers.

The messages are gnostic's `openapi.v2`: Document{swagger 1, info 2, paths 8, definitions 9}; NamedSchema{name 1,
value 2}; Schema{_ref 1, required 19, additional_properties 21, type 22, items 23, properties 25, vendor_extension 31}.
"""

import json
from collections.abc import Mapping
from typing import Any

from .kube_schema import KINDS, TYPES, vllm_model_schema

_PLAIN = ("string", "boolean", "integer", "number")


def document() -> bytes:
    """Everything in TYPES, and VLLMModel as its CustomResourceDefinition has it."""
    kinds = {name: (group, version, kind) for group, version, kind, _, name in KINDS.values()}
    named = [
        _named(name, _object(fields) + (_kind(*kinds[name]) if name in kinds else b""))
        for name, fields in TYPES.items()
    ]
    schema = vllm_model_schema()
    schema["properties"]["metadata"] = {"$ref": "#/definitions/V1ObjectMeta"}
    group, version, kind, _, _ = KINDS["vllmmodels"]
    named.append(_named("VLLMModel", _structural(schema) + _kind(group, version, kind)))
    info = _field(1, "Kubernetes") + _field(2, "v1.33.0")
    return _field(1, "2.0") + _field(2, info) + _field(8, b"") + _field(9, b"".join(named))


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _field(number: int, value: bytes | str) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(raw)) + raw


def _named(name: str, schema: bytes) -> bytes:
    return _field(1, _field(1, name) + _field(2, schema))


def _kind(group: str, version: str, kind: str) -> bytes:
    words = json.dumps([{"group": group, "version": version, "kind": kind}])
    return _field(31, _field(1, "x-kubernetes-group-version-kind") + _field(2, _field(2, words)))


def _object(fields: Mapping[str, str]) -> bytes:
    out = b"".join(_field(19, key[1:]) for key in fields if key[0] == "!")
    # "object" itself has properties, each a NamedSchema
    named = b"".join(_named(key.lstrip("!"), _schema(kind)) for key, kind in fields.items())
    return out + _field(22, _field(1, "object")) + _field(25, named)


def _schema(kind: str) -> bytes:
    if kind == "any":
        return b""
    if kind in _PLAIN:
        return _field(22, _field(1, kind))
    if kind[0] == "[":
        return _field(22, _field(1, "array")) + _field(23, _field(1, _schema(kind[1:-1])))
    if kind[0] == "{":
        return _field(22, _field(1, "object")) + _field(21, _field(1, _schema(kind[1:-1])))
    return _field(1, f"#/definitions/{kind}")


def _structural(schema: Mapping[str, Any]) -> bytes:
    if "$ref" in schema:
        return _field(1, schema["$ref"])
    out = b"".join(_field(19, key) for key in schema.get("required", ()))
    if "type" in schema:
        out += _field(22, _field(1, schema["type"]))
    if "properties" in schema:
        inner = schema["properties"]
        out += _field(25, b"".join(_named(key, _structural(one)) for key, one in inner.items()))
    return out
