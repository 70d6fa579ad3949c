"""Reward models on real DeepSpeed and real Ray: trained from a file, exported, judging, scoring files."""

import asyncio
import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from actors.faults import Faults
from actors.judges.errors import JudgeError
from actors.judges.implicit import ImplicitPool
from actors.judges.reward_model import RewardModelPool
from configs.judges import ImplicitJudge, RewardModelJudge
from configs.schema import Deadlines, Group, Recovery
from pipelines.ledger.ledger import complete_checkpoints
from preference.types import CandidateGroup, Message, Prompt, Rating, Written
from tests.integration.conftest import BIN, losses, mlflow, run
from tests.tiny import tiny_model

THINGS = ("rain", "bread", "trains", "hills", "tea", "cats", "ink", "tin", "snow", "rope", "glass", "wool")
GOOD = ("It is wonderful.", "A great story.", "I liked it.", "Wonderful, simply great.")
BAD = ("It is terrible.", "A boring plot.", "The sound was bad.", "Terrible, simply boring.")


@pytest.fixture(scope="module")
def trained(head, tiny, tmp_path_factory):
    """(run directory, output, file of pairs) of a finished run that a planted preference is learned in."""
    directory = tmp_path_factory.mktemp("reward-model")
    with (directory / "pairs.jsonl").open("w") as file:
        for i, thing in enumerate(THINGS):
            for k in range(3):
                chosen, rejected = (f"{texts[(i + k) % len(texts)]} {thing}" for texts in (GOOD, BAD))
                record = {"prompt": f"Say something about {thing}.", "chosen": chosen, "rejected": rejected}
                file.write(json.dumps(record) + "\n")
    (directory / "run.yaml").write_text(
        f"run: {{name: reward, root: {directory / 'runs'}}}\n"
        f"model: {{path: {tiny}, dtype: float32}}\n"
        "data: {train: pairs.jsonl, heldout_share: 0.25, batch_size: 9, epochs: 3, evaluate_every: 4,"
        " max_prompt_tokens: 96, max_response_tokens: 60}\n"
        "objective: {name: bradley_terry, centring: 0.01}\n"
        "optimizer: {lr: 0.003, warmup_steps: 0}\n"
        "batching: {micro_batch_tokens: 256}\n"
        "checkpoint: {every: 4}\n"
        "resources: {trainer: {actors: 2, cpus: 0.25}}\n"
    )
    done = run(BIN / "rondo", "reward-model", directory / "run.yaml", RAY_ADDRESS=head.address)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return directory / "runs" / "reward", done.stdout, directory / "pairs.jsonl"


def test_it_learns_a_planted_preference(trained):
    run_dir, output, _ = trained
    steps = losses(run_dir)
    assert len(steps) == 9
    assert steps[9] < 0.2 < steps[1]
    assert "held-out at step 9" in output
    assert "accuracy 1.000 [0.701, 1.000]" in output  # 9 of 9 held-out pairs
    _, tracked = mlflow(run_dir)
    assert tracked.data.metrics["heldout/accuracies"] == 1.0
    assert tracked.data.metrics["heldout/accuracies_low"] == pytest.approx(0.701, abs=1e-3)
    assert "logps/chosen" not in tracked.data.metrics  # it has none
    assert complete_checkpoints(run_dir)


def plain_scores(model, group):
    tokenizer = AutoTokenizer.from_pretrained(model)
    classifier = AutoModelForSequenceClassification.from_pretrained(model)
    scores = []
    for response in group.candidates:
        turns = [{"role": m.role, "content": m.content} for m in group.prompt.messages]
        turns.append({"role": "assistant", "content": response.text})
        ids = tokenizer.apply_chat_template(turns, return_dict=False)
        with torch.no_grad():
            scores.append(float(classifier(torch.tensor([ids])).logits[0, 0]))
    return scores


def asked(thing):
    texts = [f"{text} {thing}" for text in (*GOOD, *BAD)]
    prompt = Prompt(thing, (Message("user", f"Say something about {thing}."),), ())
    return CandidateGroup(prompt, tuple(Written(f"{thing}/{i}", thing, (1,), t) for i, t in enumerate(texts)))


async def rate(pool, groups):
    try:
        await pool.ready()
        return await asyncio.gather(*(pool.rate([group]) for group in groups))
    finally:
        pool.close()


def test_the_export_judges_in_real_actors_as_plain_transformers_does(ray_here, trained, tmp_path):
    model = str(trained[0] / "model")
    judge = RewardModelJudge(kind="reward_model", model=model)
    groups = [asked(thing) for thing in THINGS[:4]]
    pool = RewardModelPool(judge, Group(actors=2, cpus=0.25), Deadlines(), tmp_path, "judge", Faults(Recovery()))
    for rated, group in zip(asyncio.run(rate(pool, groups)), groups, strict=True):
        assert all(isinstance(r, Rating) for r in rated)
        assert [r.candidate_id for r in rated] == [c.id for c in group.candidates]
        values = [r.value for r in rated]
        assert values == pytest.approx(plain_scores(model, group), abs=1e-5)
        assert min(values[:4]) > max(values[4:])  # the planted preference


def test_scores_in_training_are_the_exports(trained, head, tmp_path):
    """The held-out margin that the trainer reported is what `rondo score` finds on the same pairs with the export."""
    run_dir, _, file = trained
    _, tracked = mlflow(run_dir)
    done = run(
        BIN / "rondo", "score", run_dir / "model", file, "--out", tmp_path / "scored.jsonl", RAY_ADDRESS=head.address
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "(36 W / 0 T / 0 L of 36)" in done.stdout
    heldout = {json.loads(line)["id"] for line in (tmp_path / "scored.jsonl").open()} - set(trained_ids(run_dir))
    assert len(heldout) == 9
    margins = [
        r["score_chosen"] - r["score_rejected"]
        for r in map(json.loads, (tmp_path / "scored.jsonl").open())
        if r["id"] in heldout
    ]
    assert sum(margins) / 9 == pytest.approx(tracked.data.metrics["heldout/margins"], abs=1e-4)


def trained_ids(run_dir):
    from tests.integration.conftest import pairs

    return [i for ids in pairs(run_dir).values() for i in ids]


def test_a_judge_that_cannot_judge_is_refused_before_anything_runs(ray_here, tiny, tmp_path):
    judge = RewardModelJudge(kind="reward_model", model=str(tiny))
    with pytest.raises(JudgeError, match="rondo reward-model"):
        asyncio.run(
            rate(RewardModelPool(judge, Group(cpus=0.25), Deadlines(), tmp_path, "judge", Faults(Recovery())), [])
        )


def test_implicit_rewards_in_real_actors_and_from_the_command_line(ray_here, head, tiny, tmp_path):
    other = tiny_model(tmp_path / "other", seed=1)
    judge = ImplicitJudge(kind="implicit", model=str(other), reference=str(tiny), beta=0.5)
    group = asked("rain")
    pool = ImplicitPool(judge, Group(cpus=0.25), Deadlines(), tmp_path, "judge", Faults(Recovery()))
    (rated,) = asyncio.run(rate(pool, [group]))
    record = {"prompt": "Say something about rain.", "responses": [c.text for c in group.candidates]}
    (tmp_path / "candidates.jsonl").write_text(json.dumps(record) + "\n")
    words = ["score", other, tmp_path / "candidates.jsonl", "--reference", tiny, "--beta", "0.5"]
    done = run(BIN / "rondo", *words, "--out", tmp_path / "scored.jsonl", RAY_ADDRESS=head.address)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    scored = json.loads((tmp_path / "scored.jsonl").read_text())
    values = [r.value for r in rated]
    assert scored["rewards"] == pytest.approx(values, abs=1e-4)
    assert scored["best"] == values.index(max(values))
    assert "best of 8.0" in done.stdout
