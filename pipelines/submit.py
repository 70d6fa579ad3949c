"""``rondo submit``: a run as a job of a cluster that is there already, through Ray's job API.

What is submitted anybody who may look at the cluster can read: the command, the runtime environment, the uploaded
files. So no value that holds a password is let through, and files that usually hold one are not uploaded. Secrets come
to a run from the environment that Ray was started in (on Kubernetes: ``secretKeyRef``).
"""

from __future__ import annotations

import asyncio
import logging
import re
import shlex
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import click

from configs.loading import config_kind, flatten, load_config
from configs.runs import OfflineConfig, RewardModelConfig, RunConfig, SftConfig, TrainingConfig

COMMANDS: Mapping[type[TrainingConfig], str] = {
    RunConfig: "run",
    OfflineConfig: "offline",
    SftConfig: "sft",
    RewardModelConfig: "reward-model",
}
EXCLUDES = (
    ".env", ".env.*", ".netrc", ".pgpass", ".aws/", ".ssh/", ".kube/", "*.pem", "*.key", "*.p12", "*.password",
    "id_rsa*", "id_ed25519*", "credentials.json", "auth_token",
)  # fmt: skip
"""What is never uploaded, besides what ``.gitignore`` and ``.rayignore`` name."""

_ASK_AGAIN_S = 1.0
_PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]+@|[?&](?:password|token|api_?key|secret)=[^&\s]", re.IGNORECASE)


class SubmitError(Exception):
    """A run cannot be submitted; the message says why and what to do."""


class Client(Protocol):
    """What is used of ``ray.job_submission.JobSubmissionClient``."""

    def submit_job(
        self, *, entrypoint: str, runtime_env: dict[str, Any], metadata: dict[str, str], submission_id: str
    ) -> str: ...

    def list_jobs(self) -> list[Any]: ...

    def get_job_status(self, job_id: str) -> Any: ...

    def tail_job_logs(self, job_id: str) -> AsyncIterator[str]: ...


def refuse_secrets(config: TrainingConfig) -> None:
    """Raise SubmitError naming every field whose value holds a password; the message does not show it."""
    found = [key for key, value in flatten(config).items() if _PASSWORD.search(value)]
    if found:
        raise SubmitError(
            f"{', '.join(found)}: the URL holds a password, which everybody who may look at the cluster's jobs would "
            f"read; leave it out and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or PGPASSWORD, where "
            f"Ray is started"
        )


def entrypoint(command: str, config: Path, overrides: Sequence[str], resume: str, working_dir: Path) -> str:
    """The shell command of the job, run in the copy of ``working_dir``: that copy's code, if it holds Rondo's."""
    try:
        file = config.resolve().relative_to(working_dir.resolve())
    except ValueError:
        raise SubmitError(
            f"{config} is not inside the working directory {working_dir}, so it would not be uploaded; move it there, "
            f"or give --working-dir"
        ) from None
    program = ["python", "-m", "pipelines.cli"] if (working_dir / "pipelines" / "cli.py").is_file() else ["rondo"]
    return shlex.join([*program, command, str(file), *overrides, f"--resume={resume}"])


def runtime_env(working_dir: Path) -> dict[str, Any]:
    """Files and nothing else: variables would come back in clear text from the job API."""
    return {"working_dir": str(working_dir.resolve()), "excludes": list(EXCLUDES)}


def submit(
    client: Client,
    config: Path,
    overrides: Sequence[str],
    resume: str,
    working_dir: Path,
    now: float | None = None,
    patience_s: float = 60.0,
) -> str:
    """Submit the run that ``config`` describes; returns the submission id. A head that has only just started takes jobs
    a little later: it is asked again for ``patience_s``.

    Raises ConfigError for a configuration that cannot be used, before anything is uploaded, and SubmitError.
    """
    kind = config_kind(config)
    loaded = load_config(kind, config, overrides)
    refuse_secrets(loaded)
    command = entrypoint(COMMANDS[kind], config, overrides, resume, working_dir)
    name = loaded.run.name
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
    try:
        for job in client.list_jobs():
            if (job.metadata or {}).get("rondo_run") == name and not job.status.is_terminal():
                raise SubmitError(
                    f"job {job.submission_id} is working on run {name}; wait for it, stop it with "
                    f"`ray job stop {job.submission_id}`, or give another run.name"
                )
        started = time.monotonic()
        while True:
            try:
                return client.submit_job(
                    entrypoint=command,
                    runtime_env=runtime_env(working_dir),
                    metadata={"rondo_run": name},
                    submission_id=f"{name}-{stamp}",
                )
            except RuntimeError as error:
                if "No available agent" not in str(error) or time.monotonic() - started > patience_s:
                    raise
                time.sleep(_ASK_AGAIN_S)
    except (RuntimeError, ConnectionError, ValueError) as error:
        raise SubmitError(f"the cluster did not take the job: {error}") from error


async def follow(client: Client, job: str, say: Callable[[str], None]) -> bool:
    """Repeat the job's output until it ends; returns whether it succeeded. A lost connection does not stop the job."""
    try:
        async for lines in client.tail_job_logs(job):
            say(lines)
    except RuntimeError as error:
        raise SubmitError(
            f"the connection to job {job} was lost ({error}); it goes on: `ray job logs --follow {job}`"
        ) from error
    while not (status := client.get_job_status(job)).is_terminal():
        await asyncio.sleep(0.2)  # the log ends a moment before the job
    say(f"job {job} {str(status).lower()}\n")
    return bool(str(status) == "SUCCEEDED")


@click.command("submit")
@click.argument("config", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
@click.option("--address", envvar="RAY_API_SERVER_ADDRESS", default="http://127.0.0.1:8265", show_default=True,
              help="The cluster's dashboard; also RAY_API_SERVER_ADDRESS.")  # fmt: skip
@click.option("--working-dir", type=click.Path(exists=True, file_okay=False, path_type=Path), default=".",
              show_default=True, help="What is uploaded: the configuration and the files beside it.")  # fmt: skip
@click.option("--no-wait", is_flag=True, help="Submit and return; else the job's output is followed to its end.")
@click.option(
    "--resume", type=click.Choice(["never", "auto", "must"]), default="auto", show_default=True,
    help="As of `rondo run`.",
)  # fmt: skip
def command(
    config: Path, overrides: tuple[str, ...], address: str, working_dir: Path, no_wait: bool, resume: str
) -> None:
    """Submit CONFIG to a running cluster as a job; it goes on when this terminal is closed.

    Whether it is an online run, offline, SFT or reward-model training is seen from CONFIG. Same name, same run: a
    second submission goes on where the first one stopped.
    """
    from pipelines.failures import is_expected

    try:
        client = connect(address)
        job = submit(client, config, overrides, resume, working_dir)
        click.echo(f"submitted job {job}; look: `ray job logs --follow {job}`, stop: `ray job stop {job}`")
        succeeded = no_wait or asyncio.run(follow(client, job, lambda text: click.echo(text, nl=False)))
    except KeyboardInterrupt:
        click.echo("no longer following; the job goes on", err=True)
        sys.exit(130)
    except Exception as error:
        if not is_expected(error):
            raise
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    sys.exit(0 if succeeded else 1)


def connect(address: str) -> Client:
    """A client of the cluster's job API. Raises SubmitError where nothing answers or the token is missing."""
    from ray.job_submission import JobSubmissionClient

    for name in ("ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)  # else a line for every file that is not uploaded

    try:
        client: Client = JobSubmissionClient(address)
    except (RuntimeError, ConnectionError, ValueError) as error:
        raise SubmitError(
            f"{address}: {error}; on Kubernetes forward the port first (kubectl port-forward svc/NAME-head-svc 8265) "
            f"and set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        ) from error
    return client
