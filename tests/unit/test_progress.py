"""What the person sees, and that nothing a model writes or a reader does can end a run."""

import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from actors.quiet import quiet_env
from pipelines.progress import Progress
from pipelines.wording import over_optimisation, step_line
from preference.reports import (
    BeforeAfter,
    EvalReport,
    Judged,
    ProbeMetrics,
    SampleMetrics,
    SampleRow,
    StageTime,
    StepReport,
)
from preference.types import Fate, Version
from preference.winrate import WinRate, wilson
from tests.factories import JUDGING, TRAINED

ROOT = Path(__file__).parents[2]
HOSTILE = "[/nope] [bold]x \x1b[2J\x1b]0;title\x07 \ud800 \u202egnp\u2066 😀\r\n\x00"


def step(number: int = 3, trained: bool = True) -> StepReport:
    train = TRAINED
    return StepReport(
        step=number,
        version=Version(0, number),
        fates={Fate.TRAINED: 14 * trained, Fate.TIED: 16 - 14 * trained - 1, Fate.IDENTICAL: 1},
        stages=(
            StageTime("sample", 5.9, 3074),
            StageTime("judge", 0.1, 0),
            StageTime("reference", 1.7, 2193),
            StageTime("train", 6.1, 2318),
            StageTime("publish", 0.9, 0),
        ),
        seconds=14.8,
        sample=SampleMetrics(0.52, 0.3, 47.2, 0.8, 90.0, JUDGING),
        probe=ProbeMetrics(0.49, 1.8, 8),
        train=train if trained else None,
        ages=(0,) * 14 if trained else (),
        rows=(SampleRow("p", HOSTILE, HOSTILE, 0.5, "chosen", "0.2", 9),),
    )


def judged(name: str, wins: int, losses: int) -> Judged:
    low, high = wilson(wins, wins + losses)
    return Judged(name, WinRate(wins, 0, losses, wins / (wins + losses), low, high), 0.8, 0.46, 0.95)


def evaluation(*judges: Judged, length_after: float = 42.0) -> EvalReport:
    example = BeforeAfter(HOSTILE, HOSTILE, "good " * 200, 0.1, 0.9)
    return EvalReport(16, Version(0, 16), judges, 40.0, length_after, 8.4, (example,) * 5, 20.0)


def shown(terminal: bool, use: Callable[[Progress], None]) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, highlight=False, _environ={"TERM": "xterm"})
    with Progress(console) as progress:
        use(progress)
    return out.getvalue()


def test_an_iteration_is_one_line_with_everything() -> None:
    assert step_line(step(), 16) == (
        "step 3/16  v0.3  14 pairs (1 tied, 1 identical)  reward +0.52  held-out +0.49  KL 1.8  loss 0.61  acc 0.71  "
        "mismatch 0.031  len 47 | sample 5.9s 521 tok/s · judge 0.1s · ref 1.7s 1290 tok/s · train 6.1s 380 tok/s · "
        "publish 0.9s | 14.8s"
    )
    assert shown(False, lambda p: p.step_done(step(), 16)) == step_line(step(), 16) + "\n"


@pytest.mark.parametrize("width", [60, 80, 100, 140, 200])
def test_a_narrow_terminal_gets_what_matters_most(width: int) -> None:
    line = step_line(step(), 16, width)
    assert len(line) <= width
    assert all(part in line for part in ("step 3/16", "14 pairs", "reward +0.52", "14.8s"))


def test_a_skipped_step_says_so_and_why() -> None:
    assert "skipped, no pair to train on (15 tied, 1 identical)" in step_line(step(trained=False), 16, 80)
    assert "loss" not in step_line(step(trained=False), 16)


def test_live_rows_show_state_counts_and_throughput() -> None:
    def use(progress: Progress) -> None:
        progress.stage(3, "sample", 16, 16, 900)
        progress.stage(3, "judge", 4, 16, 0, "note [x]")
        console = Console(file=io.StringIO(), width=120)
        console.print(progress._table())
        rows = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert "sample" in rows[0]
        assert "done" in rows[0]
        assert "16/16" in rows[0]
        assert "running" in rows[1]
        assert "4/16" in rows[1]
        assert "note [x]" in rows[1]
        progress.step_done(step(3), 16)
        assert progress._table().row_count == 0  # type: ignore[union-attr]

    assert "\x1b[?25h" in shown(True, use)  # the cursor is back


def test_without_a_terminal_there_are_only_plain_lines() -> None:
    def use(progress: Progress) -> None:
        for done in range(17):
            progress.stage(1, "sample", done, 16, done)
        progress.message("hello")
        progress.warning("careful")

    assert shown(False, use) == "hello\nwarning: careful\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_hostile_text_reaches_no_terminal(terminal: bool) -> None:
    def use(progress: Progress) -> None:
        progress.message(HOSTILE)
        progress.step_done(step(), 16)
        progress.evaluated(evaluation(judged(HOSTILE, 116, 12)))
        progress.final(evaluation(judged(HOSTILE, 116, 12)), "/models/x", "mlflow ui")

    text = shown(terminal, use)
    assert "[/nope] [bold]x" in text  # markup is text
    assert not any(bad in text for bad in ("\x1b[2J", "\x1b]0", "\ud800", "\u202e", "\x07", "\x00"))


def test_the_end_report_has_it_all() -> None:
    report = evaluation(judged("vader", 116, 12), judged("length", 64, 64))

    def use(progress: Progress) -> None:
        progress.step_done(step(), 16)
        progress.final(report, "/models/x", "mlflow ui --port 5000")

    text = shown(False, use)
    for part in (
        "0.906 [0.843, 0.946]",
        "116 / 0 / 12",
        "+0.46 -> +0.95",
        "40.0 -> 42.0",
        "8.4 nats",
        "0.20 per token",
    ):
        assert part in text
    for part in ("Suspect", "before (+0.10)", "after  (+0.90)", "train", "380", "/models/x", "mlflow ui --port 5000"):
        assert part in text
    assert text.count("prompt  ") == 3


@pytest.mark.parametrize(
    ("judges", "says"),
    [
        ([judged("a", 20, 100)], "Worse"),
        ([judged("a", 60, 60)], "No gain is shown"),
        ([judged("a", 110, 10)], "cannot be told from over-optimisation"),
        ([replace(judged("a", 110, 10), trained_on=False)], "A gain by an independent judge: a, whom no pair comes"),
        ([judged("a", 110, 10), judged("b", 20, 100)], "Over-optimised"),
        ([judged("a", 110, 10), judged("b", 60, 60)], "does not confirm"),
        ([judged("a", 119, 1), judged("b", 80, 40)], "part of it may be that judge's alone"),
        ([judged("a", 110, 10), judged("b", 108, 12)], "No sign of over-optimisation"),
    ],
)
def test_over_optimisation_says_what_the_numbers_show(judges: list[Judged], says: str) -> None:
    assert says in over_optimisation(evaluation(*judges))
    assert "KL 8.4" in over_optimisation(evaluation(*judges))


def test_over_optimisation_names_length_and_repetition_only_when_they_grew() -> None:
    both = judged("a", 110, 10), judged("b", 108, 12)
    assert "longer" not in over_optimisation(evaluation(*both), (0.05, 0.06))
    text = over_optimisation(evaluation(*both, length_after=60.0), (0.05, 0.4))
    assert "50% longer" in text
    assert "5% to 40%" in text


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {}])
def test_neither_encoding_nor_a_closed_pipe_ends_the_process(environment: dict[str, str]) -> None:
    code = (
        "import sys; from pipelines.progress import Progress\n"
        "p = Progress()\n"
        "for i in range(5000): p.message('😀 ' * 20)\n"
        "print('alive', file=sys.stderr)\n"
    )
    # The reader takes one line and leaves.
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert b"alive" in process.stderr.read()
    assert process.wait() in (0, 120)  # 120: Python could not flush the closed stdout at exit


def test_redirect_output_catches_descriptors_too(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "actor.log"
    code = (
        "import os, sys; from pathlib import Path; from actors.quiet import redirect_output\n"
        f"redirect_output(Path({str(log)!r})); print('python 😀 \\ud800'); os.write(2, b'native\\n')\n"
        "os.system('echo child'); sys.stderr.write('error\\n')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
    assert log.read_text() == "python 😀 \\ud800\nnative\nchild\nerror\n"


def test_quiet_driver_sends_third_party_logging_to_the_file(tmp_path: Path) -> None:
    code = (
        "import logging, sys, warnings; from pathlib import Path; from actors.quiet import quiet_driver\n"
        f"log = Path({str(tmp_path / 'driver.log')!r})\n"
        "quiet_driver(log)\n"
        "ray = logging.getLogger('ray'); ray.addHandler(logging.StreamHandler(sys.stderr)); ray.propagate = False\n"
        "quiet_driver(log)\n"
        "logging.getLogger('ray').warning('from ray'); logging.getLogger('vllm.engine').error('from vllm')\n"
        "warnings.warn('from warnings'); print('mine')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("mine\n", "")
    written = (tmp_path / "driver.log").read_text()
    assert all(written.count(part) == 1 for part in ("from ray", "from vllm", "UserWarning: from warnings"))


def test_what_a_person_has_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert quiet_env()["VLLM_LOGGING_LEVEL"] == "DEBUG"
    assert quiet_env()["HF_HUB_OFFLINE"] == "1"
