"""One run as it goes on a cluster: submitted, judged by an endpoint that wants a key, tracked by MLflow on PostgreSQL,
measured by Prometheus. Afterwards the key is looked for in everything that the run has left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipelines.ledger.ledger import read_record
from pipelines.metrics import METRICS
from tests.endpoint import Request, Server, completion, endpoint
from tests.integration.conftest import BIN, JUDGE_KEY, ROOT, TINY, free_port, journal, losses, pairs, run

VISIBLE = "this-one-is-found"  # a name that is no secret: the search finds what is there


def grade(request: Request) -> Any:
    """An opinion of its own about every answer, always the same."""
    best = str(1 + zlib.crc32(request.text.encode()) % 5)
    return completion(best, {best: 0.9, "3": 0.1} if best != "3" else {"3": 1.0})


@dataclass(frozen=True)
class Deployed:
    output: str
    directory: Path  # of the run
    tracking: Path  # of MLflow and its database
    uri: str
    judge: Server
    jobs: str  # all that the job API and the state API say
    metrics: str


@pytest.fixture(scope="module")
def tracking() -> Iterator[tuple[Path, str]]:
    """MLflow on PostgreSQL, as the local script starts it."""
    if not sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        pytest.skip("no PostgreSQL in /usr/lib/postgresql (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="the extra rondo[postgres] is not installed")
    directory = Path(tempfile.mkdtemp(prefix="rondo-mlflow-test-", dir="/tmp"))  # PostgreSQL's user must get there
    directory.chmod(0o755)
    port = free_port()
    words = ["bash", str(ROOT / "deploy" / "local" / "mlflow.sh"), str(directory), str(port)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout
    said = process.stdout.readline()
    assert said.startswith("MLflow: http://127.0.0.1"), said + process.stdout.read()
    yield directory, f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    shutil.rmtree(directory)


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return str(answer.read().decode())


def scraped(port: int) -> str:
    """What a scrape finds, once the figures of the step have reached the node's agent."""
    deadline = time.monotonic() + 45
    while "ray_rondo_loss{" not in (text := read(f"http://127.0.0.1:{port}/metrics")):
        assert time.monotonic() < deadline, "the metrics of the step never arrived"
        time.sleep(0.2)
    return text


@pytest.fixture(scope="module")
def deployed(head, overrides, tracking, ray_here) -> Iterator[Deployed]:
    directory, uri = tracking
    words = overrides("deployed", "run.steps=1", "evaluation.prompts=2", "evaluation.probe=0")
    run_dir = Path(next(w.partition("=")[2] for w in words if w.startswith("run.root="))) / "deployed"
    port = ray_here.nodes()[0]["MetricsExportPort"]
    metrics: list[str] = []

    def script(request: Request) -> Any:
        """Gauges go with their process: they are looked at while the answers after the step are judged."""
        if not metrics and (run_dir / "ledger" / "steps.jsonl").exists() and losses(run_dir):
            metrics.append(scraped(port))
        return grade(request)

    with endpoint(script) as judge:
        asked = f"{{kind: http, url: '{judge.url}', model: m, mode: pointwise, api_key_env: RONDO_JUDGE_API_KEY}}"
        # The submitter's own secrets must stay with it as well.
        env = {"OPENAI_API_KEY": JUDGE_KEY, "MLFLOW_TRACKING_PASSWORD": JUDGE_KEY}
        words += [f"judge={asked}", f"tracking.uri={uri}", f"tracking.experiment={VISIBLE}"]
        words += ["objective={name: kto, beta: 0.3}", "pairing.strategy=labels"]
        done = run(BIN / "rondo", "submit", TINY, *words, "--address", head.dashboard, **env)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
        pages = [f"api/v0/{what}?detail=1&limit=1000" for what in ("actors", "runtime_envs", "workers")]
        jobs = "\n".join(read(f"{head.dashboard}/{page}") for page in ("api/jobs/", *pages))
        yield Deployed(done.stdout + done.stderr, run_dir, directory, uri, judge, jobs, metrics[0])


def test_the_job_runs_and_is_followed_to_its_end(deployed):
    assert re.search(r"submitted job deployed-\d{8}-\d{6}; look: `ray job logs", deployed.output)
    assert "step 1/1" in deployed.output
    assert re.search(r"job deployed-\S+ succeeded", deployed.output)
    record = read_record(deployed.directory)
    assert record is not None
    assert record.finished == 1


def test_grades_reach_kto_as_labels(deployed):
    grades = {j["candidate_id"]: j["value"] for r in journal(deployed.directory, "judgements") for j in r["judgements"]}
    texts: dict[str, dict[tuple[int, ...], float]] = {}
    for c in journal(deployed.directory, "candidates"):
        texts.setdefault(c["prompt_id"], {}).setdefault(tuple(c["token_ids"]), grades[c["id"]])
    away = [abs(v - sum(own.values()) / len(own)) > 1e-9 for own in texts.values() for v in own.values()]
    assert len(pairs(deployed.directory)[1]) == sum(away) > len(texts)
    assert losses(deployed.directory)[1] == pytest.approx(0.5, abs=1e-3)  # policy == reference: 1 - sigmoid(0)


def test_the_key_reached_the_judge_and_nothing_else(deployed, head):
    asked = deployed.judge.requests
    assert asked
    assert {r.headers["authorization"] for r in asked} == {f"Bearer {JUDGE_KEY}"}
    needles = {JUDGE_KEY.encode(), VISIBLE.encode()}
    found: dict[bytes, list[str]] = {n: [] for n in needles}
    for folder in (deployed.directory, deployed.directory.parent, deployed.tracking, head.directory):
        for file in folder.rglob("*"):
            if file.is_file():
                content = file.read_bytes()
                for needle in needles:
                    if needle in content:
                        found[needle].append(str(file))
    assert found[JUDGE_KEY.encode()] == []
    assert any(str(deployed.tracking / "postgres") in f for f in found[VISIBLE.encode()])  # the search works
    assert JUDGE_KEY not in deployed.output + deployed.jobs + deployed.metrics
    assert VISIBLE in deployed.jobs


def test_the_job_carries_files_and_no_variables(deployed):
    jobs = json.loads(deployed.jobs.splitlines()[0])
    [job] = [j for j in jobs if (j["metadata"] or {}).get("rondo_run") == "deployed"]
    assert set(job["runtime_env"]) <= {"working_dir", "excludes", "_ray_commit"}
    assert job["entrypoint"].startswith("python -m pipelines.cli run tests/integration/tiny.yaml")


def test_mlflow_on_postgresql_has_the_run(deployed):
    record = read_record(deployed.directory)
    assert record is not None
    client = MlflowClient(deployed.uri, deployed.uri)
    tracked = client.get_run(record.mlflow_run)
    assert tracked.info.status == "FINISHED"
    assert tracked.info.artifact_uri.startswith("mlflow-artifacts:/")
    assert tracked.data.params["judge.kind"] == "http"
    assert [p.step for p in client.get_metric_history(record.mlflow_run, "loss")] == [1]
    assert client.get_model_version_by_alias("deployed", "candidate").run_id == record.mlflow_run
    stored = {f.name for f in (deployed.tracking / "artifacts").rglob("*") if f.is_file()}
    assert {"model.safetensors", "win_rate.png"} <= stored

    import psycopg

    postmaster = (deployed.tracking / "postgres" / "postmaster.pid").read_text().splitlines()
    with psycopg.connect(
        host="127.0.0.1", port=int(postmaster[3]), user="mlflow", dbname="mlflow",
        password=(deployed.tracking / "mlflow.password").read_text().strip(),
    ) as database:  # fmt: skip
        rows = database.execute("SELECT count(*) FROM metrics WHERE run_uuid = %s", [record.mlflow_run]).fetchone()
    assert rows is not None
    assert rows[0] > 20
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(host="127.0.0.1", port=int(postmaster[3]), user="mlflow", dbname="mlflow", password="wrong")


def test_prometheus_finds_the_metrics_by_the_names_that_dashboard_and_alerts_use(deployed):
    found = set(re.findall(r"(?m)^(ray_rondo_\w+)\{[^}]*run=\"deployed\"", _labelled(deployed.metrics)))
    wanted = {n for m in METRICS for n in m.exported} - _NOT_HERE
    assert wanted <= found, wanted - found
    assert found <= {n for m in METRICS for n in m.exported}
    values = {
        n: float(v)
        for n, v in re.findall(r"(?m)^(ray_rondo_(?:step|pairs_total|steps_total))\{[^}]*\} (\S+)$", deployed.metrics)
    }
    assert values["ray_rondo_step"] == values["ray_rondo_steps_total"] == 1
    assert values["ray_rondo_pairs_total"] >= 1


_NOT_HERE = {
    "ray_rondo_faults_total", "ray_rondo_judge_cost_total", "ray_rondo_judge_flip_rate", "ray_rondo_win_rate",
}  # fmt: skip
"""What the run has none of by then: lost actors, prices, verdicts that could flip, a win rate."""


def _labelled(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if 'run="deployed"' in line)


def test_nothing_of_mlflow_is_left_in_the_environment_of_the_tests():
    assert "MLFLOW_TRACKING_PASSWORD" not in os.environ
