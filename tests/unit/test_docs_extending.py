"""The code in docs/extending.md does what the page says."""

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from actors.judges.rule import apply_rule, load_rule
from actors.weights import WeightFiles, WeightsError, WeightWriter, version_directory
from pipelines.judging.stage import JudgeStage
from pipelines.ledger.ledger import Ledger, decode_line
from pipelines.loop import Loop, Stages
from pipelines.scoring import Scorer
from preference.objectives import REGISTRY
from preference.pairing import PairingRules, make_items
from preference.types import CandidateGroup, JudgeFailure, Rating, Version
from tests.factories import INITIAL, JUDGE, candidate, prompt, scored_pair
from tests.unit.objectives.build import random_batch
from tests.unit.test_loop import FakeReference, FakeTrainer, Notes, config
from tests.unit.test_pair_files import load as load_pairs

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = {m[1]: m[0] for m in re.finditer(r"(?<=```python\n)# (\S+\.py)\n.*?(?=```)", PAGE, re.DOTALL)}


@pytest.fixture
def block(tmp_path, monkeypatch) -> Iterator:
    """The names that a block of the page defines, run as the file that it stands for."""
    monkeypatch.chdir(tmp_path)

    def run(name: str) -> dict[str, object]:
        names: dict[str, object] = {"__name__": Path(name).stem}
        exec(compile(BLOCKS[name], name, "exec"), names)
        return names

    before = dict(REGISTRY)
    yield run
    REGISTRY.clear()
    REGISTRY.update(before)


def test_every_block_is_tested_here():
    assert PAGE.count("```python") == len(BLOCKS)
    tested = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in BLOCKS if f'"{name}"' not in tested] == []
    assert all(len(code.splitlines()) <= 45 for code in BLOCKS.values())


def test_a_rule_is_found_by_its_path_and_fails_where_it_cannot_say(tmp_path, monkeypatch):
    (tmp_path / "my_rules.py").write_text(BLOCKS["my_rules.py"], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        rule = load_rule("my_rules:grounded")
        about = replace(prompt(), meta=json.dumps({"keywords": ["Rome", "river"]}))
        texts = ["Rome lies on a river.", "It is in Italy, ROME.", "Nothing.", "rome river " + "very " * 68]
        group = CandidateGroup(about, tuple(replace(candidate(index=i), text=t) for i, t in enumerate(texts)))
        rated = apply_rule(rule, JUDGE, group)
        assert [r.value for r in rated if isinstance(r, Rating)] == pytest.approx([1.0, 0.5, 0.0, 0.9])
        (failure,) = apply_rule(rule, JUDGE, replace(group, prompt=prompt()))  # a prompt without keywords
        assert isinstance(failure, JudgeFailure)
        assert "keywords" in failure.error
    finally:
        sys.modules.pop("my_rules", None)


def test_the_rule_of_the_front_page_counts_what_it_says():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["politeness"](prompt(), ["Please, oh please.", "No."]) == [2.0, 0.0]


@pytest.mark.parametrize(
    ("program", "fate"),
    [
        ("import sys; print(len(sys.stdin.read()))", "trained"),
        ("print('no number')", "judge_failed"),
        ("import time; time.sleep(60)", "judge_failed"),
    ],
)
def test_a_program_judges(block, program, fate):
    checker = block("actors/judges/checker.py")["Checker"](
        [sys.executable, "-c", program], 5 if fate == "trained" else 0.5
    )
    stage = JudgeStage(checker, None, PairingRules(), lambda p, t: (), 100, print)
    group = CandidateGroup(prompt(), tuple(replace(candidate(index=i), text="x" * n) for i, n in enumerate((3, 9, 6))))
    judged = asyncio.run(stage.judge(1, group))
    made = make_items(judged, PairingRules())
    assert made.fate == fate
    if fate == "trained":
        assert [r.value for r in judged.judgements] == [3, 9, 6]
        assert (made.items[0].chosen.text, made.items[0].rejected.text) == ("x" * 9, "x" * 3)


def test_an_objective_has_its_gradient_its_figures_and_its_configuration(block, tmp_path, monkeypatch):
    block("preference/objectives/squared_hinge.py")
    loss = REGISTRY["squared_hinge"].loss
    batch = random_batch("squared_hinge")
    leaves = batch.leaves()
    losses, figures = loss(batch.logps(*leaves), None, beta=0.5)
    gap = batch.logps(*leaves).gap
    torch.testing.assert_close(losses, (1 - 0.5 * gap).clamp(min=0) ** 2)
    assert figures["satisfied"].tolist() == (0.5 * gap >= 1).double().tolist()
    assert torch.autograd.gradcheck(lambda *x: loss(batch.logps(*x), None, beta=0.5)[0], leaves)
    settled = loss(batch.logps(leaves[0] + 100, leaves[1]), None)[0]
    assert settled.abs().sum() == 0

    from configs.objectives import _section

    section = _section(REGISTRY["squared_hinge"])
    (term,) = section(name="squared_hinge", margin=2, weight=0.5).as_terms()
    assert (term.parameters, term.weight) == ({"beta": 0.1, "margin": 2.0}, 0.5)
    assert section.model_fields["margin"].description == "Reward by which the chosen response should win."
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        section(name="squared_hinge", margin=-1)


def test_the_file_of_pairs_is_read_whole(block, tmp_path):
    block("make_pairs.py")
    items = load_pairs(tmp_path / "my.pairs.jsonl")
    assert [(p.chosen.text, p.rejected.text) for p in items.items] == [("Seven.", "Nine."), ("Blue.", "Seven.")]
    assert not items.report.dropped


def learn(directory: Path, steps: int, source, consumers=(), ledger=None) -> tuple[FakeTrainer, Notes]:
    """Run the loop over ``source(scorer, ledger)`` with a trainer that only takes notes."""
    cfg, trainer, notes = config(steps), FakeTrainer(), Notes()
    ledger = ledger or Ledger(directory)
    reference = FakeReference()
    made = source(Scorer(cfg, reference, trainer.ranks, ledger, notes), ledger)
    trainer.publish = publishing(trainer.publish)

    class Nothing:
        async def after(self, step, version):
            pass

    stages = Stages(made, trainer, reference, consumers, Nothing())
    loop = Loop(cfg, steps, 0, stages, ledger, notes, directory / "weights", INITIAL)
    try:
        asyncio.run(loop.run(0))
    finally:
        ledger.close()
    return trainer, notes


def publishing(publish):
    """Versions that hold a tensor: the step's number."""

    async def write(version, directory):
        done = await publish(version, directory)
        writer = WeightWriter(directory, version)
        writer.add({"step": torch.tensor([float(version.step)])})
        writer.finish()
        return done

    return write


def test_the_curriculum_feeds_the_loop_the_clearest_pairs_first(block, tmp_path):
    curriculum = block("pipelines/curriculum.py")["Curriculum"]
    margins = [0.5, 3.0, 1.0, 2.0, 4.0, 0.1]
    pairs = [replace(scored_pair(i, 3, 2, 2).item, margin=m) for i, m in enumerate(margins)]
    trainer, notes = learn(tmp_path, 3, lambda scorer, ledger: curriculum(pairs, 2, scorer, ledger))
    assert [b.items for b in trainer.batches] == [2, 2, 2]
    lines = [decode_line(line) for line in (tmp_path / "ledger" / "steps.jsonl").read_bytes().splitlines(True)]
    prepared = [line["pairs"] for line in lines if line and line["event"] == "prepared"]
    assert prepared == [["pair4", "pair1"], ["pair3", "pair2"], ["pair0", "pair5"]]
    assert [sum(r.fates.values()) for r in notes.reports] == [2, 2, 2]


def test_the_mirror_gets_every_version_whole_and_keeps_the_newest(block, tmp_path):
    mirror = block("actors/mirror.py")["Mirror"](tmp_path / "fleet")
    curriculum = block("pipelines/curriculum.py")["Curriculum"]
    pairs = [scored_pair(i, 3, 2, 2).item for i in range(4)]
    learn(tmp_path / "run", 2, lambda s, ledger: curriculum(pairs, 2, s, ledger), [mirror])
    kept = [p.name for p in (tmp_path / "fleet").iterdir()]
    assert kept == ["weights-0.2"]
    weights = WeightFiles.open(version_directory(tmp_path / "fleet", Version(0, 2)))
    assert [(name, tensor.item()) for name, tensor in weights] == [("step", 2.0)]
    with pytest.raises(WeightsError, match="holds no complete version"):  # and so would the run end
        asyncio.run(mirror.load(str(tmp_path / "nothing"), Version(0, 3)))
