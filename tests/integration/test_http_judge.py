"""The HTTP judge in a Ray actor: refusals, failures and what it has spent come through. Endpoints are played."""

import asyncio

import pytest

from actors.judges.errors import BudgetExhausted, JudgeError
from preference.types import CandidateGroup, JudgeFailure, Verdict
from tests.endpoint import completion, endpoint, refusal
from tests.http_judges import key_file, start
from tests.judges import GROUPS, MATCHES

__all__ = ["key_file", "start"]


def test_a_key_for_all_to_read_is_refused_before_anything(start, key_file):
    key_file.chmod(0o644)
    with pytest.raises(JudgeError, match="mode 0644"):
        start("http://127.0.0.1:9/v1")


def test_a_budget_counts_what_the_run_has_spent_before(start):
    with endpoint(lambda r: completion("A", {"A": 1.0}, (900, 1))) as fake:
        pool, _ = start(fake.url, spent=7.0, price_in=1e3, budget=10.0)
        assert isinstance(asyncio.run(pool.compare(MATCHES[:1]))[0], Verdict)
        with pytest.raises(BudgetExhausted, match=r"judge has cost 9\.7 of judge\.budget = 10"):
            asyncio.run(pool.compare(MATCHES[1:]))
        assert asyncio.run(pool.usage()).cost == pytest.approx(9.7)


def test_failures_are_counted_and_the_rest_is_judged(start):
    with endpoint(lambda r: refusal(500) if "Lyon" in r.text else completion("A", {"A": 1.0})) as fake:
        pool, _ = start(fake.url, retries=0)
        found = asyncio.run(pool.compare(MATCHES))
    failed = [f for f in found if isinstance(f, JudgeFailure)]
    assert [f.candidate_ids for f in failed] == [m.ids for m in MATCHES if "Lyon" in m.first.text + m.second.text]
    assert sum(isinstance(f, Verdict) for f in found) == len(MATCHES) - len(failed) > 0


def test_groups_stay_in_order(start):
    with endpoint(lambda r: completion("4", {"4": 1.0})) as fake:
        pool, _ = start(fake.url, mode="pointwise")
        ratings = asyncio.run(pool.rate([CandidateGroup(g.prompt, g.candidates[::-1]) for g in GROUPS]))
    assert [r.candidate_id for r in ratings] == [c.id for g in GROUPS for c in g.candidates[::-1]]
    assert {r.value for r in ratings} == {4.0}
