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
from pipelines import cli_judging, cli_ledger, cli_looking, submit
from pipelines.cli_judging import OVERRIDES
from pipelines.plan import command as planning

C = TypeVar("C", bound=TrainingConfig)
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


for command in (cli_ledger.status, cli_ledger.verify, cli_ledger.gc):
    main.add_command(command)


main.add_command(submit.command)
for looking in (cli_looking.report, cli_looking.compare, cli_looking.sweep, cli_looking.sync):
    main.add_command(looking)
main.add_command(planning.plan)
for judging in (cli_judging.evaluate, cli_judging.rejudge, cli_judging.arena, cli_judging.score):
    main.add_command(judging)


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


@main.command()
@click.argument("run", metavar="RUN")
@OVERRIDES
@click.option("--root", default="~/.rondo/runs", show_default=True, help="Where RUN lies, if it is a name.")
def resume(run: str, overrides: tuple[str, ...], root: str) -> None:
    """Go on with RUN, of whatever kind, as it was configured: it was stopped or killed, or is to have more steps."""
    from pipelines.ledger.record import CONFIGURATION
    from pipelines.offline import run_offline
    from pipelines.online import run_online
    from pipelines.progress import Progress

    directory = _run_dir(run, root).resolve()
    file = str(directory / CONFIGURATION)
    # It may have been moved since: it goes on where it is.
    here = (f"run.root={directory.parent}", f"run.name={directory.name}")
    loaded = _load(_kind(file), file, (*here, *overrides))
    with Progress() as progress:
        if isinstance(loaded, RunConfig):
            _execute(run_online(loaded, "must", progress))
        elif isinstance(loaded, OfflineConfig):
            _execute(run_offline(loaded, "must", progress))


def _from_files(kind: type[OfflineConfig], config: str, overrides: tuple[str, ...], resume: str) -> None:
    from pipelines.offline import run_offline
    from pipelines.progress import Progress

    loaded = _load(kind, config, overrides)
    with Progress() as progress:
        _execute(run_offline(loaded, resume, progress))  # type: ignore[arg-type]


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
@click.argument("source", metavar="RUN|FILE")
@click.option("--html", type=click.Path(dir_okay=False), help="Also write a page with figures and examples.")
@click.option(
    "--format",
    type=click.Choice(["auto", "pairs", "labels", "sft", "argilla", "label_studio"]),
    default="auto",
    show_default=True,
    help="Format of a file's records; auto: recognised by the fields of the first one.",
)
@click.option("--track/--no-track", default=True, show_default=True, help="Also put a run's figures into MLflow.")
@click.option("--root", default="~/.rondo/runs", show_default=True, help="Where RUN lies, if it is a name.")
def inspect(source: str, html: str | None, format: str, track: bool, root: str) -> None:
    """Diagnose preference data: length bias, diversity, the judge's doubts, coverage, of a run or of any pair file."""
    from rich.console import Console

    from pipelines.data import DataRules
    from pipelines.look.inspect import inspect as diagnose

    path = Path(source) if Path(source).is_file() else _run_dir(source, root)
    try:
        rules = DataRules(format=format)  # type: ignore[arg-type]
        diagnose(path, Console(), Path(html) if html else None, rules, track)
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


@main.command()
@click.argument("target", metavar="RUN|STORE|FILE")
@click.argument("knobs", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--annotator", "annotators", multiple=True, metavar="NAME", help="Print a link for NAME; may be repeated."
)
@click.option("--reviewer", "reviewers", multiple=True, metavar="NAME", help="The same for one who decides conflicts.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8700, show_default=True, help="0: any free one.")
@click.option("--behind-tls", is_flag=True, help="A proxy ends TLS: trust its headers, secure cookies.")
@click.option("--trusted-proxies", default="127.0.0.1,::1", show_default=True, metavar="ADDRESSES",
              help="Addresses or networks whose forwarded headers count behind TLS.")  # fmt: skip
@click.option("--public-url", default="", help="Address that people open, if it is not host and port.")
@click.option("--link", metavar="NAME", help="Only print a new link for NAME.")
@click.option("--erase", metavar="NAME", help="Only erase NAME: name, words and times; choices stay under no name.")
@click.option("--export", type=click.Path(dir_okay=False), metavar="FILE", help="Only write items and labels to FILE.")
@click.option("--format", type=click.Choice(["jsonl", "argilla", "label_studio"]), default="jsonl", help="Of --export.")
@click.option("--import", "import_file", type=click.Path(exists=True, dir_okay=False), metavar="FILE",
              help="Only add FILE's items and labels.")  # fmt: skip
@click.option("--root", default="~/.rondo/runs", show_default=True, help="Where RUN lies, if it is a name.")
def annotate(
    target: str, knobs: tuple[str, ...], annotators: tuple[str, ...], reviewers: tuple[str, ...], host: str, port: int,
    behind_tls: bool, trusted_proxies: str, public_url: str, link: str | None, erase: str | None, export: str | None,
    format: str, import_file: str | None, root: str,
) -> None:  # fmt: skip
    """Serve a web page on which people judge: the items of a run, of a database, or of a FILE of pairs.

    KEY=VALUE are knobs of the human judge (overlap=2, guidelines=mine.md ...) for a FILE.
    """
    from pipelines.annotate import command

    try:
        store = command.open_target(target, root, knobs)
        serving = command.Serving(host, port, behind_tls, public_url, trusted_proxies)
        if link:
            command.new_link(store, serving, link, click.echo)
        elif erase:
            command.forget(store, erase, click.echo)
        elif export:
            command.write_file(store, Path(export), format, click.echo)  # type: ignore[arg-type]
        elif import_file:
            command.read_file(store, Path(import_file), click.echo)
        else:
            command.serve(store, serving, command.add_people(store, annotators, reviewers), click.echo)
    except Exception as error:
        _stop(error)


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


def _execute(work: Coroutine[Any, Any, object], again: str = "`rondo resume RUN`") -> None:
    """Run to the end; Ctrl-C and SIGTERM cancel, take everything down, and exit with the shell's codes."""

    async def cancellable() -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        await work

    try:
        asyncio.run(cancellable())
    except (KeyboardInterrupt, asyncio.CancelledError):
        click.echo(f"stopped; what was finished is kept, {again} goes on from there", err=True)
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
