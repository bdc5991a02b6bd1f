"""What KubeRay 1.7 takes: its definitions, checked strictly, and the rules by which its operator refuses an object.

The definitions are in tests/cluster/kuberay-1.7. Kubernetes drops fields that a definition does not name without a
word; here they are errors, for a field that is dropped does not do what its author meant.
"""

from __future__ import annotations

import copy
import functools
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

DEFINITIONS = Path(__file__).parent.parent / "cluster" / "kuberay-1.7" / "definitions.json.gz"
CLUSTER_NAME, JOB_NAME = 53, 47
"""Greatest numbers of characters of the names of a RayCluster and a RayJob."""
RANDOM_SUFFIX = "xxxxx"
"""What Kubernetes appends to `generateName`: five characters."""
METADATA = {"name", "generateName", "namespace", "labels", "annotations"}
GATED = {"historyServerOptions", "networkPolicy", "tlsOptions"}
"""Fields of a RayCluster that the operator refuses unless a feature gate is opened."""
AUTH_SINCE, KUBERNETES_TOKENS_SINCE, PRIORITY_SINCE = (2, 52), (2, 55), (2, 56)
"""Versions of Ray since which tokens, tokens of Kubernetes, and the priorities of worker groups exist."""
DEPLOYMENT = {
    *("replicas", "selector", "template", "strategy", "minReadySeconds", "paused"),
    *("progressDeadlineSeconds", "revisionHistoryLimit"),
}


def write_definitions(*sources: Path, target: Path = DEFINITIONS) -> None:
    """Write the version v1 of KubeRay's definitions without their descriptions and statuses, compressed.

    Args:
        sources: ray.io_rayclusters.yaml and ray.io_rayjobs.yaml of a release of KubeRay.
        target: the file.
    """
    definitions = {}
    for source in sources:
        definition = yaml.safe_load(source.read_text())["spec"]
        (version,) = (each for each in definition["versions"] if each["name"] == "v1")
        schema = version["schema"]["openAPIV3Schema"]
        schema["properties"].pop("status", None)
        definitions[definition["names"]["kind"]] = _without_descriptions(schema)
    content = json.dumps(definitions, sort_keys=True, separators=(",", ":")).encode()
    target.write_bytes(gzip.compress(content, 9, mtime=0))


def _without_descriptions(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_descriptions(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    # a description is text; a property may be called "description"
    return {
        key: _without_descriptions(value)
        for key, value in schema.items()
        if not (key == "description" and isinstance(value, str))
    }


@functools.cache
def schemas() -> dict[str, Any]:
    """Return the strict schema of each kind: of KubeRay's own, and of those that are parts of them."""
    kinds = {kind: _strict(schema) for kind, schema in json.loads(gzip.decompress(DEFINITIONS.read_bytes())).items()}
    head = kinds["RayCluster"]["properties"]["spec"]["properties"]["headGroupSpec"]["properties"]
    return kinds | {"PodTemplate": head["template"], "Service": head["headService"]}


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with unknown fields as errors; fields with a default need not be given."""
    schema = dict(schema)
    if "properties" in schema:
        properties = {name: _strict(each) for name, each in schema["properties"].items()}
        schema["properties"] = properties
        schema["required"] = [name for name in schema.get("required", []) if "default" not in properties[name]]
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            schema[key] = _strict(schema[key])
    return schema


def schema_errors(document: dict[str, Any]) -> list[str]:
    """Return what is wrong with a document by its definition.

    KubeRay's definitions contain those of pods and services, by which Deployments and Services are checked.
    """
    kind = document["kind"]
    if kind == "ConfigMap":
        return [f"data.{key}: not text" for key, value in document["data"].items() if not isinstance(value, str)]
    if kind == "Deployment":
        unknown = [f"spec has no field {name}" for name in set(document["spec"]) - DEPLOYMENT]
        return unknown + _errors("PodTemplate", document["spec"]["template"], "spec.template.")
    if kind == "Service":
        return _errors("Service", document)
    expected = document["apiVersion"] == "ray.io/v1"
    return ([] if expected else ["apiVersion: KubeRay's is ray.io/v1"]) + _errors(kind, document)


def _errors(kind: str, document: Any, prefix: str = "") -> list[str]:
    errors = Draft202012Validator(schemas()[kind]).iter_errors(document)
    return [f"{prefix}{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


def refusals(document: dict[str, Any]) -> list[str]:
    """Return why the operator refuses a RayCluster or RayJob that its definition allows; nothing for other kinds.

    The rules are those of `ray-operator/controllers/ray/utils/validation.go` of KubeRay, for an operator whose feature
    gates are the default ones. Fields that need a feature gate are refused, whatever is in them.
    """
    return [reason for reason in _refusals(document) if reason]


def _refusals(document: dict[str, Any]) -> Iterator[str]:
    kind, metadata = document["kind"], document["metadata"]
    yield from (f"metadata has no field {name}" for name in set(metadata) - METADATA)
    if ("name" in metadata) == ("generateName" in metadata):
        yield "give either name or generateName"
        return
    name = metadata.get("name") or metadata["generateName"] + RANDOM_SUFFIX
    if kind not in ("RayCluster", "RayJob"):
        return
    if len(name) > (most := CLUSTER_NAME if kind == "RayCluster" else JOB_NAME):
        yield f"the name has more than {most} characters"
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield "the name is no DNS label that begins with a letter"
    if kind == "RayCluster":
        yield from _cluster_refusals(document["spec"])
    else:
        yield from _job_refusals(document["spec"])


def _cluster_refusals(spec: dict[str, Any]) -> Iterator[str]:
    yield from (f"{field} needs a feature gate" for field in GATED & set(spec))
    head, workers = spec["headGroupSpec"], spec.get("workerGroupSpecs", [])
    if not head["template"]["spec"]["containers"]:
        yield "the head needs a container"
        return
    autoscaling, options = spec.get("enableInTreeAutoscaling", False), spec.get("autoscalerOptions", {})
    environment = {each["name"]: each.get("value") for each in head["template"]["spec"]["containers"][0].get("env", [])}
    switched_on = environment.get("RAY_enable_autoscaler_v2") in ("1", "true")
    second_version = autoscaling and options.get("version") == "v2"
    version = tuple(map(int, spec.get("rayVersion", "0.0").split(".")[:2]))
    for group in (head, *workers):
        yield from _group_refusals(group)
        if second_version and group["template"]["spec"].get("restartPolicy", "Never") != "Never":
            yield "pods of a cluster with the autoscaler's version 2 are never restarted"
    for group in workers:
        least, most = group.get("minReplicas"), group.get("maxReplicas")
        if not autoscaling and None in (least, most):
            yield "without an autoscaler, minReplicas and maxReplicas are needed"
        if min(least or 0, most or 0) < 0 or (most is not None and (least or 0) > most):
            yield "minReplicas is negative or greater than maxReplicas"
        if group.get("suspend"):
            yield "a suspended group needs a feature gate"
        if group.get("idleTimeoutSeconds", 0) < 0:
            yield "idleTimeoutSeconds is negative"
        if "idleTimeoutSeconds" in group and not (second_version or switched_on):
            yield "idleTimeoutSeconds of a group needs the autoscaler's version 2"
        if group.get("priority") and (version < PRIORITY_SINCE or not (second_version or switched_on)):
            yield "priority of a group needs the autoscaler's version 2, and a Ray that knows priorities"
    if not autoscaling and switched_on:
        yield "RAY_enable_autoscaler_v2 without an autoscaler"
    if autoscaling and "version" in options and "RAY_enable_autoscaler_v2" in environment:
        yield "the autoscaler's version is given twice"
    if options.get("idleTimeoutSeconds", 0) < 0:
        yield "autoscalerOptions.idleTimeoutSeconds is negative"
    if any(each["name"] == "KUBERAY_GEN_AUTOSCALER_START_CMD" for each in options.get("env", [])):
        yield "KUBERAY_GEN_AUTOSCALER_START_CMD is the operator's"
    parameters = head.get("rayStartParams", {})
    if "gcsFaultToleranceOptions" in spec:
        if "redis-password" in parameters or {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS"} & set(environment):
            yield "Redis belongs into gcsFaultToleranceOptions"
    elif "RAY_REDIS_ADDRESS" in environment:
        yield "RAY_REDIS_ADDRESS without gcsFaultToleranceOptions"
    if "redis-username" in parameters or "REDIS_USERNAME" in environment:
        yield "the user of Redis belongs into gcsFaultToleranceOptions"
    authentication = spec.get("authOptions", {})
    if authentication.get("mode") == "token" and version < AUTH_SINCE:
        yield "tokens need a rayVersion that knows them"
    if authentication.get("enableK8sTokenAuth") and (
        authentication.get("mode") != "token" or "secretName" in authentication or version < KUBERNETES_TOKENS_SINCE
    ):
        yield "enableK8sTokenAuth needs mode: token, no secretName, and a Ray that knows it"


def _group_refusals(group: dict[str, Any]) -> Iterator[str]:
    parameters = group.get("rayStartParams", {})
    if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(parameters):
        yield "resources are given twice"
    if "labels" in parameters:
        yield "labels belong to the group, not into rayStartParams"


def _job_refusals(spec: dict[str, Any]) -> Iterator[str]:
    shutdown, mode = spec.get("shutdownAfterJobFinishes", False), spec.get("submissionMode", "K8sJobMode")
    selector, retries = spec.get("clusterSelector", {}), spec.get("backoffLimit", 0)
    if not selector and "rayClusterSpec" not in spec:
        yield "a RayJob needs rayClusterSpec or clusterSelector"
    if selector and not selector.get("ray.io/cluster"):
        yield "clusterSelector names no cluster"
    if selector and retries > 0:
        yield "backoffLimit with clusterSelector"
    if selector and spec.get("suspend"):
        yield "suspend with clusterSelector"
    if selector and mode == "SidecarMode":
        yield "SidecarMode with clusterSelector"
    if spec.get("suspend") and not shutdown:
        yield "suspend without shutdownAfterJobFinishes"
    if spec.get("ttlSecondsAfterFinished", 0) < 0 or retries < 0:
        yield "ttlSecondsAfterFinished or backoffLimit is negative"
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not shutdown:
        yield "ttlSecondsAfterFinished without shutdownAfterJobFinishes"
    if "deletionStrategy" in spec:
        yield "deletionStrategy needs a feature gate"
    if mode == "InteractiveMode" and retries > 0:
        yield "backoffLimit with InteractiveMode"
    if mode == "SidecarMode" and {"submitterPodTemplate", "submitterConfig"} & set(spec):
        yield "SidecarMode has no submitter of its own"
    if any(spec.get(field, 1) <= 0 for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds")):
        yield "a deadline is not positive"
    if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict):
        yield "runtimeEnvYAML is no mapping"
    if "rayClusterSpec" in spec:
        if spec["rayClusterSpec"].get("authOptions", {}).get("enableK8sTokenAuth"):
            yield "enableK8sTokenAuth in a RayJob"
        yield from _cluster_refusals(spec["rayClusterSpec"])


def changed(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a copy of a document with one value changed or added, or removed where it is None.

    Args:
        document: the document.
        path: names and indices with dots between them, such as "spec.workerGroupSpecs.0.maxReplicas".
        value: the new value.
    """
    document = copy.deepcopy(document)
    *parents, last = (int(part) if part.isdecimal() else part for part in path.split("."))
    place: Any = document
    for part in parents:
        place = place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return document
