"""The rules of RBAC in deploy/kubernetes."""

from pathlib import Path

import yaml

from .kube_schema import Json

RBAC_FILE = Path(__file__).parents[2] / "deploy" / "kubernetes" / "rbac.yaml"


def rules_of(*names: str) -> list[Json]:
    """Of Roles and ClusterRoles by name."""
    found = {
        one["metadata"]["name"]: one["rules"]
        for one in yaml.safe_load_all(RBAC_FILE.read_text())
        if one["kind"] in ("Role", "ClusterRole")
    }
    return [rule for name in names for rule in found[name]]


def granted(rules: list[Json]) -> set[tuple[str, str, str]]:
    """(group, resource, verb) of everything that they allow."""
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
