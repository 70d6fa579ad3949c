"""``rondo sweep``: one configuration with several values of some fields, run one after another, and their frontier.

    CONFIG objective.beta=0.05,0.1,0.3 run.seed=0,1     six runs, nested under one run in MLflow

    run.root/NAME-sweep/sweep.json     what every run came to, appended as each ends
                        sweep.html     `rondo compare` of all of them
                        frontier.png   held-out score against KL, coloured by the first field that is swept

A sweep that was interrupted goes on where it stopped: runs that are finished are not run again.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from configs.loading import ConfigError, config_kind, load_config
from configs.runs import OfflineConfig, RewardModelConfig, RunConfig, SftConfig, TrainingConfig
from pipelines.data.rules import DataError
from pipelines.look.compare import load_runs, render
from pipelines.look.figures import frontier, frontier_figure
from pipelines.look.page import write_page
from pipelines.look.report import evaluation_of, load
from pipelines.tracking.history import Record
from preference.types import content_id

_LONGEST_NAME = 63  # of a run, as configs.schema has it
_COMMANDS: Mapping[type[TrainingConfig], str] = {
    RunConfig: "run",
    OfflineConfig: "offline",
    SftConfig: "sft",
    RewardModelConfig: "reward-model",
}


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of a sweep."""

    name: str
    values: Mapping[str, str]
    """The swept fields, as overrides write them."""
    overrides: tuple[str, ...]
    config: TrainingConfig

    @property
    def directory(self) -> Path:
        return Path(self.config.run.root) / self.name


@dataclass(frozen=True, slots=True)
class Sweep:
    name: str
    command: str
    config: Path
    trials: tuple[Trial, ...]

    @property
    def directory(self) -> Path:
        return Path(self.trials[0].config.run.root) / self.name


Launch = Callable[[Sequence[str]], int]
"""Runs a command to its end and returns its exit status."""


def plan(config: Path, overrides: Sequence[str]) -> Sweep:
    """Every combination of the values given, each loaded and checked before the first begins; raises ConfigError.

    ``section.key=a,b`` is swept over ``a`` and ``b`` (YAML values; what stands in brackets is one value),
    ``section.key=a`` holds for all runs.
    """
    kind = config_kind(config)
    fixed, swept = [], dict[str, list[str]]()
    for override in overrides:
        key, _, text = override.partition("=")
        values = _values(override, text)
        if len(values) == 1:
            fixed.append(override)
        elif key.strip() == "run.name":
            raise ConfigError(f"override {override!r}: a sweep names its runs by the values that differ; give one name")
        else:
            swept[key.strip()] = values
    if not swept:
        raise ConfigError("nothing to sweep over: give a field several values, e.g. objective.beta=0.05,0.1,0.3")
    base = load_config(kind, config, fixed)
    name = f"{base.run.name}-sweep"
    trials = []
    for combination in itertools.product(*swept.values()):
        chosen = dict(zip(swept, combination, strict=True))
        own = trial_name(base.run.name, chosen)
        words = (*fixed, *(f"{k}={v}" for k, v in chosen.items()), f"run.name={own}", f"tracking.parent={name}")
        trials.append(Trial(own, chosen, words, load_config(kind, config, words)))
    if len({t.name for t in trials}) < len(trials):
        raise ConfigError("two runs of the sweep would be the same: a value is given twice")
    return Sweep(name, _COMMANDS[kind], config, tuple(trials))


def _values(override: str, text: str) -> list[str]:
    try:
        found = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML: {error}") from None
    return [v if isinstance(v, str) else json.dumps(v) for v in found] if len(found) > 1 else [text]


def trial_name(base: str, values: Mapping[str, str]) -> str:
    """``demo-beta0.1-seed0``; where values do not fit into a name it ends in a hash of them instead."""
    plain = "-".join([base, *(key.rpartition(".")[2] + value for key, value in values.items())])
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", plain)
    if name == plain and len(name) <= _LONGEST_NAME:
        return name
    end = content_id(dict(values))[:8]
    return f"{name[: _LONGEST_NAME - len(end) - 1].rstrip('-')}-{end}"


def sweep(planned: Sweep, say: Callable[[str], None], launch: Launch | None = None) -> list[str]:
    """Run what is not finished, one after another; returns the names of runs that failed: they do not end the sweep."""
    launch = launch or _launch
    planned.directory.mkdir(parents=True, exist_ok=True)
    failed: dict[str, int] = {}
    for number, trial in enumerate(planned.trials, start=1):
        say(f"run {number} of {len(planned.trials)}: {', '.join(f'{k}={v}' for k, v in trial.values.items())}")
        words = [planned.command, str(planned.config), *trial.overrides, "--resume=auto"]
        if not _is_finished(trial) and (code := launch(words)):
            if code in (130, -2):  # Ctrl-C is for the sweep
                raise KeyboardInterrupt
            failed[trial.name] = code
            say(f"run {trial.name} failed (exit status {code}); the sweep goes on, and tries again when it is resumed")
        write_results(planned, failed)
    say(f"results: {planned.directory / 'sweep.json'}, {planned.directory / 'sweep.html'}")
    return list(failed)


def write_results(planned: Sweep, failed: Mapping[str, int]) -> dict[str, Any]:
    """``sweep.json``, ``sweep.html`` and ``frontier.png`` of what there is by now; returns what the first holds."""
    measured = {t.name: record for t in planned.trials if (record := _measured(t)) is not None}
    runs = [_result(t, measured.get(t.name), failed.get(t.name, 0)) for t in planned.trials]
    result = {"sweep": planned.name, "config": planned.config.name, "runs": [r for r in runs if r is not None]}
    partial = planned.directory / "sweep.json.partial"
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, planned.directory / "sweep.json")
    swept = next(iter(planned.trials[0].values))
    series = {t.name: measured[t.name].history for t in planned.trials if t.name in measured}
    groups = {t.name: t.values[swept] for t in planned.trials}
    figure = frontier_figure(series, swept, groups)
    if figure is not None:
        figure.savefig(planned.directory / "frontier.png")
    if len(measured) > 1:
        compared = load_runs([t.directory for t in planned.trials if t.name in measured])
        write_page(planned.directory / "sweep.html", render(compared, f"Sweep {planned.name}"), "sweep.html")
    return result


def _result(trial: Trial, measured: Record | None, code: int) -> dict[str, Any] | None:
    if measured is None:
        return {"run": trial.name, "values": dict(trial.values), "failed": code} if code else None
    points = {}
    for source in ("probe", "eval"):
        steps, kl, score = frontier(measured.history, source)
        points[source] = [[s, round(k, 4), round(v, 4)] for s, k, v in zip(steps, kl, score, strict=True)]
    result: dict[str, Any] = {"run": trial.name, "values": dict(trial.values), "steps": measured.steps}
    if code:
        result["failed"] = code
    if (event := measured.last_evaluation) is not None:
        evaluation = evaluation_of(event)
        result["win_rate"] = {
            j.judge: [round(x, 4) for x in (j.win_rate.rate, j.win_rate.low, j.win_rate.high)]
            for j in evaluation.judges
        }
        result["kl"] = round(evaluation.kl, 4)
        result["length"] = [round(evaluation.length_before, 1), round(evaluation.length_after, 1)]
    return result | {"points": {"columns": ["step", "kl", "score"], **points}, "seconds": round(measured.seconds, 1)}


def _measured(trial: Trial) -> Record | None:
    try:
        return load(trial.directory)[1]
    except DataError:
        return None


def _is_finished(trial: Trial) -> bool:
    try:
        return bool(load(trial.directory)[0].finished)
    except DataError:
        return False


def _launch(words: Sequence[str]) -> int:
    """In a process of its own: Ray and MLflow leave no state behind for the next run."""
    process = subprocess.Popen([sys.executable, "-m", "pipelines.cli", *words])
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # the run has met Ctrl-C, too, and takes everything down by itself
