"""Dashboard and alerts: they ask for metrics that exist, and promtool's tests show when an alert fires."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from pipelines.metrics import METRICS
from tests.deploy.render import KUBERNETES, ROOT, find, render

DASHBOARD: dict[str, Any] = json.loads((KUBERNETES / "monitoring" / "rondo.json").read_text())
RULES = [r for g in find(render("monitoring"), "PrometheusRule")["spec"]["groups"] for r in g["rules"]]
PROMTOOL = shutil.which("promtool", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
ALERT_TESTS = ROOT / "tests" / "deploy" / "alerts_test.yaml"
OURS = {name: metric for metric in METRICS for name in metric.exported}
SUFFIX = re.compile(r"_(total|bucket|sum|count)$")


def expressions() -> list[str]:
    asked = [t["expr"] for p in DASHBOARD["panels"] for t in p["targets"]]
    variables = [v["definition"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"]
    return asked + variables + [rule["expr"] for rule in RULES]


def metric_names(expression: str) -> set[str]:
    return set(re.findall(r"\bray_\w+", expression)) - {"ray_io_cluster"}


def names_of_ray() -> str:
    """Where Ray declares and itself asks for the metrics that it exports."""
    dashboard = Path(ray.__file__).parent / "dashboard" / "modules"
    files = [dashboard / "reporter" / "reporter_agent.py", *dashboard.glob("metrics/dashboards/*.py")]
    return "\n".join(f.read_text() for f in files)


@pytest.mark.parametrize("expression", expressions())
def test_every_metric_exists(expression):
    names = metric_names(expression)
    assert names
    theirs = names_of_ray()
    for name in names - set(OURS):
        assert not name.startswith("ray_rondo"), f"{name} is not in pipelines.metrics.METRICS"
        assert re.search(rf"[\"'{{ (](ray_)?{name.removeprefix('ray_')}\b", theirs), f"Ray exports no {name}"


@pytest.mark.parametrize("expression", expressions())
def test_every_label_exists(expression):
    if not metric_names(expression) <= set(OURS):
        return  # Ray's own labels
    known = {"run", "le"} | {label for n in metric_names(expression) for label in OURS[n].labels}
    asked = {w for part in re.findall(r"\b(?:by|ignoring) \(([^)]*)\)", expression) for w in re.split(r",\s*", part)}
    asked |= set(re.findall(r"[{,]\s*(\w+)\s*=~?\"", expression))
    assert asked <= known


def test_every_metric_of_ours_is_shown_or_watched():
    asked = set().union(*map(metric_names, expressions()))
    assert [m.name for m in METRICS if not asked & set(m.exported)] == []


def test_grafana_can_load_the_dashboard():
    panels = DASHBOARD["panels"]
    ids = [p["id"] for p in panels]
    assert len(set(ids)) == len(ids)
    assert all(isinstance(i, int) and i > 0 for i in ids)
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,40}", DASHBOARD["uid"])
    assert DASHBOARD["schemaVersion"] >= 36  # datasources by type and uid
    variables = {v["name"]: v for v in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert variables["run"]["datasource"] == source
    for panel in panels:
        assert panel["type"] in ("timeseries", "stat")
        assert panel["title"]
        assert panel["description"]
        assert panel["datasource"] == source
        assert [t["datasource"] for t in panel["targets"]] == [source] * len(panel["targets"])
        refs = [t["refId"] for t in panel["targets"]]
        assert len(set(refs)) == len(refs)
    used = set(re.findall(r"\$\{?(\w+)", " ".join(t["expr"] for p in panels for t in p["targets"])))
    assert used <= set(variables) | {"__rate_interval", "__range"}


def test_panels_do_not_cover_each_other():
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not own & cells, panel["title"]
        cells |= own


def test_the_dashboard_is_mounted_as_it_is():
    mounted = find(render("monitoring"), "ConfigMap")
    assert mounted["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(mounted["data"]["rondo.json"]) == DASHBOARD


def test_pods_are_scraped_at_ports_that_they_have():
    docs = render("multi-node")
    from tests.deploy.render import ray_groups

    ports = {
        "head" if name == "head" else "worker": {p["name"] for p in g["template"]["spec"]["containers"][0]["ports"]}
        for name, g in ray_groups(find(docs, "RayJob"))
    }
    for kind, monitor in (("head", "rondo-head"), ("worker", "rondo-workers")):
        spec = find(render("monitoring"), "PodMonitor", monitor)["spec"]
        assert spec["selector"]["matchLabels"] == {"ray.io/node-type": kind}
        assert {e["port"] for e in spec["podMetricsEndpoints"]} <= ports[kind]


def test_alerts_say_what_to_do():
    text = (ROOT / "docs" / "deploy.md").read_text()
    anchors = {re.sub(r"[^\w-]", "", h.lower()) for h in re.findall(r"(?m)^#+ (.+)$", text)}
    names = [r["alert"] for r in RULES]
    assert len(set(names)) == len(names)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        file, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert file == "docs/deploy.md"
        assert anchor == rule["alert"].lower()
        assert anchor in anchors


def test_every_alert_is_tested_both_ways():
    cases = [c for t in yaml.safe_load(ALERT_TESTS.read_text())["tests"] for c in t["alert_rule_test"]]
    fires = {c["alertname"] for c in cases if c.get("exp_alerts")}
    silent = {c["alertname"] for c in cases if not c.get("exp_alerts")}
    assert fires == silent == {r["alert"] for r in RULES}


@pytest.fixture
def rules(tmp_path) -> Path:
    """The rules as Prometheus reads them, with their tests beside them."""
    if PROMTOOL is None:
        pytest.skip("no promtool (scripts/promtool.sh fetches Debian's)")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(find(render("monitoring"), "PrometheusRule")["spec"]))
    shutil.copy(ALERT_TESTS, tmp_path / "alerts_test.yaml")
    return tmp_path


def test_alerts_fire_when_they_should(rules):
    checked = subprocess.run([PROMTOOL, "check", "rules", "rules.yaml"], cwd=rules, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tested = subprocess.run([PROMTOOL, "test", "rules", "alerts_test.yaml"], cwd=rules, capture_output=True, text=True)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_the_tests_of_alerts_can_fail(rules):
    text = (rules / "rules.yaml").read_text()
    assert "> 0.05" in text
    (rules / "rules.yaml").write_text(text.replace("> 0.05", "> 0.5"))
    tested = subprocess.run([PROMTOOL, "test", "rules", "alerts_test.yaml"], cwd=rules, capture_output=True, text=True)
    assert tested.returncode == 1
    assert "RondoJudgeFailing" in tested.stdout + tested.stderr
