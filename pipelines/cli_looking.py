"""The commands that look at runs: ``rondo report``, ``rondo compare``, ``rondo sweep``, ``rondo sync``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

ROOT = click.option("--root", default="~/.rondo/runs", show_default=True, help="Where RUN lies, if it is a name.")
HTML = click.option("--html", type=click.Path(dir_okay=False), help="Where the page goes.")


@click.command()
@click.argument("run", metavar="RUN")
@HTML
@ROOT
def report(run: str, html: str | None, root: str) -> None:
    """Write one self-contained HTML page about RUN, under way or ended: RUN/report.html, or where --html says."""
    from pipelines.cli import _run_dir, _stop
    from pipelines.look.report import report as write

    try:
        click.echo(f"written to {write(_run_dir(run, root), Path(html) if html else None)}")
    except Exception as error:
        _stop(error)


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...")
@HTML
@ROOT
def compare(runs: tuple[str, ...], html: str | None, root: str) -> None:
    """Show what differs between RUNs, how they ended, and by how much, prompt by prompt where they can be compared."""
    from rich.console import Console

    from pipelines.cli import _run_dir, _stop
    from pipelines.look.compare import compare as show

    try:
        show([_run_dir(run, root) for run in runs], Console(highlight=False), Path(html) if html else None)
    except Exception as error:
        _stop(error)


@click.command()
@click.argument("config", type=click.Path(dir_okay=False))
@click.argument("overrides", nargs=-1, metavar="SECTION.KEY=VALUE,VALUE...")
def sweep(config: str, overrides: tuple[str, ...]) -> None:
    """Run CONFIG once for every combination of the values given, one after another; a second time goes on with it."""
    from pipelines.cli import _stop
    from pipelines.sweep import plan
    from pipelines.sweep import sweep as run_all

    try:
        failed = run_all(plan(Path(config), overrides), click.echo)
    except KeyboardInterrupt:
        click.echo("stopped; the same command goes on from there", err=True)
        sys.exit(130)
    except Exception as error:
        _stop(error)
    sys.exit(1 if failed else 0)


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--uri", default="", help="MLflow's address, if it is not where RUN had it.")
@ROOT
def sync(run: str, uri: str, root: str) -> None:
    """Send MLflow what it has not got of RUN: it was down to the run's end, or has lost its data."""
    from pipelines.cli import _run_dir, _stop
    from pipelines.tracking import send_waiting

    try:
        missing = send_waiting(_run_dir(run, root), uri, lambda text: click.echo(f"warning: {text}", err=True))
    except Exception as error:
        _stop(error)
    click.echo(
        f"{len(missing)} entries could not be sent: {', '.join(missing[:5])}" if missing else "MLflow has everything"
    )
    sys.exit(1 if missing else 0)
