"""What objects of the Kubernetes API may look like: unknown fields and wrong types are found, as with
`fieldValidation=Strict`.

`kube_types.json` has the fields of each type, from the API's own specification (release 1.33; the
ServiceMonitor's from the Prometheus operator's): a type's name, a list
`[...]`, a mapping `{...}`, a JSON type, or `any` where the specification leaves it open; `!` marks what is required.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]
TYPES: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("kube_types.json").read_text())
CRD_FILE = Path(__file__).parents[2] / "deploy" / "kubernetes" / "crd.yaml"

#: plural -> (group, version, kind, namespaced, type)
KINDS: dict[str, tuple[str, str, str, bool, str]] = {
    "pods": ("", "v1", "Pod", True, "V1Pod"),
    "services": ("", "v1", "Service", True, "V1Service"),
    "serviceaccounts": ("", "v1", "ServiceAccount", True, "V1ServiceAccount"),
    "configmaps": ("", "v1", "ConfigMap", True, "V1ConfigMap"),
    "persistentvolumeclaims": ("", "v1", "PersistentVolumeClaim", True, "V1PersistentVolumeClaim"),
    "namespaces": ("", "v1", "Namespace", False, "V1Namespace"),
    "deployments": ("apps", "v1", "Deployment", True, "V1Deployment"),
    "statefulsets": ("apps", "v1", "StatefulSet", True, "V1StatefulSet"),
    "poddisruptionbudgets": ("policy", "v1", "PodDisruptionBudget", True, "V1PodDisruptionBudget"),
    "horizontalpodautoscalers": (
        "autoscaling",
        "v2",
        "HorizontalPodAutoscaler",
        True,
        "V2HorizontalPodAutoscaler",
    ),
    "servicemonitors": ("monitoring.coreos.com", "v1", "ServiceMonitor", True, "MonitoringV1ServiceMonitor"),
    "leases": ("coordination.k8s.io", "v1", "Lease", True, "V1Lease"),
    "roles": ("rbac.authorization.k8s.io", "v1", "Role", True, "V1Role"),
    "rolebindings": ("rbac.authorization.k8s.io", "v1", "RoleBinding", True, "V1RoleBinding"),
    "clusterroles": ("rbac.authorization.k8s.io", "v1", "ClusterRole", False, "V1ClusterRole"),
    "clusterrolebindings": (
        "rbac.authorization.k8s.io",
        "v1",
        "ClusterRoleBinding",
        False,
        "V1ClusterRoleBinding",
    ),
    "customresourcedefinitions": (
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        False,
        "V1CustomResourceDefinition",
    ),
    "vllmmodels": ("vllm.sir-alfred.io", "v1alpha1", "VLLMModel", False, ""),
}
_PLAIN = {"string": str, "boolean": bool, "integer": int, "number": (int, float)}


def faults(value: Any, kind: str, path: str = "") -> Iterator[str]:
    """What a strict server says of a value of a type."""
    if kind == "any":
        return
    if kind in _PLAIN:
        good = isinstance(value, _PLAIN[kind]) and (kind == "boolean" or not isinstance(value, bool))
        if not good:
            yield f'{path}: expected {kind}, got "{type(value).__name__}"'
    elif kind[0] == "[":
        if not isinstance(value, list):
            yield f"{path}: expected list"
            return
        for i, one in enumerate(value):
            yield from faults(one, kind[1:-1], f"{path}[{i}]")
    elif kind[0] == "{":
        if not isinstance(value, dict):
            yield f"{path}: expected map"
            return
        for key, one in value.items():
            yield from faults(one, kind[1:-1], f"{path}.{key}")
    else:
        if not isinstance(value, dict):
            yield f"{path}: expected an object"
            return
        known = {key.lstrip("!"): one for key, one in TYPES[kind].items()}
        for key, one in value.items():
            if key not in known:
                yield f'unknown field "{path}.{key}"'.replace('".', '"')
            elif one is not None:
                yield from faults(one, known[key], f"{path}.{key}")
        for key in TYPES[kind]:
            # what the server fills in by itself is not asked of a client
            if key[0] == "!" and key[1:] not in value:
                yield f"{path}.{key[1:]}: Required value"


def structural(value: Any, schema: Json, path: str = "") -> Iterator[str]:
    """What a structural schema, as a CustomResourceDefinition has it, says of a value."""
    kind = schema.get("type")
    wanted = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}.get(kind or "")
    if kind == "number":
        if isinstance(value, bool) or not isinstance(value, int | float):
            yield f"{path}: must be of type number"
            return
    elif wanted is not None and (
        not isinstance(value, wanted) or (kind == "integer" and isinstance(value, bool))
    ):
        yield f"{path}: must be of type {kind}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: must be one of {schema['enum']}"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{path}: does not match {schema['pattern']}"
    if "minLength" in schema and len(value) < schema["minLength"]:
        yield f"{path}: too short"
    if "maxLength" in schema and len(value) > schema["maxLength"]:
        yield f"{path}: too long"
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and (value < low or (schema.get("exclusiveMinimum") and value == low)):
        yield f"{path}: must be greater than {low}"
    if high is not None and value > high:
        yield f"{path}: must be at most {high}"
    for key, one in (value if isinstance(value, dict) else {}).items():
        inner = schema.get("properties", {}).get(key)
        if inner is not None:
            yield from structural(one, inner, f"{path}.{key}")
        elif "properties" in schema:
            yield f'unknown field "{path}.{key}"'.replace('".', '"')
    for key in schema.get("required", ()):
        if key not in value:
            yield f"{path}.{key}: Required value"


def vllm_model_schema() -> Json:
    """Of the CustomResourceDefinition in deploy/kubernetes."""
    crd = yaml.safe_load(CRD_FILE.read_text())
    (version,) = crd["spec"]["versions"]
    schema: Json = version["schema"]["openAPIV3Schema"]
    return schema


def object_faults(found: Json, plural: str) -> list[str]:
    """All that a strict server says of an object."""
    group, version, kind, _, name = KINDS[plural]
    said = []
    if found.get("kind") != kind:
        said.append(f"kind: expected {kind}")
    if found.get("apiVersion") != (f"{group}/{version}" if group else version):
        said.append("apiVersion: does not match the path")
    if name:
        return said + list(faults(found, name))
    rest = {key: value for key, value in found.items() if key not in ("apiVersion", "kind", "metadata")}
    schema = vllm_model_schema()
    schema = schema | {
        "properties": {
            key: value
            for key, value in schema["properties"].items()
            if key not in ("apiVersion", "kind", "metadata")
        }
    }
    return (
        said
        + list(faults(found.get("metadata", {}), "V1ObjectMeta", ".metadata"))
        + list(structural(rest, schema))
    )
