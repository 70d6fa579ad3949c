"""Every overlay is rendered and held against the schemas, KubeRay's rules and the house's; changed ones are refused."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.deploy import house, kuberay, schemas
from tests.deploy.render import (
    KUBERNETES,
    OVERLAYS,
    ROOT,
    SERVICES,
    Doc,
    cluster_spec,
    find,
    pods,
    ray_groups,
    render,
    render_directory,
)

Change = Callable[[list[Doc]], Any]


def problems(docs: list[Doc]) -> list[str]:
    """As they would come up: the API server's, then KubeRay's, then the house's."""
    for check in (schemas.violations, kuberay.refusals):
        if found := [p for d in docs for p in check(d)]:
            return found
    return house.complaints(docs)


@pytest.mark.parametrize("name", [*OVERLAYS, *SERVICES])
def test_what_ships_is_sound(name):
    assert problems(render(name)) == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_one_run_with_all_that_guards_it(name):
    docs = render(name)
    runs = [d for d in docs if d["kind"] in ("RayJob", "RayCluster")]
    assert [d["kind"] for d in runs] == ["RayCluster" if name == "interactive" else "RayJob"]
    assert {d["metadata"].get("namespace", "rondo") for d in docs} == {"rondo"}
    kinds = {d["kind"] for d in docs}
    assert kinds >= {"Namespace", "ServiceAccount", "PersistentVolumeClaim", "NetworkPolicy", "PodDisruptionBudget"}
    namespace = find(docs, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_every_directory_of_overlays_is_listed():
    assert {p.name for p in (KUBERNETES / "overlays").iterdir()} == set(OVERLAYS)


def test_failures_stay_to_be_looked_at():
    for name in ("cpu-smoke", "single-node-gpu", "multi-node", "spot"):
        rules = find(render(name), "RayJob")["spec"]["deletionStrategy"]["deletionRules"]
        failed = {r["policy"]: r["condition"]["ttlSeconds"] for r in rules if "FAILED" in r["condition"].values()}
        assert failed["DeleteCluster"] >= 24 * 3600 > failed["DeleteWorkers"]
        assert "DeleteSelf" not in failed
    queued = find(render("kueue"), "RayJob")["spec"]["deletionStrategy"]
    assert queued == {"onFailure": {"policy": "DeleteWorkers"}, "onSuccess": {"policy": "DeleteCluster"}}


def test_what_an_attempt_cannot_lose_is_not_on_nodes_that_vanish():
    groups = dict(ray_groups(find(render("spot"), "RayJob")))
    vanishing = {n for n, g in groups.items() if "nodeAffinity" in g["template"]["spec"].get("affinity", {})}
    assert vanishing == {"sampler", "judge", "reference"}
    for name in vanishing:
        spec = groups[name]["template"]["spec"]
        assert spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][0] == "rondo-drain"
        assert {t["key"] for t in spec["tolerations"]} >= {"nvidia.com/gpu", "cloud.google.com/gke-spot"}
    assert find(render("spot"), "RayJob")["spec"]["backoffLimit"] > 3


def test_only_a_shared_cluster_scales_itself():
    for name in OVERLAYS:
        doc = next(d for d in render(name) if d["kind"] in ("RayJob", "RayCluster"))
        assert kuberay.autoscaling(doc) == (name == "interactive")
    spec = cluster_spec(find(render("interactive"), "RayCluster"))
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert all(g["minReplicas"] == 0 < g["maxReplicas"] for g in spec["workerGroupSpecs"])


def test_the_shared_cluster_has_the_nodes_of_the_job():
    job = dict(ray_groups(find(render("multi-node"), "RayJob")))
    shared = dict(ray_groups(find(render("interactive"), "RayCluster")))
    assert set(job) == set(shared)
    for name, group in job.items():
        assert shared[name]["template"]["spec"]["containers"] == group["template"]["spec"]["containers"]


def test_people_reach_the_page_through_tls_alone():
    docs = render("annotate")
    ingress = find(docs, "Ingress")["spec"]
    hosts = [r["host"] for r in ingress["rules"]]
    assert [h for t in ingress["tls"] for h in t["hosts"]] == hosts
    args = next(p for w, p in pods(docs) if w == "Deployment annotate")["spec"]["containers"][0]["args"]
    assert {f"--public-url=https://{h}" for h in hosts} <= set(args)
    assert "--behind-tls" in args
    service = find(docs, "Service")["spec"]
    assert service.get("type", "ClusterIP") == "ClusterIP"
    policy = find(docs, "NetworkPolicy", "annotate")["spec"]
    assert [list(f) for rule in policy["ingress"] for f in rule["from"]] == [["namespaceSelector"]]


def test_the_commands_of_the_services_exist():
    from click.testing import CliRunner

    from pipelines.cli import main

    told = CliRunner().invoke(main, ["annotate", "--help"]).output
    args = next(p for _, p in pods(render("annotate")))["spec"]["containers"][0]["args"]
    assert args[:2] == ["rondo", "annotate"]
    assert [a for a in args if a.startswith("--") and a.partition("=")[0] not in told] == []


# -- every rule can fail ---------------------------------------------------------------------------------------------


def job(docs: list[Doc]) -> Doc:
    return find(docs, "RayJob")


def group(docs: list[Doc], name: str) -> Doc:
    return dict(ray_groups(next(d for d in docs if d["kind"] in ("RayJob", "RayCluster"))))[name]


def container(docs: list[Doc], name: str = "sampler") -> Doc:
    return group(docs, name)["template"]["spec"]["containers"][0]


def put(target: Doc, **values: Any) -> None:
    target.update(values)


def config(docs: list[Doc], old: str, new: str) -> None:
    data = find(docs, "ConfigMap", "rondo-config")["data"]
    assert old in data["run.yaml"]
    data["run.yaml"] = data["run.yaml"].replace(old, new)


def drop(docs: list[Doc], kind: str, name: str) -> None:
    docs.remove(find(docs, kind, name))


SHUTDOWN = {"shutdownAfterJobFinishes": True}
RULE = {"policy": "DeleteSelf", "condition": {"jobStatus": "FAILED", "ttlSeconds": 1}}
CHANGES: list[tuple[str, Change, str]] = [
    # the schemas
    ("cpu-smoke", lambda d: put(job(d)["spec"], entryPoint="x"), "'entryPoint' was unexpected"),
    ("cpu-smoke", lambda d: put(job(d)["spec"], backoffLimit="3"), "backoffLimit: '3' is not of type 'integer'"),
    ("cpu-smoke", lambda d: put(container(d), imagePullPolcy="Always"), "'imagePullPolcy' was unexpected"),
    ("cpu-smoke", lambda d: put(group(d, "sampler"), replicas=None), "replicas: None is not of type"),
    ("cpu-smoke", lambda d: put(job(d)["spec"], managedBy="me"), "managedBy field value must be either"),
    (
        "cpu-smoke",
        lambda d: put(
            job(d)["spec"]["deletionStrategy"]["deletionRules"][0]["condition"], jobDeploymentStatus="Failed"
        ),
        "cannot be used together within the same deletion condition",
    ),
    (
        "cpu-smoke",
        lambda d: put(job(d)["spec"]["deletionStrategy"], onSuccess={"policy": "DeleteNone"}),
        "legacy policies (onSuccess/onFailure) and deletionRules cannot be used together",
    ),
    ("kueue", lambda d: job(d)["spec"]["deletionStrategy"].pop("onFailure"), "requires either BOTH onSuccess"),
    ("cpu-smoke", lambda d: put(find(d, "PersistentVolumeClaim", "rondo-runs")["spec"], mode="x"), "'mode'"),
    ("tracking", lambda d: put(find(d, "Deployment", "mlflow")["spec"], replica=1), "'replica'"),
    ("monitoring", lambda d: find(d, "PodMonitor", "rondo-head")["spec"].pop("selector"), "'selector' is a required"),
    ("monitoring", lambda d: put(find(d, "PrometheusRule")["spec"]["groups"][0], rule=[]), "'rule' was unexpected"),
    # KubeRay's controller
    ("cpu-smoke", lambda d: put(job(d)["metadata"], name="r" * 48), "has 48 characters; at most 47"),
    ("interactive", lambda d: put(find(d, "RayCluster")["metadata"], name="r" * 54), "54 characters; at most 53"),
    ("cpu-smoke", lambda d: put(job(d)["metadata"], name="1rondo"), "not a DNS-1035 label"),
    ("cpu-smoke", lambda d: put(job(d)["spec"], ttlSecondsAfterFinished=60), "needs shutdownAfterJobFinishes"),
    ("cpu-smoke", lambda d: put(job(d)["spec"], **SHUTDOWN), "deletionRules and shutdownAfterJobFinishes exclude"),
    ("cpu-smoke", lambda d: put(job(d)["spec"], suspend=True), "suspend needs shutdownAfterJobFinishes"),
    ("cpu-smoke", lambda d: put(group(d, "sampler"), rayStartParams={"num-cpus": "2"}), "both say what a node has"),
    ("cpu-smoke", lambda d: put(group(d, "sampler"), rayStartParams={"labels": "a=b"}), "labels is not supported"),
    ("cpu-smoke", lambda d: put(group(d, "sampler"), labels={"rondo/stage": "a b"}), "is no valid label"),
    ("cpu-smoke", lambda d: group(d, "sampler").pop("maxReplicas"), "minReplicas and maxReplicas must both be set"),
    ("cpu-smoke", lambda d: put(group(d, "sampler"), replicas=5), "replicas 5 is not within 1 to 1"),
    (
        "interactive",
        lambda d: put(group(d, "judge")["template"]["spec"], restartPolicy="Always"),
        "restartPolicy Always with autoscaler v2",
    ),
    (
        "cpu-smoke",
        lambda d: container(d, "head")["env"].append({"name": "RAY_enable_autoscaler_v2", "value": "1"}),
        "RAY_enable_autoscaler_v2 without enableInTreeAutoscaling",
    ),
    ("cpu-smoke", lambda d: put(cluster_spec(job(d)), rayVersion="2.51.9"), "needs Ray 2.52.0 or later"),
    ("cpu-smoke", lambda d: put(cluster_spec(job(d)), rayVersion="nightly"), "needs rayVersion, not 'nightly'"),
    ("cpu-smoke", lambda d: put(cluster_spec(job(d)), upgradeStrategy={"type": "None"}), "upgradeStrategy is for"),
    ("cpu-smoke", lambda d: put(cluster_spec(job(d)), networkPolicy={}), "feature gate RayClusterNetworkPolicy"),
    (
        "cpu-smoke",
        lambda d: put(cluster_spec(job(d)), enableInTreeAutoscaling=True),
        "DeleteWorkers does not work with autoscaling",
    ),
    (
        "cpu-smoke",
        lambda d: job(d)["spec"]["deletionStrategy"]["deletionRules"].append(RULE),
        "workers must go before the cluster",
    ),
    ("cpu-smoke", lambda d: put(job(d)["spec"], submissionMode="InteractiveMode"), "neither in InteractiveMode nor"),
    ("kueue", lambda d: put(job(d)["spec"], suspend=False), "must begin suspended"),
    ("kueue", lambda d: put(cluster_spec(job(d)), enableInTreeAutoscaling=True), "does not admit a cluster that"),
    # the house
    (
        "cpu-smoke",
        lambda d: container(d)["env"].append({"name": "HF_TOKEN", "value": "hf_x"}),
        "HF_TOKEN is not taken from a Secret",
    ),
    (
        "cpu-smoke",
        lambda d: put(container(d), envFrom=[{"secretRef": {"name": "rondo-secrets"}}]),
        "envFrom takes a whole Secret",
    ),
    (
        "tracking",
        lambda d: next(p for w, p in pods(d) if "mlflow" in w)["spec"]["containers"][0]["args"].append("x://a:b@c"),
        "a URL holds a password",
    ),
    ("single-node-gpu", lambda d: put(container(d, "trainer"), env=[]), "the judge's key belongs on the nodes"),
    ("cpu-smoke", lambda d: put(container(d), env=container(d, "judge")["env"]), "the judge's key belongs on the"),
    ("cpu-smoke", lambda d: container(d).pop("securityContext"), "container ray may gain privileges"),
    (
        "cpu-smoke",
        lambda d: put(group(d, "judge")["template"]["spec"]["securityContext"], runAsNonRoot=False),
        "may run as root",
    ),
    ("cpu-smoke", lambda d: put(container(d), image="rondo:latest"), "rondo:latest is not pinned"),
    ("cpu-smoke", lambda d: put(container(d), image="rondo:0.0.9-cpu"), "rondo:0.0.9-cpu, but this is version"),
    ("multi-node", lambda d: put(container(d), image="rondo:0.1.0-cpu"), "a GPU, but image rondo:0.1.0-cpu"),
    ("cpu-smoke", lambda d: drop(d, "ConfigMap", "rondo-config"), "is not among the manifests"),
    ("cpu-smoke", lambda d: drop(d, "PersistentVolumeClaim", "rondo-runs"), "/runs is not on a volume that all"),
    (
        "cpu-smoke",
        lambda d: put(find(d, "PersistentVolumeClaim", "rondo-models")["spec"], accessModes=["ReadWriteOnce"]),
        "/models is not on a volume that all nodes share",
    ),
    (
        "multi-node",
        lambda d: put(find(d, "PodDisruptionBudget", "rondo-sampler")["spec"], minAvailable=1),
        "minAvailable is 1, the group has 8 pods",
    ),
    (
        "multi-node",
        lambda d: put(find(d, "PodDisruptionBudget", "rondo-sampler")["spec"], maxUnavailable=0),
        "no scale subresource",
    ),
    ("cpu-smoke", lambda d: drop(d, "NetworkPolicy", "default-deny"), "no NetworkPolicy denies"),
    (
        "cpu-smoke",
        lambda d: find(d, "NetworkPolicy", "dashboard")["spec"]["ingress"][0].pop("from"),
        "lets in whoever comes",
    ),
    (
        "cpu-smoke",
        lambda d: find(d, "NetworkPolicy", "dashboard")["spec"]["ingress"][0]["from"].append(
            {"podSelector": {"matchLabels": {"app": "x"}}}
        ),
        "opens the dashboard, which runs any command",
    ),
    ("cpu-smoke", lambda d: put(cluster_spec(job(d)), rayVersion="2.59.0"), "pyproject.toml pins ray"),
    ("cpu-smoke", lambda d: cluster_spec(job(d)).pop("authOptions"), "authOptions.mode is not token"),
    (
        "cpu-smoke",
        lambda d: put(cluster_spec(job(d))["headGroupSpec"]["rayStartParams"], **{"num-cpus": "4"}),
        "the head offers CPUs",
    ),
    (
        "interactive",
        lambda d: put(group(d, "head")["template"]["spec"], automountServiceAccountToken=False),
        "the autoscaler in the head's pod has no token",
    ),
    (
        "cpu-smoke",
        lambda d: put(group(d, "trainer")["template"]["spec"], terminationGracePeriodSeconds=30),
        "does not cover the 60 s of preStop",
    ),
    (
        "cpu-smoke",
        lambda d: next(v for v in group(d, "trainer")["template"]["spec"]["volumes"] if v["name"] == "shm")[
            "emptyDir"
        ].pop("medium"),
        "/dev/shm is no memory volume",
    ),
    (
        "cpu-smoke",
        lambda d: next(v for v in group(d, "trainer")["template"]["spec"]["volumes"] if v["name"] == "shm")[
            "emptyDir"
        ].update(sizeLimit="6Gi"),
        "more than half of the pod's memory",
    ),
    (
        "cpu-smoke",
        lambda d: put(group(d, "judge"), rayStartParams={}),
        "object store is not held to half of /dev/shm",
    ),
    ("cpu-smoke", lambda d: put(job(d)["spec"], entrypoint="rondo run /etc/rondo/run.yaml"), "with --resume=auto"),
    ("cpu-smoke", lambda d: config(d, "lr:", "learning_rate:"), "optimizer.learning_rate: unknown key"),
    ("cpu-smoke", lambda d: config(d, "root: /runs", "root: /tmp"), "run.root = /tmp is not on the volume"),
    ("cpu-smoke", lambda d: config(d, "sentiment.train", "nothing.train"), "neither on the volume at /models nor in"),
    ("cpu-smoke", lambda d: config(d, "custom: {judge: 1}", "custom: {}"), "it may land anywhere"),
    ("cpu-smoke", lambda d: put(group(d, "sampler")["resources"], judge="1"), "stage judge has 2 groups of its own"),
    ("cpu-smoke", lambda d: put(group(d, "trainer")["resources"], trainer="1"), "trainer: 2 needed, 1 present"),
    ("multi-node", lambda d: put(group(d, "sampler")["resources"], GPU="2"), "Ray offers 2 GPUs, the pod has 1"),
    ("multi-node", lambda d: config(d, "actors: 16, cpus: 8", "actors: 16, cpus: 20"), "hold 8 trainer actors of 16"),
]


@pytest.mark.parametrize(("name", "change", "message"), CHANGES, ids=[f"{n}-{m[:40]}" for n, _, m in CHANGES])
def test_a_changed_manifest_is_refused(name, change, message):
    docs = render(name)
    change(docs)
    found = problems(docs)
    assert any(message in p for p in found), found


def test_without_the_name_references_a_run_would_wait_for_a_config_map_that_does_not_exist(tmp_path):
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    base = tmp_path / "kubernetes" / "base" / "kustomization.yaml"
    assert "configurations: [references.yaml]" in base.read_text()
    base.write_text(base.read_text().replace("configurations: [references.yaml]", ""))
    docs = render_directory(tmp_path / "kubernetes" / "overlays" / "cpu-smoke")
    assert "RayJob rondo head: ConfigMap rondo-config is not among the manifests" in problems(docs)


def test_without_the_schema_a_patch_would_replace_all_groups_by_its_own(tmp_path):
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    base = tmp_path / "kubernetes" / "base" / "kustomization.yaml"
    base.write_text(base.read_text().replace("openapi: {path: schema.json}", ""))
    docs = render_directory(tmp_path / "kubernetes" / "overlays" / "multi-node")
    assert problems(docs) != []


def test_the_names_of_generated_config_maps_reach_into_the_custom_kinds():
    for name in OVERLAYS:
        docs = render(name)
        generated = find(docs, "ConfigMap", "rondo-config")["metadata"]["name"]
        assert re.fullmatch("rondo-config-[a-z0-9]{10}", generated)
        assert generated in str(next(d for d in docs if d["kind"] in ("RayJob", "RayCluster")))


def test_every_rule_of_the_ray_crds_is_evaluated():
    found = {
        rule["rule"] for kind in ("RayJob", "RayCluster") for _, rule in schemas.rules(schemas.crd("ray.io/v1", kind))
    }
    assert len(found) == 6
    later = {r for r in found if "oldSelf" in r}
    assert later == {"self == oldSelf"}  # about updates; nothing here is an update


def test_versions_agree():
    lock = (ROOT / "requirements" / "cpu.lock").read_text(), (ROOT / "requirements" / "gpu.lock").read_text()
    assert all(f"ray=={house.RAY}\n" in text for text in lock)
    for name in OVERLAYS:
        run = next(d for d in render(name) if d["kind"] in ("RayJob", "RayCluster"))
        assert cluster_spec(run)["rayVersion"] == house.RAY
    kustomizations = KUBERNETES.rglob("kustomization.yaml")
    tags = [
        i["newTag"]
        for k in kustomizations
        for i in yaml.safe_load(k.read_text()).get("images", ())
        if i["name"] == "rondo"
    ]
    assert {t.rpartition("-")[0] for t in tags} == {house.PROJECT["version"]}
