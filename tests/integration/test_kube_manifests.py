"""deploy/kubernetes passes kubectl's own client-side validation, against the API's types, without a cluster."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import yaml

from penstock.workers.pools.providers.kube_pod import VllmModelSpec

from ..support.kube_api import KubeApiDouble
from ..support.kube_schema import object_faults, structural, vllm_model_schema

DEPLOY = Path(__file__).parents[2] / "deploy" / "kubernetes"
FILES = sorted(
    str(path.relative_to(DEPLOY)) for path in DEPLOY.rglob("*.yaml") if path.name != "kustomization.yaml"
)
pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


@pytest.fixture(scope="module")
def server() -> Iterator[KubeApiDouble]:
    with KubeApiDouble() as double:
        yield double


def kubectl(tmp_path: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"KUBECONFIG": "/dev/null", "HOME": str(tmp_path), "KUBECACHEDIR": str(tmp_path)}
    return subprocess.run(
        ["kubectl", *argv], capture_output=True, text=True, env=environ, timeout=60, check=False
    )


def validate(server: KubeApiDouble, tmp_path: Path, file: Path) -> subprocess.CompletedProcess[str]:
    return kubectl(
        tmp_path, f"--server={server.url}", "create", "--dry-run=client", "--validate=strict", "-f", str(file)
    )


@pytest.mark.parametrize("file", FILES)
def test_a_manifest_passes_kubectls_validation(server, tmp_path, file):
    done = validate(server, tmp_path, DEPLOY / file)

    assert done.returncode == 0, done.stderr
    objects = [one for one in yaml.safe_load_all((DEPLOY / file).read_text()) if one]
    assert done.stdout.count("created (dry run)") == len(objects)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("verbs: [get]", 'unknown field "verb"'),
        ("resources: [vllmmodels]", 'unknown field "resource"'),
    ],
)
def test_a_manifest_with_a_field_that_is_not_there_does_not_pass(server, tmp_path, text, fault):
    """Or the tests above would say nothing."""
    wrong = fault.split('"')[1] + ":"
    file = tmp_path / "rbac.yaml"
    file.write_text(
        (DEPLOY / "rbac.yaml").read_text().replace(text, text.replace(text.partition(":")[0] + ":", wrong))
    )

    done = validate(server, tmp_path, file)

    assert done.returncode != 0
    assert fault in done.stderr


def test_a_vllm_model_with_a_field_that_is_not_there_does_not_pass(server, tmp_path):
    file = tmp_path / "model.yaml"
    file.write_text((DEPLOY / "examples/vllmmodel.yaml").read_text().replace("maxModelLen", "maxModelLength"))

    done = validate(server, tmp_path, file)

    assert done.returncode != 0
    assert 'unknown field "maxModelLength"' in done.stderr


def test_the_kustomization_builds_and_its_bindings_name_the_account_where_it_is(tmp_path):
    done = kubectl(tmp_path, "kustomize", str(DEPLOY))

    assert done.returncode == 0, done.stderr
    objects = list(yaml.safe_load_all(done.stdout))
    (account,) = [one for one in objects if one["kind"] == "ServiceAccount"]
    bindings = [one for one in objects if one["kind"].endswith("RoleBinding")]
    written = [
        (one["kind"], one["metadata"]["name"])
        for file in FILES
        if not file.startswith("examples/")
        for one in yaml.safe_load_all((DEPLOY / file).read_text())
        if one
    ]
    assert sorted((one["kind"], one["metadata"]["name"]) for one in objects) == sorted(written)
    cluster_wide = {"CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"}
    assert {one["metadata"].get("namespace") for one in objects if one["kind"] not in cluster_wide} == {
        account["metadata"]["namespace"]
    }
    for binding in bindings:
        (subject,) = binding["subjects"]
        assert (subject["name"], subject["namespace"]) == (
            account["metadata"]["name"],
            account["metadata"]["namespace"],
        )
        roles = [one for one in objects if one["kind"] == binding["roleRef"]["kind"]]
        assert binding["roleRef"]["name"] in [one["metadata"]["name"] for one in roles]


def test_no_rule_has_a_wildcard_or_reads_a_secret():
    for one in yaml.safe_load_all((DEPLOY / "rbac.yaml").read_text()):
        for rule in one.get("rules", ()):
            assert "*" not in {*rule["verbs"], *rule["apiGroups"], *rule["resources"]}
            assert not {"secrets", "pods/exec", "configmaps"} & set(rule["resources"])


def test_the_definition_has_the_fields_that_a_pod_is_made_from():
    spec = vllm_model_schema()["properties"]["spec"]
    fields = {field.encode_name for field in msgspec.structs.fields(VllmModelSpec)}

    assert set(spec["properties"]) == fields


def test_the_example_is_what_the_definition_and_the_gateway_take():
    example = yaml.safe_load((DEPLOY / "examples/vllmmodel.yaml").read_text())

    assert object_faults(example, "vllmmodels") == []
    assert list(structural(example["spec"] | {"modelName": ""}, vllm_model_schema()["properties"]["spec"]))
    assert msgspec.convert(example["spec"], VllmModelSpec).model_name == example["spec"]["modelName"]
