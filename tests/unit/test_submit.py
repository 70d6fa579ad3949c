"""``rondo submit`` against a hand-written job API: what it sends, what it refuses, how it ends."""

from __future__ import annotations

import asyncio
import shlex
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from configs.loading import ConfigError
from pipelines import submit as submitting
from pipelines.submit import EXCLUDES, SubmitError, follow, runtime_env, submit

ROOT = Path(__file__).parents[2]


class Status(str):
    def is_terminal(self) -> bool:
        return self in ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass
class JobApi:
    """The part of a cluster that ``rondo submit`` talks to."""

    running: list[Any] = field(default_factory=list)
    statuses: list[str] = field(default_factory=lambda: ["RUNNING", "SUCCEEDED"])
    breaks: bool = False
    sent: list[dict[str, Any]] = field(default_factory=list)

    def submit_job(self, **job: Any) -> str:
        self.sent.append(job)
        return str(job["submission_id"])

    def list_jobs(self) -> list[Any]:
        return self.running

    def get_job_status(self, job_id: str) -> Status:
        return Status(self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0])

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        yield "step 1/2\n"
        if self.breaks:
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
        yield "step 2/2\n"


@pytest.fixture
def api() -> JobApi:
    return JobApi()


@pytest.fixture
def here(tmp_path) -> Path:
    """A working directory of somebody who has Rondo installed: a configuration and its prompts."""
    text = (ROOT / "configs" / "quickstart.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text)
    shutil.copytree(ROOT / "configs" / "prompts", tmp_path / "prompts")
    return tmp_path


def test_what_is_sent(api, here):
    job = submit(api, here / "mine.yaml", ["run.name=a b", "objective.beta=0.2"][1:], "auto", here, now=0)
    assert job == "quickstart-19700101-000000"
    [sent] = api.sent
    assert shlex.split(sent["entrypoint"]) == ["rondo", "run", "mine.yaml", "objective.beta=0.2", "--resume=auto"]
    assert sent["metadata"] == {"rondo_run": "quickstart"}
    assert sent["runtime_env"] == {"working_dir": str(here), "excludes": list(EXCLUDES)}


@pytest.mark.parametrize(
    ("config", "command"),
    [
        ("quickstart", "run"),
        ("verifiable", "run"),
        ("offline", "offline"),
        ("sft", "sft"),
        ("reward_model", "reward-model"),
    ],
)
def test_the_command_is_seen_from_the_configuration(api, config, command):
    submit(api, ROOT / "configs" / f"{config}.yaml", [], "never", ROOT)
    words = shlex.split(api.sent[0]["entrypoint"])
    assert words == ["python", "-m", "pipelines.cli", command, f"configs/{config}.yaml", "--resume=never"]


def test_an_override_is_one_word_whatever_stands_in_it(api, here):
    override = "model.path=/models/a model; rm -rf $HOME"
    submit(api, here / "mine.yaml", [override], "auto", here)
    assert shlex.split(api.sent[0]["entrypoint"])[3] == override


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("tracking.uri=https://me:hunter2@mlflow.example.com", "tracking.uri"),
        ("tracking.uri=postgresql://u:hunter2@h/db", "tracking.uri"),
        ("tracking.uri=https://mlflow.example.com/?token=hunter2", "tracking.uri"),
        (
            "judge={kind: human, store: 'postgresql+psycopg://a:hunter2@h/x', serve: false}",
            "judge.store",
        ),
    ],
)
def test_a_password_does_not_leave_this_machine(api, here, override, field):
    with pytest.raises(SubmitError) as refused:
        submit(api, here / "mine.yaml", [override], "auto", here)
    assert field in str(refused.value)
    assert "MLFLOW_TRACKING_PASSWORD" in str(refused.value)
    assert "hunter2" not in str(refused.value)
    assert api.sent == []


@pytest.mark.parametrize("uri", ["http://mlflow:5000", "postgresql+psycopg://mlflow@/mlflow", "sqlite:////x/a:b.db"])
def test_an_address_without_a_password_is_fine(api, here, uri):
    submit(api, here / "mine.yaml", [f"tracking.uri={uri}"], "auto", here)
    assert len(api.sent) == 1


def test_no_variable_is_ever_sent(api, here, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    monkeypatch.setenv("OPENAI_API_KEY", "hunter2")
    submit(api, here / "mine.yaml", [], "auto", here)
    assert "hunter2" not in str(api.sent)
    assert set(api.sent[0]["runtime_env"]) == {"working_dir", "excludes"}


def test_files_that_hold_secrets_stay_here(here):
    """By Ray's own rules of what ``excludes`` leaves out."""
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    secret = [".env", ".env.local", ".netrc", "server.pem", "tls.key", "id_rsa", "keys/id_ed25519", "credentials.json",
              ".aws/credentials", "deep/er/.ssh/config", "mlflow.password", "auth_token"]  # fmt: skip
    for name in [*secret, "rules.py", "environment.yaml", "keys/readme.md"]:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("hunter2")
    kept: list[str] = []
    excludes = [_get_excludes(here, runtime_env(here)["excludes"])]
    _dir_travel(here, excludes, lambda p: kept.append(str(p.relative_to(here))), include_gitignore=True)
    files = {k for k in kept if (here / k).is_file()}
    assert files >= {"mine.yaml", "rules.py", "environment.yaml", "keys/readme.md"}
    assert files & set(secret) == set()


def test_mistakes_are_found_before_anything_is_sent(api, here, tmp_path_factory):
    with pytest.raises(ConfigError, match="did you mean 'beta'"):
        submit(api, here / "mine.yaml", ["objective.bta=1"], "auto", here)
    with pytest.raises(SubmitError, match="not inside the working directory"):
        submit(api, here / "mine.yaml", [], "auto", tmp_path_factory.mktemp("elsewhere"))
    assert api.sent == []


def test_a_run_is_worked_on_by_one_job_at_a_time(api, here):
    job = SimpleNamespace(submission_id="old-1", metadata={"rondo_run": "quickstart"}, status=Status("RUNNING"))
    api.running = [SimpleNamespace(submission_id="x", metadata=None, status=Status("RUNNING")), job]
    with pytest.raises(SubmitError, match=r"job old-1 is working on run quickstart.*ray job stop old-1"):
        submit(api, here / "mine.yaml", [], "auto", here)
    job.status = Status("FAILED")
    submit(api, here / "mine.yaml", [], "auto", here)
    assert len(api.sent) == 1


def test_a_cluster_that_refuses_is_quoted(api, here):
    def refuse(**_: Any) -> str:
        raise RuntimeError("Request failed with status code 401: Unauthorized")

    api.submit_job = refuse  # type: ignore[method-assign]
    with pytest.raises(SubmitError, match="401"):
        submit(api, here / "mine.yaml", [], "auto", here)


def test_a_head_that_has_only_just_started_is_asked_again(api, here, monkeypatch):
    monkeypatch.setattr(submitting, "_ASK_AGAIN_S", 0.0)
    answers = [RuntimeError("Request failed with status code 500: No available agent to submit job"), None]
    take = api.submit_job

    def starting(**job: Any) -> str:
        if (error := answers.pop(0)) is not None:
            raise error
        return take(**job)

    api.submit_job = starting  # type: ignore[method-assign]
    submit(api, here / "mine.yaml", [], "auto", here)
    assert len(api.sent) == 1
    answers = [RuntimeError("No available agent")] * 2
    with pytest.raises(SubmitError, match="No available agent"):
        submit(api, here / "mine.yaml", [], "auto", here, patience_s=-1.0)


@pytest.mark.parametrize(("end", "good"), [("SUCCEEDED", True), ("FAILED", False), ("STOPPED", False)])
def test_following_ends_with_the_job(end, good):
    said: list[str] = []
    assert asyncio.run(follow(JobApi(statuses=[end]), "j", said.append)) is good
    assert said == ["step 1/2\n", "step 2/2\n", f"job j {end.lower()}\n"]


def test_a_lost_connection_says_how_to_look_again():
    with pytest.raises(SubmitError, match="ray job logs --follow j"):
        asyncio.run(follow(JobApi(breaks=True), "j", lambda _: None))


def test_nothing_answers(here, capsys):
    from click.testing import CliRunner

    from pipelines.cli import main

    done = CliRunner().invoke(
        main, ["submit", str(here / "mine.yaml"), "--working-dir", str(here), "--address", "http://127.0.0.1:9"]
    )
    assert done.exit_code == 1
    assert "127.0.0.1:9" in done.output
    assert "port-forward" in done.output
    assert submitting.command.name == "submit"
