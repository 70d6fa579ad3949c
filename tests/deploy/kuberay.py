"""What KubeRay's controller refuses in objects that the API server has taken: its rules of v1.7, and Kueue's."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.deploy.render import Doc, cluster_spec, ray_groups

LONGEST_NAME = {"RayJob": 47, "RayCluster": 53}
_DNS = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_START_RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")
_GATED = {"networkPolicy": "RayClusterNetworkPolicy", "tlsOptions": "RayClusterMTLS",
          "historyServerOptions": "RayClusterHistoryServer"}  # fmt: skip
_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")
_MOST_POD_SETS = 8  # Kueue's: the head and seven worker groups
TOKEN_SINCE = (2, 52, 0)


def refusals(doc: Doc) -> list[str]:
    """Every reason for which KubeRay 1.7, or Kueue, would not run a RayJob or a RayCluster."""
    if doc["kind"] not in LONGEST_NAME:
        return []
    found = [*_name(doc), *_groups(doc), *_autoscaler(doc), *_cluster(doc)]
    if doc["kind"] == "RayJob":
        found += [*_deletion(doc), *_job(doc), *_kueue(doc)]
    return [f"{doc['kind']} {doc['metadata']['name']}: {text}" for text in found]


def _name(doc: Doc) -> Iterator[str]:
    name, most = doc["metadata"]["name"], LONGEST_NAME[doc["kind"]]
    if len(name) > most:
        yield f"metadata.name has {len(name)} characters; at most {most} leave room for what KubeRay appends"
    if not _DNS.fullmatch(name):
        yield f"metadata.name {name!r} is not a DNS-1035 label"


def autoscaling(doc: Doc) -> bool:
    return bool(cluster_spec(doc).get("enableInTreeAutoscaling"))


def _groups(doc: Doc) -> Iterator[str]:
    for name, group in ray_groups(doc):
        start = group.get("rayStartParams", {})
        if group.get("resources") and any(start.get(k) for k in _START_RESOURCES):
            yield f"group {name}: resources and rayStartParams both say what a node has; keep one of them"
        if "labels" in start:
            yield f"group {name}: rayStartParams.labels is not supported; use labels of the group"
        for key, value in group.get("labels", {}).items():
            if not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
                yield f"group {name}: {key}={value} is no valid label"
        if not group["template"]["spec"].get("containers"):
            yield f"group {name}: no container"
        if name == "head":
            continue
        least, most = group.get("minReplicas"), group.get("maxReplicas")
        if not autoscaling(doc) and (least is None or most is None):
            yield f"group {name}: without autoscaling minReplicas and maxReplicas must both be set"
        if least is not None and most is not None and not 0 <= least <= group.get("replicas", least) <= most:
            yield f"group {name}: replicas {group.get('replicas')} is not within {least} to {most}"


def _autoscaler(doc: Doc) -> Iterator[str]:
    spec = cluster_spec(doc)
    options = spec.get("autoscalerOptions", {})
    head = spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    by_env = any(e["name"] == "RAY_enable_autoscaler_v2" for e in head.get("env", ()))
    if not autoscaling(doc):
        if by_env:
            yield "RAY_enable_autoscaler_v2 without enableInTreeAutoscaling"
        return
    if by_env and options.get("version"):
        yield "autoscalerOptions.version and RAY_enable_autoscaler_v2 are both set; keep the former"
    if options.get("version") == "v2":
        for name, group in ray_groups(doc):
            policy = group["template"]["spec"].get("restartPolicy", "")
            if policy not in ("", "Never"):
                yield f"group {name}: restartPolicy {policy} with autoscaler v2; it must be Never or unset"


def _cluster(doc: Doc) -> Iterator[str]:
    spec = cluster_spec(doc)
    if spec.get("authOptions", {}).get("mode") == "token":
        version = spec.get("rayVersion", "")
        if not re.fullmatch(r"\d+\.\d+\.\d+", version):
            yield f"authOptions.mode token needs rayVersion, not {version!r}"
        elif tuple(map(int, version.split("."))) < TOKEN_SINCE:
            yield f"authOptions.mode token needs Ray 2.52.0 or later, rayVersion is {version}"
    for field, gate in _GATED.items():
        if field in spec:
            yield f"{field} needs the feature gate {gate}, which is off by default"
    if doc["kind"] == "RayJob" and "upgradeStrategy" in spec:
        yield "upgradeStrategy is for a RayCluster of its own, not for a RayJob's"


def _deletion(doc: Doc) -> Iterator[str]:
    spec = doc["spec"]
    shutdown = bool(spec.get("shutdownAfterJobFinishes"))
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not shutdown:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    strategy = spec.get("deletionStrategy") or {}
    rules = strategy.get("deletionRules") or []
    legacy = [k for k in ("onSuccess", "onFailure") if k in strategy]
    if rules and shutdown:
        yield "deletionRules and shutdownAfterJobFinishes exclude each other"
    if rules and legacy:
        yield "deletionRules and onSuccess/onFailure exclude each other"
    if strategy and not rules and len(legacy) != 2:
        yield "deletionStrategy needs deletionRules, or both onSuccess and onFailure"
    policies = [r["policy"] for r in rules] + [strategy[k].get("policy") for k in legacy]
    if autoscaling(doc) and "DeleteWorkers" in policies:
        yield "DeleteWorkers does not work with autoscaling"
    if shutdown and "DeleteNone" in policies:
        yield "DeleteNone and shutdownAfterJobFinishes exclude each other"
    by_condition: dict[tuple[str, str], dict[str, int]] = {}
    for rule in rules:
        condition = rule["condition"]
        for kind in ("jobStatus", "jobDeploymentStatus"):
            if kind in condition:
                times = by_condition.setdefault((kind, condition[kind]), {})
                if rule["policy"] in times:
                    yield f"two rules {rule['policy']} for {kind} {condition[kind]}"
                times[rule["policy"]] = condition.get("ttlSeconds", 0)
    for (kind, state), times in by_condition.items():
        ordered = [times[p] for p in _ORDER if p in times]
        if ordered != sorted(ordered):
            yield f"for {kind} {state} workers must go before the cluster, and that before the job: {times}"


def _job(doc: Doc) -> Iterator[str]:
    spec = doc["spec"]
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        yield "suspend needs shutdownAfterJobFinishes"
    if spec.get("backoffLimit", 0) < 0:
        yield "backoffLimit is negative"
    if spec.get("backoffLimit", 0) > 0 and (
        spec.get("submissionMode") == "InteractiveMode" or "clusterSelector" in spec
    ):
        yield "backoffLimit works neither in InteractiveMode nor with clusterSelector"
    if spec.get("submissionMode") == "SidecarMode" and "submitterPodTemplate" in spec:
        yield "submitterPodTemplate does not work in SidecarMode"


def _kueue(doc: Doc) -> Iterator[str]:
    if "kueue.x-k8s.io/queue-name" not in doc["metadata"].get("labels", {}):
        return
    if not doc["spec"].get("suspend"):
        yield "a job of a Kueue queue must begin suspended"
    if autoscaling(doc):
        yield "Kueue does not admit a cluster that scales itself"
    if len(list(ray_groups(doc))) > _MOST_POD_SETS:
        yield f"Kueue admits at most {_MOST_POD_SETS} groups, the head's included"
