"""The ``rondo`` command."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from configs.loading import ConfigError, config_kind, load_config
from configs.runs import OfflineConfig, RewardModelConfig, RunConfig, SftConfig, TrainingConfig

C = TypeVar("C", bound=TrainingConfig)
OVERRIDES = click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
RESUME = click.option(
    "--resume",
    type=click.Choice(["never", "auto", "must"]),
    default="never",
    show_default=True,
    help="never: a new run; auto: go on if the run exists and its configuration fits; must: only go on.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rondo")
def main() -> None:
    """Rondo: online DPO on Ray, vLLM and DeepSpeed ZeRO-3."""
    sys.path.insert(0, os.getcwd())  # a judge rule beside the config is found, as with `python -m`


@main.command()
@click.argument("config", type=click.Path(dir_okay=False))
@OVERRIDES
@RESUME
def run(config: str, overrides: tuple[str, ...], resume: str) -> None:
    """Run online DPO as CONFIG says: sample, judge, pair, score, train, publish; evaluate and export."""
    from pipelines.online import run_online
    from pipelines.progress import Progress

    loaded = _load(RunConfig, config, overrides)
    with Progress() as progress:
        _execute(run_online(loaded, resume, progress))  # type: ignore[arg-type]


@main.command()
@click.argument("config", type=click.Path(dir_okay=False))
@OVERRIDES
@RESUME
def offline(config: str, overrides: tuple[str, ...], resume: str) -> None:
    """Train on preference data from files as CONFIG says: pairs or labelled responses, any objective."""
    _from_files(OfflineConfig, config, overrides, resume)


@main.command()
@click.argument("config", type=click.Path(dir_okay=False))
@OVERRIDES
@RESUME
def sft(config: str, overrides: tuple[str, ...], resume: str) -> None:
    """Supervised fine-tuning on demonstrations from files as CONFIG says."""
    _from_files(SftConfig, config, overrides, resume)


def _from_files(kind: type[OfflineConfig], config: str, overrides: tuple[str, ...], resume: str) -> None:
    from pipelines.offline import run_offline
    from pipelines.progress import Progress

    loaded = _load(kind, config, overrides)
    with Progress() as progress:
        _execute(run_offline(loaded, resume, progress))  # type: ignore[arg-type]


@main.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False))
@click.option("--against", type=click.Path(exists=True, file_okay=False), required=True, help="Baseline model.")
@click.option("--config", default="configs/quickstart.yaml", show_default=True, help="Held-out prompts and judges.")
@OVERRIDES
def evaluate(model: str, against: str, config: str, overrides: tuple[str, ...]) -> None:
    """Held-out win rate of MODEL against another, with a 95% interval, under the config's judges."""
    from pipelines.evaluate import evaluate_models
    from pipelines.progress import Progress

    loaded = _load(RunConfig, config, overrides)
    with Progress() as progress:
        _execute(evaluate_models(loaded, Path(model), Path(against), progress))


@main.command()
@click.argument("run", metavar="RUN")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--root", default="~/.rondo/runs", show_default=True, help="Where RUN lies, if it is a name.")
def pairs(run: str, file: str, root: str) -> None:
    """Write the preference pairs that RUN was trained on to FILE, a line each, as `rondo offline` reads them."""
    from pipelines.data import write_pairs

    try:
        click.echo(f"{write_pairs(_run_dir(run, root), Path(file))} pairs written to {file}")
    except Exception as error:
        _stop(error)


@main.command()
@click.argument("run", metavar="RUN")
@click.argument("directory", type=click.Path(file_okay=False))
@click.option("--root", default="~/.rondo/runs", show_default=True, help="Where RUN lies, if it is a name.")
def export(run: str, directory: str, root: str) -> None:
    """Write RUN's model (final, or of its newest checkpoint) to DIRECTORY as a Hugging Face model."""
    from pipelines.export import export_run

    try:
        click.echo(f"exported to {export_run(_run_dir(run, root), Path(directory))}")
    except Exception as error:
        _stop(error)


@main.command()
@click.argument("config", type=click.Path(dir_okay=False), default="configs/quickstart.yaml")
@OVERRIDES
def doctor(config: str, overrides: tuple[str, ...]) -> None:
    """Say what of this machine fits CONFIG and what does not."""
    from pipelines.doctor import doctor as examine

    sys.exit(examine(_load(_kind(config), config, overrides)))


@main.command("reward-model")
@click.argument("config", type=click.Path(dir_okay=False))
@OVERRIDES
@RESUME
def reward_model(config: str, overrides: tuple[str, ...], resume: str) -> None:
    """Train a Bradley-Terry reward model on preference pairs from files as CONFIG says."""
    _from_files(RewardModelConfig, config, overrides, resume)


def _run_dir(run: str, root: str) -> Path:
    """RUN as people give it: a directory, or a run's name."""
    return Path(run) if Path(run).is_dir() else Path(root).expanduser() / run


def _load(kind: type[C], config: str, overrides: tuple[str, ...]) -> C:
    try:
        return load_config(kind, config, overrides)
    except ConfigError as error:
        _stop(error)


def _kind(config: str) -> type[TrainingConfig]:
    try:
        return config_kind(config)
    except ConfigError as error:
        _stop(error)


def _execute(work: Coroutine[Any, Any, object]) -> None:
    """Run to the end; Ctrl-C and SIGTERM cancel, take everything down, and exit with the shell's codes."""

    async def cancellable() -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        await work

    try:
        asyncio.run(cancellable())
    except (KeyboardInterrupt, asyncio.CancelledError):
        click.echo("stopped; what was finished is kept, --resume=auto goes on from there", err=True)
        sys.exit(130)
    except Exception as error:
        _stop(error)


def _stop(error: Exception) -> NoReturn:
    """Errors a person can act on are one message; anything else is a bug and keeps its traceback."""
    from pipelines.failures import is_expected

    if not is_expected(error):
        raise error
    click.echo(f"error: {error}", err=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
