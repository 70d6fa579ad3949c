"""`rondo sweep` with runs that are written instead of trained: combinations, names, going on, failures, results."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from configs.loading import ConfigError
from configs.runs import OfflineConfig
from pipelines.cli import main
from pipelines.sweep import Sweep, plan, sweep, trial_name
from tests.unit.test_report import Tags, evaluated, run

CONFIGS = Path(__file__).parents[2] / "configs"
QUICKSTART = CONFIGS / "quickstart.yaml"


def planned(root: Path, *overrides: str) -> Sweep:
    return plan(QUICKSTART, [f"run.root={root}", "run.name=demo", *overrides])


class Trainer:
    """Stands in for `rondo run`: leaves a finished run directory, or fails."""

    def __init__(self, root: Path, fails: Sequence[str] = ()) -> None:
        self.root, self.fails, self.asked = root, set(fails), list[str]()

    def __call__(self, words: Sequence[str]) -> int:
        name = next(w.partition("=")[2] for w in words if w.startswith("run.name=") and w != "run.name=demo")
        self.asked.append(name)
        assert words[0] == "run"
        assert words[-1] == "--resume=auto"
        assert "tracking.parent=demo-sweep" in words
        if name in self.fails:
            return 1
        beta = next(w.partition("=")[2] for w in words if w.startswith("objective.beta="))
        run(self.root / name, evaluated(3, [0.9, 0.8, float(beta)]), finished=3, beta=beta)
        return 0


def test_every_combination_is_loaded_before_the_first_run_begins(tmp_path: Path) -> None:
    found = planned(tmp_path, "objective.beta=0.05,0.1", "run.seed=0,1,2", "optimizer.betas=[0.9,0.95]")
    assert [t.name for t in found.trials] == [f"demo-beta{b}-seed{s}" for b in ("0.05", "0.1") for s in (0, 1, 2)]
    assert [(t.config.objective.beta, t.config.run.seed) for t in found.trials][:4] == [
        (0.05, 0),
        (0.05, 1),
        (0.05, 2),
        (0.1, 0),
    ]
    assert all(t.config.optimizer.betas == (0.9, 0.95) for t in found.trials)  # what stands in brackets is one value
    assert {t.config.tracking.parent for t in found.trials} == {"demo-sweep"}
    assert found.command == "run"
    assert found.directory == tmp_path / "demo-sweep"


def test_files_are_swept_over_too(tmp_path: Path) -> None:
    found = plan(CONFIGS / "offline.yaml", [f"run.root={tmp_path}", "objective.name=dpo,ipo"])
    assert found.command == "offline"
    assert [t.config.objective.name for t in found.trials] == ["dpo", "ipo"]
    assert all(isinstance(t.config, OfflineConfig) for t in found.trials)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["objective.beta=0.1"], "nothing to sweep over"),
        (["objective.beta=0.1,-1"], r"objective\.beta.*-1"),
        (["objective.bta=0.1,0.2"], "did you mean 'beta'"),
        (["run.name=a,b", "run.seed=0,1"], "give one name"),
        (["objective.beta=0.1,0.1"], "a value is given twice"),
        (["objective.beta=0.1,["], "not valid YAML"),
    ],
)
def test_mistakes_are_named_before_anything_runs(tmp_path: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        planned(tmp_path, *overrides)
    assert list(tmp_path.iterdir()) == []


def test_names_fit_and_stay_apart() -> None:
    assert trial_name("demo", {"objective.beta": "0.1", "run.seed": "3"}) == "demo-beta0.1-seed3"
    odd = [trial_name("demo", {"judge.rule": v}) for v in ("a.b:c", "a.b/c", "a.b c", "x" * 100, "x" * 101)]
    assert len(set(odd)) == len(odd)
    assert all(len(n) <= 63 and n.replace("-", "").replace(".", "").isalnum() for n in odd)


def test_a_sweep_ends_with_its_frontier_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    found = planned(tmp_path, "objective.beta=0.1,0.3")
    said: list[str] = []
    trainer = Trainer(tmp_path, fails=["demo-beta0.3"])
    assert sweep(found, said.append, trainer) == ["demo-beta0.3"]
    assert trainer.asked == [t.name for t in found.trials]
    assert any("failed (exit status 1)" in line for line in said)
    result = json.loads((found.directory / "sweep.json").read_text())
    runs = {r["run"]: r for r in result["runs"]}
    assert runs["demo-beta0.3"] == {
        "run": "demo-beta0.3",
        "values": {"objective.beta": "0.3"},
        "failed": 1,
    }
    done = runs["demo-beta0.1"]
    assert done["win_rate"]["rule"][0] == pytest.approx(0.6667, abs=1e-4)
    assert done["kl"] == 3.0
    assert done["points"]["eval"] == [[3, 3.0, 0.6]]
    assert done["points"]["probe"] == [[s, 1.5, 0.4] for s in (1, 2, 3)]
    assert (found.directory / "frontier.png").read_bytes().startswith(b"\x89PNG")

    again = Trainer(tmp_path)
    assert sweep(found, said.append, again) == []
    assert again.asked == ["demo-beta0.3"]  # alone: the others are finished
    assert len(json.loads((found.directory / "sweep.json").read_text())["runs"]) == 2
    page = Tags((found.directory / "sweep.html").read_text())
    assert "Sweep demo-sweep" in page.text
    assert "objective.beta" in page.text


def test_ctrl_c_ends_the_sweep_and_keeps_what_there_is(tmp_path: Path) -> None:
    found = planned(tmp_path, "objective.beta=0.1,0.3,0.5")
    trainer = Trainer(tmp_path)

    def launch(words: Sequence[str]) -> int:
        return trainer(words) if not trainer.asked else 130

    with pytest.raises(KeyboardInterrupt):
        sweep(found, lambda _: None, launch)
    assert [r["run"] for r in json.loads((found.directory / "sweep.json").read_text())["runs"]] == ["demo-beta0.1"]


def test_the_command_names_mistakes(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["sweep", str(QUICKSTART), f"run.root={tmp_path}", "objective.beta=0.1"])
    assert done.exit_code == 1
    assert "nothing to sweep over" in done.output
