"""The gateway's manifests fit each other, its image and its configuration."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from penstock.gateway.config import Machine, load
from penstock.workers import families

from ..support.kube_schema import faults

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
MIB = 1 << 20
ROOM = Machine(cores=frozenset({0, 1}), max_descriptors=1 << 20)


def read(*names: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The objects of some files, by kind and name."""
    found = [one for name in names for one in yaml.safe_load_all((KUBERNETES / name).read_text())]
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


OBJECTS = read("gateway.yaml", "hpa.yaml", "rbac.yaml", "monitoring/servicemonitor.yaml")
SPEC: dict[str, Any] = OBJECTS["Deployment", "penstock"]["spec"]
POD: dict[str, Any] = SPEC["template"]["spec"]
LABELS: dict[str, str] = SPEC["template"]["metadata"]["labels"]
(GATE,) = POD["containers"]
PORTS = {one["name"]: one["containerPort"] for one in GATE["ports"]}
CONFIG = load(
    OBJECTS["ConfigMap", "penstock"]["data"]["penstock.yaml"],
    {
        "PENSTOCK_ADMIN_KEY": "k" * 16,
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "KUBERNETES_SERVICE_PORT": "443",
    },
    machine=ROOM,
)


def mib(size: str) -> int:
    """A quantity of memory."""
    return int(size[:-2]) * {"Mi": 1, "Gi": 1024}[size[-2:]]


def volume(path: str) -> dict[str, Any]:
    """What is mounted at a path."""
    (name,) = [one["name"] for one in GATE["volumeMounts"] if one["mountPath"] == path]
    (found,) = [one for one in POD["volumes"] if one["name"] == name]
    return dict(found)


def test_the_configuration_listens_where_the_ports_say_and_is_mounted_where_the_image_reads_it():
    assert (CONFIG.listen.port, CONFIG.admin.port) == (PORTS["http"], PORTS["admin"])
    assert (CONFIG.listen.host, CONFIG.admin.host) == ("0.0.0.0", "0.0.0.0")
    assert volume("/etc/penstock")["configMap"] == {"name": "penstock"}
    assert '"/etc/penstock/penstock.yaml"' in (DEPLOY / "docker/Dockerfile").read_text()


def test_the_keys_variable_is_the_configurations_and_comes_from_the_secret_that_the_monitor_reads():
    (variable,) = GATE["env"]
    secret = variable["valueFrom"]["secretKeyRef"]
    (endpoint,) = OBJECTS["ServiceMonitor", "penstock"]["spec"]["endpoints"]

    assert variable["name"] == CONFIG.admin.key_env
    assert endpoint["authorization"]["credentials"] == secret
    assert "value" not in variable


def test_a_pod_is_given_longer_than_its_drain_and_the_drain_begins_after_others_know():
    assert POD["terminationGracePeriodSeconds"] > CONFIG.workers.drain_timeout_s
    ready = GATE["readinessProbe"]
    assert CONFIG.workers.drain_delay_s >= ready["periodSeconds"] * ready["failureThreshold"] + 5


def test_a_pod_is_ready_by_ready_and_restarted_by_health_alone():
    assert {name: GATE[name]["httpGet"] for name in ("readinessProbe", "livenessProbe", "startupProbe")} == {
        "readinessProbe": {"path": "/ready", "port": "http"},
        "livenessProbe": {"path": "/health", "port": "http"},
        "startupProbe": {"path": "/health", "port": "http"},
    }


def test_shared_memory_has_room_for_the_cache_and_the_pod_for_both():
    shm = volume("/dev/shm")["emptyDir"]
    assert shm["medium"] == "Memory"
    assert CONFIG.cache.l1.size is not None
    assert mib(shm["sizeLimit"]) >= CONFIG.cache.l1.size // MIB + 64
    assert mib(GATE["resources"]["limits"]["memory"]) > 2 * mib(shm["sizeLimit"])


def test_it_runs_as_the_images_user_and_can_write_only_where_it_must():
    user = f"{POD['securityContext']['runAsUser']}:{POD['securityContext']['runAsGroup']}"
    assert f"USER {user}" in (DEPLOY / "docker/Dockerfile").read_text()
    assert POD["securityContext"]["runAsNonRoot"] is True
    inside = GATE["securityContext"]
    assert (inside["readOnlyRootFilesystem"], inside["allowPrivilegeEscalation"]) == (True, False)
    assert {one["mountPath"] for one in GATE["volumeMounts"] if not one.get("readOnly")} == {
        *("/dev/shm", "/tmp", "/var/lib/penstock")
    }


def test_whatever_selects_pods_selects_these():
    budget = OBJECTS["PodDisruptionBudget", "penstock"]["spec"]
    spread = POD["topologySpreadConstraints"]
    selectors = [SPEC["selector"], budget["selector"], *(one["labelSelector"] for one in spread)]
    assert [one["matchLabels"] for one in selectors] == [LABELS] * 4
    services = [OBJECTS["Service", name]["spec"] for name in ("penstock", "penstock-each")]
    for service in services:
        assert service["selector"] == LABELS
        assert {one["targetPort"] for one in service["ports"]} <= set(PORTS)
    assert services[1]["clusterIP"] == "None"
    assert [one["topologyKey"] for one in spread] == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]


def test_the_monitor_selects_one_service_whose_job_is_the_rules():
    monitor = OBJECTS["ServiceMonitor", "penstock"]["spec"]
    wanted = monitor["selector"]["matchLabels"].items()
    services = [one for (kind, _), one in OBJECTS.items() if kind == "Service"]
    (scraped,) = [one for one in services if wanted <= one["metadata"].get("labels", {}).items()]

    assert {one["port"] for one in monitor["endpoints"]} <= {one["name"] for one in scraped["spec"]["ports"]}
    job = scraped["metadata"]["labels"][monitor["jobLabel"]]
    assert f'up{{job="{job}"}}' in (DEPLOY / "prometheus/rules.yml").read_text()


def test_the_autoscaler_scales_this_deployment_by_a_metric_that_there_is_one_at_a_time():
    scaler = OBJECTS["HorizontalPodAutoscaler", "penstock"]["spec"]
    (metric,) = scaler["metrics"]

    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "penstock"}
    assert metric["pods"]["metric"]["name"] == families.AUTOSCALE_SIGNAL.name
    assert "replicas" not in SPEC, "an apply would undo what the autoscaler decided"
    for way in ("scaleUp", "scaleDown"):
        assert scaler["behavior"][way]["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 300}]
        assert scaler["behavior"][way]["stabilizationWindowSeconds"] == 0


@pytest.mark.parametrize(
    ("seen", "replicas"),
    [([2, 1, 1], 4), ([2, 2, 2], 4), ([1, 1, 1], 3), ([0.5, 1, 1], 3), ([0.5, 0.5, 0.5], 2), ([0.5, 0.5], 2)],
)
def test_what_the_autoscaler_makes_of_the_signals(seen, replicas):
    """By the algorithm of the documentation: the mean over the target, rounded up; then the policies."""
    scaler = OBJECTS["HorizontalPodAutoscaler", "penstock"]["spec"]
    target = float(scaler["metrics"][0]["pods"]["target"]["averageValue"])
    ratio = sum(seen) / len(seen) / target
    asked = len(seen) if abs(ratio - 1) <= 0.1 else -int(-len(seen) * ratio // 1)
    step = {way: scaler["behavior"][way]["policies"][0]["value"] for way in ("scaleUp", "scaleDown")}
    allowed = max(
        min(asked, len(seen) + step["scaleUp"]), len(seen) - step["scaleDown"], scaler["minReplicas"]
    )

    assert allowed == replicas


def test_what_the_gateway_scales_is_allowed_and_its_servers_are_reached_in_its_own_zone():
    pool = CONFIG.models["qwen3"].pool
    assert pool is not None
    target = yaml.safe_load(OBJECTS["ConfigMap", "penstock"]["data"]["penstock.yaml"])["models"]["qwen3"]
    name = target["pool"]["scale"]["name"]
    roles = [rule for (kind, _), one in OBJECTS.items() if kind == "Role" for rule in one["rules"]]
    allowed = {n for rule in roles if "deployments/scale" in rule["resources"] for n in rule["resourceNames"]}
    servers = read("examples/deployment.yaml")
    service = servers["Service", "vllm"]["spec"]

    assert name in allowed
    assert ("Deployment", name) in servers
    assert target["backends"] == [{"url": f"http://vllm:{service['ports'][0]['port']}"}]
    assert (service["type"], service["trafficDistribution"]) == ("ClusterIP", "PreferClose")
    assert "clusterIP" not in service
    assert POD["serviceAccountName"] == "penstock"
    assert ("ServiceAccount", "penstock") in OBJECTS
    leases = OBJECTS["Role", "penstock-leases"]["rules"][0]["resources"]
    assert (CONFIG.pools.lease, leases) == ("kubernetes", ["leases"])


@pytest.mark.parametrize(
    ("kind", "its_type", "field"),
    [
        ("HorizontalPodAutoscaler", "V2HorizontalPodAutoscaler", "maxReplica"),
        ("PodDisruptionBudget", "V1PodDisruptionBudget", "minimum"),
        ("ServiceMonitor", "MonitoringV1ServiceMonitor", "endpoint"),
    ],
)
def test_a_field_that_is_not_there_is_found(kind, its_type, field):
    """In kinds that no other manifests have; kubectl's own validation is in test_kube_manifests."""
    good = OBJECTS[kind, "penstock"]
    assert list(faults(good, its_type)) == []
    wrong = good | {"spec": good["spec"] | {field: 3}}
    assert list(faults(wrong, its_type)) == [f'unknown field "spec.{field}"']
