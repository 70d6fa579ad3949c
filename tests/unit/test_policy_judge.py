"""The policy as its own judge, over engines that answer what a test says: orders, weights, refusals."""

import asyncio
import math
from dataclasses import replace

import pytest

from actors.faults import Faults
from actors.judges.errors import JudgeError
from actors.judges.policy import PolicyJudge
from actors.judges.prompted import PromptedPool
from actors.requests import Chosen
from configs.judges import LlmJudge
from configs.schema import Deadlines, Group, Recovery
from pipelines.judging.judges import Surroundings, start_judge
from preference.types import (
    CandidateGroup,
    JudgeFailure,
    Match,
    Message,
    Outcome,
    Prompt,
    Rating,
    Verdict,
    Version,
    Written,
)
from tests.tiny import _tokenizer

INITIALLY = Version(0, 3)
PROMPT = Prompt("p", (Message("user", "Which city?"),), ())
PARIS, LYON = Written("1", "p", (), "Paris"), Written("2", "p", (), "Lyon")
MATCH = Match(PROMPT, PARIS, LYON)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("policy")
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(path)
    return str(path), tokenizer


class Engines:
    """Answers A, B and C with what ``say(text of the question)`` gives them; new weights arrive ``at`` a request."""

    def __init__(self, tokenizer, say, versions=(INITIALLY,)):
        self.tokenizer, self.say, self.versions = tokenizer, say, versions
        self.ids: list[str] = []

    async def ask(self, requests):
        found = []
        for r in requests:
            version = self.versions[min(len(self.ids), len(self.versions) - 1)]
            self.ids.append(r.id)
            said = self.say(self.tokenizer.decode(r.prompt_ids))
            # All of an answer's probability in its first spelling.
            logs = tuple((math.log(p), *(-1e9,) * (len(o) - 1)) for p, o in zip(said, r.options, strict=True))
            await asyncio.sleep(0)
            found.append(Chosen(r.id, logs, version))
        return found


def started(model, engines, longest=4096, name="judge", **fields):
    judge = PolicyJudge(LlmJudge(kind="llm", model="policy", **fields), engines, model[0], longest, name)
    asyncio.run(judge.ready())
    return judge


def paris_first(text):
    return text.index("Paris") < text.index("Lyon")


def test_both_orders_are_averaged_and_the_weights_are_named(model):
    engines = Engines(model[1], lambda text: (0.6, 0.2, 0.1) if paris_first(text) else (0.3, 0.5, 0.1))
    judge = started(model, engines)
    [verdict] = asyncio.run(judge.compare([MATCH]))
    assert isinstance(verdict, Verdict)
    # ((0.6 + 0.05) / 0.9 + (0.5 + 0.05) / 0.9) / 2
    assert verdict.probability == pytest.approx(2 / 3)
    assert verdict.outcome is Outcome.FIRST
    assert (verdict.judge.name, verdict.judge.weights) == ("policy", "0.3")
    assert verdict.judge.definition_hash
    assert isinstance(judge, PromptedPool)


def test_what_a_position_is_worth_is_averaged_away(model):
    [verdict] = asyncio.run(started(model, Engines(model[1], lambda text: (0.8, 0.1, 0.05))).compare([MATCH]))
    assert (verdict.outcome, verdict.probability, verdict.order_flipped) == (Outcome.TIE, 0.5, True)


def test_new_weights_between_the_orders_are_both_named_and_change_no_definition(model):
    say = (0.8, 0.1, 0.05)
    engines = Engines(model[1], lambda text: say, (Version(0, 3), Version(0, 4)))
    judge = started(model, engines)
    first, second = (asyncio.run(judge.compare([MATCH]))[0].judge for _ in range(2))
    assert first.weights == "0.3, 0.4"
    assert second.weights == "0.4"
    assert first.definition_hash == second.definition_hash
    other = started(model, engines, tie_band=0.1)
    assert asyncio.run(other.compare([MATCH]))[0].judge.definition_hash == first.definition_hash  # asked the same


def test_ratings_are_mean_grades_of_the_policy(model):
    engines = Engines(model[1], lambda text: (0.0 + 1e-9, 1e-9, 1e-9, 0.25, 0.25))
    judge = started(model, engines, mode="pointwise")
    found = asyncio.run(judge.rate([CandidateGroup(PROMPT, (PARIS, LYON))]))
    assert all(isinstance(r, Rating) and r.judge.weights == "0.3" for r in found)
    assert [r.value for r in found] == pytest.approx([4.5, 4.5])


def test_who_says_something_else_has_failed(model):
    [failure] = asyncio.run(started(model, Engines(model[1], lambda text: (0.01, 0.01, 0.01))).compare([MATCH]))
    assert isinstance(failure, JudgeFailure)
    assert "min_mass = 0.1" in failure.error
    assert failure.judge.weights == "0.3"


def test_a_question_longer_than_the_samplers_context_fails_by_their_knob(model):
    engines = Engines(model[1], lambda text: (0.8, 0.1, 0.05))
    judge = started(model, engines, longest=2000)
    long = Written("3", "p", (), "word " * 2000)
    failed, fine = asyncio.run(judge.compare([Match(PROMPT, PARIS, long), MATCH]))
    assert "sampling.max_model_len is 2000" in failed.error
    assert isinstance(fine, Verdict)
    assert len(engines.ids) == 2


def test_two_judges_on_the_same_engines_never_share_an_id(model):
    engines = Engines(model[1], lambda text: (0.8, 0.1, 0.05))
    one, two = (started(model, engines, name=name) for name in ("judge-0", "judge-1"))

    async def both():
        await asyncio.gather(one.compare([MATCH] * 3), two.compare([MATCH] * 3))

    asyncio.run(both())
    assert len(engines.ids) == len(set(engines.ids)) == 12


def test_a_policy_that_cannot_be_asked_is_refused_at_the_start(model, tmp_path):
    with pytest.raises(JudgeError, match=r"sampling\.max_model_len is 64: raise it"):
        started(model, Engines(model[1], None), longest=64)
    with pytest.raises(JudgeError, match="cannot tell the answers 11, 12, 13 apart"):
        started(model, Engines(model[1], None), mode="pointwise", grades=(11, 13))
    tokenizer = _tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(JudgeError, match="no chat template"):
        started((str(tmp_path), tokenizer), Engines(tokenizer, None))


def test_a_policy_is_asked_where_there_is_one(model, tmp_path):
    around = Surroundings(
        Group(), Deadlines(), tmp_path, tmp_path, model[0], 0, print, Faults(Recovery()),
        engines=Engines(model[1], lambda text: (0.8, 0.1, 0.05)), max_model_len=4096,
    )  # fmt: skip
    section = LlmJudge(kind="llm", model="policy")
    arbiter = start_judge(section, around, "judge")
    asyncio.run(arbiter.ready())
    [ruling] = asyncio.run(arbiter.rule(1, [MATCH]))
    assert ruling.stands.judge.weights == "0.3"
    with pytest.raises(JudgeError, match="there is no policy outside of a run; name a model directory"):
        start_judge(section, replace(around, engines=None), "judge")
    rater = start_judge(section.model_copy(update={"mode": "pointwise"}), around, "judge")
    assert isinstance(rater, PolicyJudge)
