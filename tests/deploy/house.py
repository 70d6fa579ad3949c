"""What Rondo itself wants of its manifests: no secret in them, stages apart, what a run needs is there."""

from __future__ import annotations

import re
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actors.placement import by_stage, shortfalls
from configs.loading import ConfigError, load_config
from configs.runs import RunConfig
from tests.deploy.render import ROOT, Doc, cluster_spec, pods, ray_groups

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RAY = next(d.partition("==")[2] for d in PROJECT["dependencies"] if d.startswith("ray["))
_SECRET_NAME = re.compile(r"PASSWORD|TOKEN|SECRET|(API|ACCESS)_KEY|CREDENTIAL", re.IGNORECASE)
_PASSWORD_IN_URL = re.compile(r"://[^/@\s]*:[^/@\s]+@")
_UNITS = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
IN_IMAGE = {"/opt/rondo/": ROOT, "/home/rondo/.rondo/models/SmolLM2-135M-Instruct": None}


def complaints(docs: list[Doc]) -> list[str]:
    """Every breach of the house's rules in a set of manifests."""
    found = [*_secrets(docs), *_confined(docs), *_references(docs), *_disruption(docs), *_network(docs)]
    for doc in docs:
        if doc["kind"] in ("RayJob", "RayCluster"):
            where = f"{doc['kind']} {doc['metadata']['name']}"
            found += [f"{where}: {text}" for text in (*_cluster(doc), *_nodes(doc, docs), *_run(doc, docs))]
    return found


def bytes_of(quantity: str) -> float:
    number, unit = re.fullmatch(r"(\d+)([KMGT]i)?", str(quantity)).groups()  # type: ignore[union-attr]
    return float(number) * _UNITS[unit or ""]


def mount(container: Doc, path: str) -> str:
    """Name of the volume that is mounted at ``path``."""
    return next((m["name"] for m in container.get("volumeMounts", ()) if m["mountPath"] == path), "")


def _secrets(docs: list[Doc]) -> Iterator[str]:
    for doc in docs:
        if doc["kind"] == "Secret":
            yield f"Secret {doc['metadata']['name']}: secrets are made on the cluster, not kept in files"
    for where, pod in pods(docs):
        for container in pod["spec"]["containers"]:
            for variable in container.get("env", ()):
                if _SECRET_NAME.search(variable["name"]) and "secretKeyRef" not in variable.get("valueFrom", {}):
                    yield f"{where}: {variable['name']} is not taken from a Secret by secretKeyRef"
            if any("secretRef" in source for source in container.get("envFrom", ())):
                yield f"{where}: envFrom takes a whole Secret; name the keys with secretKeyRef"
            words = [*container.get("args", ()), *container.get("command", ())]
            words += [str(v.get("value", "")) for v in container.get("env", ())]
            if any(_PASSWORD_IN_URL.search(w) for w in words):
                yield f"{where}: a URL holds a password"


def _confined(docs: list[Doc]) -> Iterator[str]:
    """The restricted profile of the Pod Security Standards, which the namespace enforces."""
    for where, pod in pods(docs):
        spec = pod["spec"]
        of_pod = spec.get("securityContext", {})
        if of_pod.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{where}: seccompProfile is not RuntimeDefault"
        if not of_pod.get("runAsNonRoot") or not of_pod.get("runAsUser"):
            yield f"{where}: may run as root"
        if any("hostPath" in v for v in spec.get("volumes", ())) or spec.get("hostNetwork"):
            yield f"{where}: uses the node's own files or network"
        for container in spec["containers"]:
            own = container.get("securityContext", {})
            if own.get("allowPrivilegeEscalation", True) or own.get("capabilities", {}).get("drop") != ["ALL"]:
                yield f"{where}: container {container['name']} may gain privileges"
            if not container.get("resources", {}).get("limits", {}).get("memory"):
                yield f"{where}: container {container['name']} has no memory limit"


def _references(docs: list[Doc]) -> Iterator[str]:
    """ConfigMaps and claims that pods name must exist; images must be ours at this version."""
    there = {(d["kind"], d["metadata"]["name"]) for d in docs}
    for where, pod in pods(docs):
        for volume in pod["spec"].get("volumes", ()):
            if "configMap" in volume and ("ConfigMap", volume["configMap"]["name"]) not in there:
                yield f"{where}: ConfigMap {volume['configMap']['name']} is not among the manifests"
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim and ("PersistentVolumeClaim", claim) not in there:
                yield f"{where}: PersistentVolumeClaim {claim} is not among the manifests"
        for container in pod["spec"]["containers"]:
            name, _, tag = container.get("image", "").partition(":")
            if not tag or tag == "latest":
                yield f"{where}: image {container.get('image')} is not pinned"
            if name == "rondo" and tag not in (f"{PROJECT['version']}-cpu", f"{PROJECT['version']}-gpu"):
                yield f"{where}: image {name}:{tag}, but this is version {PROJECT['version']}"
            if "nvidia.com/gpu" in str(container.get("resources")) and not tag.endswith("-gpu"):
                yield f"{where}: a GPU, but image {name}:{tag}"


def _selected(docs: list[Doc], selector: Doc) -> list[tuple[str, Doc]]:
    wanted = selector.get("matchLabels", {}).items()
    return [(w, p) for w, p in pods(docs) if wanted <= p.get("metadata", {}).get("labels", {}).items()]


def _disruption(docs: list[Doc]) -> Iterator[str]:
    groups = {(n, d["kind"]): g for d in docs if d["kind"] in ("RayJob", "RayCluster") for n, g in ray_groups(d)}
    for doc in docs:
        if doc["kind"] != "PodDisruptionBudget":
            continue
        where, spec = f"PodDisruptionBudget {doc['metadata']['name']}", doc["spec"]
        chosen = _selected(docs, spec["selector"])
        if not chosen:
            yield f"{where}: selects no pod"
        if "maxUnavailable" in spec or not isinstance(spec.get("minAvailable"), int):
            yield f"{where}: a RayCluster has no scale subresource; minAvailable must be a number"
            continue
        names = {w.split()[-1] for w, _ in chosen}
        count = sum(g.get("replicas", 1) if n != "head" else 1 for (n, _), g in groups.items() if n in names)
        if spec["minAvailable"] != count:
            yield f"{where}: minAvailable is {spec['minAvailable']}, the group has {count} pods"


def _network(docs: list[Doc]) -> Iterator[str]:
    policies = [d for d in docs if d["kind"] == "NetworkPolicy"]
    if not any(d["kind"] in ("RayJob", "RayCluster") for d in docs):
        return
    denies = [p for p in policies if p["spec"]["podSelector"] == {} and not {"ingress", "egress"} & set(p["spec"])]
    if not any(set(p["spec"]["policyTypes"]) == {"Ingress", "Egress"} for p in denies):
        yield "no NetworkPolicy denies what the others do not allow"
    for policy in policies:
        where = f"NetworkPolicy {policy['metadata']['name']}"
        if policy["spec"]["podSelector"] != {} and not _selected(docs, policy["spec"]["podSelector"]):
            yield f"{where}: selects no pod"
        for rule in policy["spec"].get("ingress", ()):
            everyone = not rule.get("from") or any(not any(s.values()) for s in rule["from"])
            if everyone or any("ipBlock" in s for s in rule["from"]):
                yield f"{where}: lets in whoever comes"
            if any(p.get("port") == 8265 for p in rule.get("ports", ())):
                others = [s for s in rule.get("from", ()) if s not in _DASHBOARD]
                if others:
                    yield f"{where}: opens the dashboard, which runs any command, to {others}"


_DASHBOARD = (
    {"podSelector": {"matchLabels": {"rondo/role": "submitter"}}},
    {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kuberay-system"}}},
)


def _cluster(doc: Doc) -> Iterator[str]:
    spec = cluster_spec(doc)
    if spec.get("rayVersion") != RAY:
        yield f"rayVersion is {spec.get('rayVersion')}, pyproject.toml pins ray {RAY}"
    if spec.get("authOptions", {}).get("mode") != "token":
        yield "authOptions.mode is not token: whoever reaches the dashboard runs what they like"
    head = spec["headGroupSpec"]
    if head.get("rayStartParams", {}).get("num-cpus") != "0" or head.get("resources"):
        yield "the head offers CPUs: num-cpus must be 0"
    if spec.get("enableInTreeAutoscaling") and head["template"]["spec"].get("automountServiceAccountToken") is False:
        yield "the autoscaler in the head's pod has no token for Kubernetes"


def _nodes(doc: Doc, docs: list[Doc]) -> Iterator[str]:
    modes = {d["metadata"]["name"]: d["spec"]["accessModes"] for d in docs if d["kind"] == "PersistentVolumeClaim"}
    for name, group in ray_groups(doc):
        spec = group["template"]["spec"]
        container = spec["containers"][0]
        volumes = {v["name"]: v for v in spec.get("volumes", ())}
        shm = volumes.get(mount(container, "/dev/shm"), {}).get("emptyDir", {})
        limit = bytes_of(container["resources"]["limits"]["memory"])
        if shm.get("medium") != "Memory" or "sizeLimit" not in shm:
            yield f"group {name}: /dev/shm is no memory volume of a stated size"
        elif bytes_of(shm["sizeLimit"]) > limit / 2:
            yield f"group {name}: /dev/shm ({shm['sizeLimit']}) may take more than half of the pod's memory"
        elif not 0 < int(group["rayStartParams"].get("object-store-memory", 0)) <= bytes_of(shm["sizeLimit"]) / 2:
            yield f"group {name}: Ray's object store is not held to half of /dev/shm; it would take 30% of the memory"
        for path in ("/runs", "/models"):
            claim = volumes.get(mount(container, path), {}).get("persistentVolumeClaim", {}).get("claimName")
            if "ReadWriteMany" not in modes.get(claim or "", ()):
                yield f"group {name}: {path} is not on a volume that all nodes share"
        variables = {v["name"] for v in container.get("env", ())}
        if ("judge" in group.get("resources", {})) != ("RONDO_JUDGE_API_KEY" in variables):
            yield f"group {name}: the judge's key belongs on the nodes where judges work, and on no others"
        drain = _drain_seconds(container)
        grace = spec.get("terminationGracePeriodSeconds", 30)
        if not 0 < drain < grace:
            yield f"group {name}: terminationGracePeriodSeconds {grace} does not cover the {drain:g} s of preStop"
        offered = group.get("resources", {})
        cpu = container["resources"]["requests"]["cpu"]
        if name != "head" and float(offered.get("CPU", 0)) != float(cpu):
            yield f"group {name}: Ray offers {offered.get('CPU')} CPUs, the pod requests {cpu}"
        gpus = container["resources"]["limits"].get("nvidia.com/gpu", "0")
        if float(offered.get("GPU", 0)) != float(gpus):
            yield f"group {name}: Ray offers {offered.get('GPU', 0)} GPUs, the pod has {gpus}"


def _drain_seconds(container: Doc) -> float:
    """How long preStop may take: ``ray stop``'s grace period, or what ``rondo-drain`` gives and the 5 s it stops in."""
    command = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    match command:
        case ["ray", "stop", "--grace-period", seconds]:
            return float(seconds)
        case ["rondo-drain", seconds]:
            return float(seconds) + 5
    return 0.0


def _run(doc: Doc, docs: list[Doc]) -> Iterator[str]:
    """The mounted configuration loads, and the cluster holds it: each stage on its own group and on no other."""
    name = next(v["configMap"]["name"] for v in _volumes(doc, "head") if "configMap" in v)
    data = next((d["data"] for d in docs if d["kind"] == "ConfigMap" and d["metadata"]["name"] == name), None)
    if data is None:
        return  # said by _references
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.yaml"
        file.write_text(data["run.yaml"])
        try:
            config = load_config(RunConfig, file)
        except ConfigError as error:
            yield f"run.yaml: {error}"
            return
    if doc["kind"] == "RayJob" and doc["spec"]["entrypoint"] != "rondo run /etc/rondo/run.yaml --resume=auto":
        yield f"entrypoint {doc['spec']['entrypoint']!r} is not the command of a laptop with --resume=auto"
    if not config.run.root.startswith("/runs"):
        yield f"run.yaml: run.root = {config.run.root} is not on the volume at /runs"
    for path in (config.model.path, config.prompts.train, config.prompts.heldout):
        if not path.startswith("/models/") and not _in_image(path):
            yield f"run.yaml: {path} is neither on the volume at /models nor in the image"
    yield from _fits(config, doc)


def _volumes(doc: Doc, group: str) -> list[Doc]:
    return next(g["template"]["spec"]["volumes"] for n, g in ray_groups(doc) if n == group)


def _in_image(path: str) -> bool:
    for prefix, source in IN_IMAGE.items():
        if path.startswith(prefix):
            return source is None or (source / path.removeprefix(prefix)).is_file()
    return False


def _fits(config: RunConfig, doc: Doc) -> Iterator[str]:
    workers = [(n, g) for n, g in ray_groups(doc) if n != "head"]
    total: dict[str, float] = {}
    for _, group in workers:
        for resource, amount in group["resources"].items():
            total[resource] = total.get(resource, 0.0) + float(amount) * group["maxReplicas"]
    yield from shortfalls(config, total)
    for stage in by_stage(config):
        if stage == "data_cpus":
            continue
        wanted = {stage: 1.0}
        for actors in config.groups[stage]:
            if actors.custom != wanted:
                yield f"run.yaml: resources.{stage}.custom is {actors.custom}, not {wanted}: it may land anywhere"
        own = [(n, g) for n, g in workers if stage in g["resources"]]
        if len(own) != 1:
            yield f"stage {stage} has {len(own)} groups of its own"
            continue
        name, group = own[0]
        for actors in config.groups[stage]:
            each: dict[str, Any] = {"CPU": actors.cpus, "GPU": actors.gpus, **actors.custom}
            a_pod = min(float(group["resources"].get(r, 0)) // a for r, a in each.items() if a)
            if a_pod * group["maxReplicas"] < actors.actors:
                yield f"group {name}: its pods hold {a_pod * group['maxReplicas']:g} {stage} actors of {actors.actors}"
