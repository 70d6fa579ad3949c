"""The commands that judge what is there: ``rondo evaluate``, ``rondo rejudge``, ``rondo arena``, ``rondo score``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pipelines.cli_ledger import ROOT

OVERRIDES = click.argument("overrides", nargs=-1, metavar="[SECTION.KEY=VALUE]...")


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False))
@click.option("--against", type=click.Path(exists=True, file_okay=False), required=True, help="Baseline model.")
@click.option("--config", default="configs/quickstart.yaml", show_default=True, help="Held-out prompts and judges.")
@OVERRIDES
def evaluate(model: str, against: str, config: str, overrides: tuple[str, ...]) -> None:
    """Held-out win rate of MODEL against another, with a 95% interval, under the config's judges."""
    from configs.runs import RunConfig
    from pipelines.cli import _execute, _load
    from pipelines.evaluate import evaluate_models
    from pipelines.progress import Progress

    loaded = _load(RunConfig, config, overrides)
    with Progress() as progress:
        _execute(evaluate_models(loaded, Path(model), Path(against), progress))


@click.command()
@click.argument("run", metavar="RUN")
@OVERRIDES
@click.option("--judge", "judge_file", type=click.Path(dir_okay=False), help="YAML file with another judge.")
@click.option("--apply", is_flag=True, help="Also write the pairs that follow, as `rondo offline` reads them.")
@click.option("--prompts", type=click.Path(dir_okay=False), help="The run's training prompts, if they do not ship.")
@ROOT
def rejudge(
    run: str, overrides: tuple[str, ...], judge_file: str | None, apply: bool, prompts: str | None, root: str
) -> None:
    """Judge RUN's candidates anew and show what changes: verdicts, pairs, win rate, the prompts that changed most.

    The judge is RUN's own with KEY=VALUE (judge.guidelines=values.txt) over it, or another one (judge={kind: ...}).
    RUN itself is not changed; what was judged before an interruption is not judged again.
    """
    from rich.console import Console

    from pipelines.cli import _execute, _run_dir, _stop
    from pipelines.data.runs import finished_run
    from pipelines.judging.rejudge import rejudge as judge_anew
    from pipelines.judging.rejudge import rejudge_config
    from pipelines.look.tables import show_rejudged
    from pipelines.progress import Progress

    async def work() -> None:
        report = await judge_anew(run_dir, config, progress, apply=apply, prompts=Path(prompts) if prompts else None)
        show_rejudged(report, Console(highlight=False))

    try:
        run_dir = _run_dir(run, root)
        config = rejudge_config(run_dir, finished_run(run_dir), judge_file, overrides, Path.cwd())
    except Exception as error:
        _stop(error)
    with Progress() as progress:
        _execute(work(), again="the same command")


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="RUN|MODEL... [SECTION.KEY=VALUE]...")
@click.option("--config", help="Held-out prompts, sampling, judge.  [default: RUN's own, else configs/quickstart.yaml]")
@click.option("--out", type=click.Path(file_okay=False), help="Where answers, judgements and report go.")
@ROOT
def arena(words: tuple[str, ...], config: str | None, out: str | None, root: str) -> None:
    """Let versions of a RUN, or any models, answer held-out prompts and play each other: Elo with 95% intervals.

    Of a RUN play its initial and final model, the checkpoints and the earlier versions that it keeps. What has been
    answered and judged in --out (RUN/arena by default) is not done again.
    """
    from tempfile import TemporaryDirectory

    from rich.console import Console

    from pipelines.cli import _execute, _run_dir, _stop
    from pipelines.ledger.recorded import arena_config
    from pipelines.look.tables import show_arena
    from pipelines.play.arena import arena as hold
    from pipelines.play.contestants import contestants
    from pipelines.progress import Progress

    targets = [_run_dir(w, root) for w in words if "=" not in w]
    with TemporaryDirectory(prefix="rondo-arena-") as scratch:
        try:
            loaded = arena_config(targets, config, [w for w in words if "=" in w], Path.cwd())
            players = contestants(targets, Path(scratch))
        except Exception as error:
            _stop(error)
        runs = [t for t in targets if (t / "run.json").is_file()]
        place = Path(out) if out else (runs[0] / "arena" if runs else Path("arena"))

        async def work() -> None:
            report = await hold(loaded, players, place.resolve(), progress)
            show_arena(report, Console(highlight=False))

        with Progress() as progress:
            _execute(work(), again="the same command")


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False))
@click.argument("file", type=click.Path(exists=True))
@click.option("--reference", type=click.Path(exists=True, file_okay=False), help="The model that MODEL began as.")
@click.option("--out", type=click.Path(dir_okay=False), help="Where the scores go; FILE.scored.jsonl by default.")
@click.option("--beta", type=float, help="Scale of implicit rewards.  [default: 0.1]")
@click.option("--length-normalised", is_flag=True, help="Implicit rewards a token instead of a response.")
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), default="float32", show_default=True)
@click.option("--batch-tokens", type=int, default=4096, show_default=True, help="Most tokens of one forward pass.")
@click.option("--max-tokens", type=int, help="Longest conversation of a reward model.  [default: 2048]")
@click.option("--actors", type=click.IntRange(min=1), default=1, show_default=True, help="Copies of the model.")
@click.option("--gpus", type=float, default=0.0, show_default=True, help="GPUs of each copy.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="CPU threads of each copy.")
def score(
    model: str, file: str, reference: str | None, out: str | None, actors: int, gpus: float, threads: int, **knobs: Any
) -> None:
    """Rewards of the responses in FILE, pairs (or a run's directory) or candidates for best-of-n.

    MODEL is a reward model, or with --reference a trained policy: beta x (log pi - log pi_ref).
    """
    from configs.loading import ConfigError
    from configs.schema import Group
    from pipelines.cli import _execute, _stop
    from pipelines.judging.score import score_file, scoring_judge
    from pipelines.progress import Progress

    given = {name: value for name, value in knobs.items() if value not in (None, False)}
    try:
        judge = scoring_judge(model, reference, given)
    except ConfigError as error:
        _stop(error)
    group = Group(actors=actors, gpus=gpus, threads=threads)
    target = Path(out) if out else Path(f"{Path(file).stem}.scored.jsonl")
    with Progress() as progress:
        _execute(score_file(judge, group, Path(file), target, progress))
