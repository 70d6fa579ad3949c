"""The judges of a run: started as its configuration says, each behind one stage."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from actors.judges.combined import Escalation, People
from actors.judges.human import HumanPool
from actors.judges.protocol import Arbiter, Rater
from actors.judges.start import Surroundings, is_pointwise, start_arbiter, start_rater
from configs.judges import HumanJudge, Judge
from configs.runs import RunConfig
from pipelines.data.encode import model_encoder
from pipelines.data.report import Unfit
from pipelines.data.rules import DataRules
from pipelines.judging import JudgeStage
from pipelines.pairing import pairing_rules
from pipelines.progress import Progress
from preference.types import Prompt


def _people(arbiter: Arbiter) -> HumanPool | None:
    if isinstance(arbiter, Escalation):
        return _people(arbiter.then)
    return arbiter.pool if isinstance(arbiter, People) else None


def _privately(progress: Progress, run_dir: Path, links: str) -> None:
    """Links open the page to whoever has them: they go to the terminal, or to a file that only its owner can read."""
    if sys.stdout.isatty():
        progress.message(links)
        return
    file = run_dir / "links.txt"
    file.touch(mode=0o600)
    file.write_text(links + "\n")
    progress.message(
        f"people judge in this run: their links are in {file} (`rondo annotate --link NAME` makes new ones)"
    )


def start_judges(
    config: RunConfig, run_dir: Path, log_dir: Path, progress: Progress, spent: float = 0.0
) -> list[JudgeStage]:
    """The judge that pairs come from and, where there is one, the independent judge of held-out answers."""

    def encode(prompt: Prompt, text: str) -> tuple[int, ...]:
        try:
            return model_encoder(config.model.path, DataRules()).response_ids(prompt, text)
        except Unfit as error:
            raise ValueError(str(error)) from None

    def stage(judge: Judge, name: str) -> JudgeStage:
        labels = isinstance(judge, HumanJudge) and judge.mode == "labels"
        pool: Rater | Arbiter
        if is_pointwise(judge) and not labels:
            pool = start_rater(judge, around, name)
        else:
            pool = start_arbiter(judge, around, name)
        people = _people(pool) if isinstance(pool, Arbiter) else None
        budget = config.batching.micro_batch_tokens
        return JudgeStage(pool, people, rules, encode, budget, progress.message, labels=labels)

    rules = pairing_rules(config.pairing, config.sampling, config.run.seed)
    around = Surroundings(
        config.resources.judge, config.deadlines, run_dir, log_dir, config.model.path, config.run.seed, spent,
        partial(_privately, progress, run_dir),
    )  # fmt: skip
    judges = [stage(config.judge, "judge")]
    if config.evaluation.judge is not None:
        judges.append(stage(config.evaluation.judge, "second-judge"))
    return judges
