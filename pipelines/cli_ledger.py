"""The commands that look after run directories: ``rondo status``, ``rondo verify``, ``rondo gc``."""

from __future__ import annotations

import sys

import click

ROOT = click.option("--root", default="~/.rondo/runs", show_default=True, help="Where RUN lies, if it is a name.")


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list: the run's phases.")
@ROOT
def status(run: str, as_json: bool, root: str) -> None:
    """Say what RUN has done, is doing and waits for, from its directory alone; no cluster is needed."""
    from rich.console import Console

    from pipelines.cli import _run_dir, _stop
    from pipelines.ledger.status import status as tell

    try:
        width = None if sys.stdout.isatty() else 200  # a file or pipe has no width to wrap at
        tell(_run_dir(run, root), Console(highlight=False, width=width), as_json=as_json)
    except Exception as error:
        _stop(error)


@click.command()
@click.argument("run", metavar="RUN")
@ROOT
def verify(run: str, root: str) -> None:
    """Audit RUN: every record whole, every prompt one fate, every pair trained once. Exits with 1 on any breach."""
    from pipelines.cli import _run_dir, _stop
    from pipelines.ledger.verify import verify as audit

    try:
        code = audit(_run_dir(run, root), click.echo)
    except Exception as error:
        _stop(error)
    sys.exit(code)


@click.command()
@click.argument("run", metavar="RUN|ROOT")
@click.option("--dry-run", is_flag=True, help="Only say what would be freed.")
@ROOT
def gc(run: str, dry_run: bool, root: str) -> None:
    """Free what RUN, or any run under ROOT, does not need any more. A running run is never touched."""
    from pipelines.cli import _run_dir, _stop
    from pipelines.ledger.gc import collect

    try:
        collect(_run_dir(run, root), click.echo, dry_run=dry_run)
    except Exception as error:
        _stop(error)
