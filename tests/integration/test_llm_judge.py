"""The LLM judge on real vLLM in Ray actors: its probabilities are the model's, its refusals come before any work."""

import asyncio
import os
import signal

import psutil
import pytest

from actors.faults import Faults
from actors.judges.errors import JudgeError
from actors.judges.llm import LlmJudgePool
from actors.judges.questions import Questionnaire
from configs.judges import LlmJudge
from configs.schema import Deadlines, Group, Recovery
from preference.types import JudgeFailure, Match, Message, Outcome, Prompt, Verdict, Written
from preference.verdicts import VerdictRules, compare, mean_grade
from tests.judges import GROUPS, MATCHES, PROMPTS, opinionated_model, probabilities

GROUP, DEADLINES = Group(cpus=0.1), Deadlines(start_s=120, call_s=120)


def judge(model, **fields):
    return LlmJudge(
        kind="llm", model=str(model), dtype="float32", max_model_len=1024, kv_cache_gb=0.1, **fields
    )  # fmt: skip


@pytest.fixture(scope="module")
def opinionated(tmp_path_factory):
    return opinionated_model(tmp_path_factory.mktemp("judge") / "opinionated")


@pytest.fixture
def start(ray_here, tmp_path):
    pools = []

    def started(section, initial=""):
        pool = LlmJudgePool(section, GROUP, DEADLINES, tmp_path, "judge", initial, Faults(Recovery()))
        pools.append(pool)
        asyncio.run(pool.ready())
        return pool

    yield started
    for pool in pools:
        pool.close()


def test_verdicts_are_the_models_own_probabilities(start, opinionated):
    section = judge("initial", min_mass=0.0, tie_band=0.02)
    pool = start(section, initial=str(opinionated))
    verdicts = asyncio.run(pool.compare(MATCHES))
    assert all(isinstance(v, Verdict) for v in verdicts)
    assert [(v.first_id, v.second_id) for v in verdicts] == [m.ids for m in MATCHES]
    asked = Questionnaire(section)
    rows = probabilities(opinionated, [q for m in MATCHES for q in asked.both_orders(m)], asked.labels)
    rules = VerdictRules(section.tie_band, section.min_mass)
    for verdict, forward, backward in zip(verdicts, rows[::2], rows[1::2], strict=True):
        expected = compare(forward, backward, rules)
        assert verdict.probability == pytest.approx(expected.probability, abs=2e-3)
        if abs(abs(expected.probability - 0.5) - section.tie_band) > 2e-3:
            assert verdict.outcome is expected.outcome
    assert len({v.outcome for v in verdicts}) > 1  # else nothing was compared
    assert {v.judge.name for v in verdicts} == {"opinionated"}
    assert all(v.cost == 0 and v.seconds > 0 for v in verdicts)
    # The mass the model gave to its answers is kept: above it, it did not answer.
    masses = [sum(r) for r in rows]
    replies = asyncio.run(pool._ask([q for m in MATCHES for q in asked.both_orders(m)]))
    assert [sum(r.probabilities) for r in replies] == pytest.approx(masses, abs=2e-3)

    # Killed in the middle of its work, an engine comes back and nothing is lost.
    async def killed():
        pid = await _pid(pool)
        work = asyncio.ensure_future(pool.compare(MATCHES))
        while not pool._batched._running:
            await asyncio.sleep(0)
        os.kill(pid, signal.SIGKILL)
        found = await work
        return found, pid, await _pid(pool)

    again, before, after = asyncio.run(killed())
    assert before != after
    assert [v.probability for v in again] == pytest.approx([v.probability for v in verdicts], abs=1e-4)


def test_ratings_are_mean_grades(start, opinionated):
    section = judge(opinionated, mode="pointwise", min_mass=0.0)
    pool = start(section)
    ratings = asyncio.run(pool.rate(GROUPS))
    assert [r.candidate_id for r in ratings] == [c.id for g in GROUPS for c in g.candidates]
    asked = Questionnaire(section)
    rows = probabilities(opinionated, [asked.grade(g.prompt, c) for g in GROUPS for c in g.candidates], asked.labels)
    expected = [mean_grade(row, (1, 2, 3, 4, 5), VerdictRules(0.0, 0.0)) for row in rows]
    assert [r.value for r in ratings] == pytest.approx(expected, abs=5e-3)
    with pytest.raises(ValueError, match=r"judge\.mode=pointwise; to compare it needs pairwise"):
        asyncio.run(pool.compare(MATCHES))


def test_a_rationale_comes_before_the_verdict_and_closing_leaves_no_process(start, opinionated, tmp_path):
    template = tmp_path / "reasoned.yaml"
    template.write_text(
        "user: |\n  {{ conversation }}\n  {{ first }}\n  {{ second }}\n  Say why, then 'Verdict:' and A, B or C.\n"
        "rationale: {max_tokens: 12, ends_with: 'Verdict:'}\n"
    )
    pool = start(judge(opinionated, min_mass=0.0, template=str(template)))
    verdicts = asyncio.run(pool.compare(MATCHES[:3]))
    assert all(isinstance(v, Verdict) and v.rationale for v in verdicts)
    process = psutil.Process(asyncio.run(_pid(pool)))
    pool.close()
    assert psutil.wait_procs([process], timeout=20)[1] == []


def test_what_cannot_be_judged_fails_alone(start, tiny):
    """A model that speaks of other things, a response too long, and a reference that is no text."""
    long = Written("long", "p0", (), "word " * 2000)
    odd = Prompt("odd", (Message("user", "?"),), (), '{"reference": 7}')
    a, b = GROUPS[0].candidates[:2]
    pool = start(judge(tiny, min_mass=0.5))
    found = asyncio.run(pool.compare([MATCHES[0], Match(PROMPTS[0], a, long), Match(odd, a, b)]))
    assert all(isinstance(f, JudgeFailure) and f.outcome is Outcome.FAILED for f in found)
    assert [f.candidate_ids for f in found] == [MATCHES[0].ids, (a.id, "long"), (a.id, b.id)]
    for failure, words in zip(
        found, ["min_mass = 0.5", "judge.max_model_len is 1024", "field 'reference' must be a string"], strict=True
    ):
        assert words in failure.error


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": "/nowhere"}, "judge.model /nowhere"),
        ({"max_model_len": 10**6}, "cannot be served as configured"),
    ],
)
def test_a_model_that_cannot_judge_is_refused_at_the_start(start, tiny, fields, words):
    section = judge(tiny).model_copy(update=fields)
    with pytest.raises(JudgeError) as refused:
        start(section)
    assert words in str(refused.value)


async def _pid(pool):
    return (await (await pool._crew.up(0)).started.remote()).pid
