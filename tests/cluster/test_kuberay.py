"""The files for Kubernetes, checked against KubeRay 1.7, and what each pod is told of passwords."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import PROJECT
from tests.support.kuberay import changed, refusals, schema_errors

FILES = sorted((PROJECT / "cluster").glob("kuberay*.yaml"))
README = PROJECT / "cluster" / "README.md"
Document = dict[str, Any]


def documents(path: Path) -> list[Document]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each is not None]


def named(document: Document) -> str:
    metadata = document["metadata"]
    return f"{document['kind']} {metadata.get('name') or metadata['generateName']}"


ALL = [(path, document) for path in FILES for document in documents(path)]
SHARED = {named(document): document for path, document in ALL if path.name == "kuberay.yaml"}
CLUSTER = SHARED["RayCluster mcrnn"]
SEARCH, SEARCH_OWN_CLUSTER = (
    documents(PROJECT / "cluster" / name)[0] for name in ("kuberay-search.yaml", "kuberay-search-own-cluster.yaml")
)
HEAD = "spec.headGroupSpec.template.spec"
GPU = "spec.workerGroupSpecs.0"


def pods(document: Document) -> dict[str, Document]:
    """The pods that an object makes, by the names of their containers."""
    spec = document.get("spec", {})
    spec = spec.get("rayClusterSpec", spec)
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]] if "headGroupSpec" in spec else [spec]
    found = [group["template"]["spec"] for group in groups if "template" in group]
    return {pod["containers"][0]["name"]: pod for pod in found}


PODS = [pytest.param(name, pod, id=f"{path.stem}-{name}") for path, each in ALL for name, pod in pods(each).items()]


@pytest.mark.parametrize(
    ("path", "document"), [pytest.param(*each, id=f"{each[0].stem}-{named(each[1])}") for each in ALL]
)
def test_kuberay_takes_the_file(path: Path, document: Document) -> None:
    assert schema_errors(document) == []
    assert refusals(document) == []


@pytest.mark.parametrize(
    ("document", "path", "value"),
    [
        (CLUSTER, "apiVersion", "ray.io/v1alpha1"),
        (CLUSTER, "spec.enableAutoscaling", True),
        (CLUSTER, "spec.authOptions.mode", "basic"),
        (CLUSTER, "spec.headGroupSpec", None),
        (CLUSTER, f"{HEAD}.serviceAcountName", "mcrnn"),
        (CLUSTER, f"{HEAD}.containers.0.env.1.value", 120),
        (CLUSTER, f"{HEAD}.containers.0.ports.0.containerPort", "6379"),
        (CLUSTER, f"{HEAD}.containers.0.resources.limits.memory", "8 GB"),
        (CLUSTER, "spec.headGroupSpec.rayStartParams.num-cpus", 0),
        (CLUSTER, f"{GPU}.groupName", None),
        (CLUSTER, f"{GPU}.maxReplicas", "8"),
        (SEARCH, "spec.retries", 3),
        (SEARCH, "spec.entrypoint", ["python", "-m", "mcrnn.tune"]),
        (SEARCH_OWN_CLUSTER, "spec.rayClusterSpec.autoscalerOptions.idleTimeoutMinutes", 5),
        (SHARED["Deployment mlflow"], "spec.replica", 1),
        (SHARED["Deployment mlflow"], "spec.template.spec.containers.0.envFrom.1.secret", {"name": "mcrnn-tracking"}),
        (SHARED["Service mlflow"], "spec.ports.0.port", "5000"),
        (SHARED["ConfigMap mcrnn"], "data.MCRNN_MEMORY", 4),
    ],
)
def test_definitions_refuse(document: Document, path: str, value: Any) -> None:
    assert schema_errors(changed(document, path, value)) != []


@pytest.mark.parametrize(
    ("document", "path", "value", "reason"),
    [
        (SEARCH, "spec.backoffLimit", 3, "backoffLimit with clusterSelector"),
        (SEARCH, "spec.suspend", True, "suspend with clusterSelector"),
        (SEARCH, "spec.clusterSelector", None, "needs rayClusterSpec or clusterSelector"),
        (SEARCH, "spec.clusterSelector", {"cluster": "mcrnn"}, "names no cluster"),
        (SEARCH, "spec.ttlSecondsAfterFinished", 300, "ttlSecondsAfterFinished without"),
        (SEARCH, "spec.submissionMode", "SidecarMode", "SidecarMode with clusterSelector"),
        (SEARCH, "spec.deletionStrategy", {}, "feature gate"),
        (SEARCH, "spec.activeDeadlineSeconds", 0, "deadline"),
        (SEARCH, "spec.runtimeEnvYAML", "working_dir", "no mapping"),
        (SEARCH, "metadata.name", "mcrnn-ns", "either name or generateName"),
        (SEARCH, "metadata.generateName", "a-search-with-a-name-that-is-rather-too-long-", "more than 47"),
        (SEARCH, "metadata.generateName", "mcrnn_ns-", "DNS"),
        (SEARCH, "metadata.label", {}, "no field label"),
        (SEARCH_OWN_CLUSTER, "spec.shutdownAfterJobFinishes", None, "ttlSecondsAfterFinished without"),
        (SEARCH_OWN_CLUSTER, "spec.backoffLimit", -1, "negative"),
        (SEARCH_OWN_CLUSTER, "spec.submissionMode", "InteractiveMode", "backoffLimit with InteractiveMode"),
        (SEARCH_OWN_CLUSTER, "spec.rayClusterSpec.rayVersion", "2.51.0", "tokens need"),
        (SEARCH_OWN_CLUSTER, "spec.rayClusterSpec.authOptions.enableK8sTokenAuth", True, "in a RayJob"),
        (CLUSTER, "spec.tlsOptions", {}, "feature gate"),
        (CLUSTER, f"{HEAD}.containers", [], "needs a container"),
        (CLUSTER, "spec.headGroupSpec.resources", {"CPU": "0"}, "given twice"),
        (CLUSTER, f"{GPU}.minReplicas", 9, "greater than maxReplicas"),
        (CLUSTER, f"{GPU}.suspend", True, "suspended"),
        (CLUSTER, f"{GPU}.idleTimeoutSeconds", 60, "version 2"),
        (CLUSTER, f"{HEAD}.containers.0.env.1", {"name": "RAY_REDIS_ADDRESS"}, "gcsFaultToleranceOptions"),
    ],
)
def test_operator_refuses(document: Document, path: str, value: Any, reason: str) -> None:
    assert any(reason in each for each in refusals(changed(document, path, value)))


def secrets(pod: Document) -> set[str]:
    """The names of the secrets that a pod gets."""
    (container,) = pod["containers"]
    assert not any("secretKeyRef" in each.get("valueFrom", {}) for each in container["env"])
    assert "volumes" not in pod
    return {each["secretRef"]["name"] for each in container["envFrom"] if "secretRef" in each}


@pytest.mark.parametrize(("name", "pod"), PODS)
def test_pods_get_only_the_secrets_that_they_need(name: str, pod: Document) -> None:
    expected = {
        "mlflow": {"mcrnn-tracking", "mcrnn-database"},
        "ray-head": {"mcrnn-tracking"},
        "ray-worker": set(),
    }
    assert secrets(pod) == expected[name]
    assert pod.get("automountServiceAccountToken", True) == (name == "ray-head")  # whose autoscaler asks Kubernetes


def test_no_secret_has_the_name_of_the_one_with_the_token_of_the_cluster() -> None:
    used = {secret for _, document in ALL for pod in pods(document).values() for secret in secrets(pod)}
    assert used.isdisjoint(document["metadata"]["name"] for _, document in ALL if document["kind"] == "RayCluster")
    made = dict(re.findall(r"kubectl create secret generic (\S+) ((?:\\\n|[^\n])*)", README.read_text()))
    assert set(made) == used
    assert re.findall(r"--from-literal=(\w+)", made["mcrnn-database"]) == ["MCRNN_MLFLOW_DATABASE"]
    assert "MCRNN_MLFLOW_DATABASE" not in made["mcrnn-tracking"]


@pytest.mark.parametrize(("name", "pod"), [each for each in PODS if each.values[0] != "mlflow"])
def test_ray_asks_for_the_token_whatever_its_version_does_by_default(name: str, pod: Document) -> None:
    assert {"name": "RAY_AUTH_MODE", "value": "token"} in pod["containers"][0]["env"]


def test_files_fit_together() -> None:
    spec = CLUSTER["spec"]
    assert f"\nray=={spec['rayVersion']}\n" in (PROJECT / "constraints.txt").read_text()
    assert f"rayproject/ray:{spec['rayVersion']}-" in (PROJECT / "cluster" / "Dockerfile").read_text()
    assert spec["authOptions"] == {"mode": "token"}
    assert SEARCH["spec"]["clusterSelector"] == {"ray.io/cluster": CLUSTER["metadata"]["name"]}
    assert SEARCH_OWN_CLUSTER["spec"]["rayClusterSpec"] == spec
    assert SEARCH["spec"]["entrypoint"] == SEARCH_OWN_CLUSTER["spec"]["entrypoint"]
    assert (PROJECT / SEARCH["spec"]["entrypoint"].split()[-1]).exists()
    (workers,) = spec["workerGroupSpecs"]
    assert workers["minReplicas"] == 0 < workers["maxReplicas"]
    assert "replicas" not in workers  # which `kubectl apply` would set back while searches run
    assert workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    every = [pod for _, document in ALL for pod in pods(document).values()]
    assert len({pod["containers"][0]["image"] for pod in every}) == 1
    assert all({"configMapRef": {"name": "mcrnn"}} in pod["containers"][0]["envFrom"] for pod in every)
    server, service = SHARED["Deployment mlflow"]["spec"], SHARED["Service mlflow"]["spec"]
    assert service["selector"] == server["template"]["metadata"]["labels"] == server["selector"]["matchLabels"]
    (port,) = service["ports"]
    assert SHARED["ConfigMap mcrnn"]["data"]["MLFLOW_TRACKING_URI"] == f"http://mlflow:{port['port']}"


def test_readme_applies_what_has_a_name_and_creates_what_is_new_each_time() -> None:
    commands = re.findall(r"kubectl (apply|create) -f (cluster/\S+\.yaml)", README.read_text())
    assert {path for _, path in commands} == {str(path.relative_to(PROJECT)) for path in FILES}
    for verb, path in commands:
        new = any("generateName" in each["metadata"] for each in documents(PROJECT / path))
        assert verb == ("create" if new else "apply"), path
