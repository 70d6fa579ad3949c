"""Opinions put together: ratings as comparisons, weighted panels, what is handed on."""

from __future__ import annotations

import math

import pytest

from preference.panel import EscalationRules, PanelRules, audited, by_ratings, decide, escalates, panel
from preference.types import JudgeFailure, JudgeInfo, Match, Outcome, Rating, Verdict
from tests.factories import JUDGE, candidate, prompt

MATCH = Match(prompt(), candidate(index=0), candidate(index=1))
FAILED = JudgeFailure(MATCH.ids, Outcome.FAILED, "boom", JUDGE, seconds=2.0, cost=0.25)
INFO = JudgeInfo("panel", "h")


def verdict(p, flipped=False, **more):
    return Verdict(*MATCH.ids, decide(p, 0.0), p, JUDGE, order_flipped=flipped, **more)


def rating(index, value):
    return Rating(candidate(index=index).id, value, JUDGE)


def test_ratings_compare_by_bradley_terry():
    found = by_ratings(MATCH, rating(0, 3.0), rating(1, 1.0), scale=2.0)
    assert found.probability == pytest.approx(1 / (1 + math.exp(-1)))
    assert found.outcome is Outcome.FIRST
    assert by_ratings(MATCH, rating(0, 1.0), rating(1, 1.0), 1.0).outcome is Outcome.TIE
    assert by_ratings(MATCH, rating(0, -1e9), rating(1, 1e9), 1.0).probability == 0.0
    assert by_ratings(MATCH, rating(0, 1e9), rating(1, -1e9), 1.0).probability == 1.0
    assert by_ratings(MATCH, FAILED, rating(1, 1.0), 1.0).error == "boom"


def test_a_panel_is_the_weighted_mean_of_those_that_gave_a_verdict():
    rules = PanelRules((1.0, 3.0, 5.0), tie_band=0.06, min_votes=2)
    found = panel(MATCH, [verdict(0.9, cost=0.5), verdict(0.3, flipped=True), FAILED], rules, INFO)
    assert found.probability == pytest.approx((0.9 + 3 * 0.3) / 4)
    assert (found.outcome, found.order_flipped, found.cost, found.seconds) == (Outcome.TIE, True, 0.75, 2.0)
    few = panel(MATCH, [verdict(0.9), FAILED, FAILED], rules, INFO)
    assert isinstance(few, JudgeFailure)
    assert few.outcome is Outcome.ABSTAIN
    assert "1 of 3 members gave a verdict, 2 are needed" in few.error
    none = panel(MATCH, [FAILED] * 3, rules, INFO)
    assert none.outcome is Outcome.FAILED


def test_what_is_unsure_flipped_or_failed_is_handed_on():
    rules = EscalationRules(below=0.1, on_flip=True, on_failure=True, audit=0.0, seed=0)
    sure, unsure, flipped = verdict(0.65), verdict(0.55), verdict(0.9, flipped=True)
    assert [escalates(o, rules) for o in (sure, unsure, flipped, FAILED)] == [False, True, True, True]
    lax = EscalationRules(below=0.0, on_flip=False, on_failure=False, audit=0.0, seed=0)
    assert not any(escalates(o, lax) for o in (sure, unsure, flipped, FAILED, verdict(0.5)))


def test_audits_are_a_random_share_that_a_seed_decides():
    matches = [Match(prompt(), candidate(f"p{i}", 0), candidate(f"p{i}", 1)) for i in range(2000)]

    def drawn(seed):
        return [audited(m, EscalationRules(0.0, False, False, 0.2, seed)) for m in matches]

    assert drawn(1) == drawn(1) != drawn(2)
    assert 0.16 < sum(drawn(1)) / 2000 < 0.24
