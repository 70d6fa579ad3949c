"""What judging anew changes: counted by hand, and by identities that hold for any judgements."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preference.drift import Rejudged, drift, duel, only, opinions
from preference.pairing import PairingRules
from preference.types import CandidateGroup, Fate, JudgedGroup, JudgeFailure, Outcome, Rating, Verdict
from tests.factories import JUDGE, candidate, judged, prompt

RULES = PairingRules()
KEEPS_TIES = PairingRules(ties="keep")


def verdict(name, p, first=0, second=1):
    outcome = Outcome.TIE if p == 0.5 else Outcome.FIRST if p > 0.5 else Outcome.SECOND
    return Verdict(f"{name}/{first}", f"{name}/{second}", outcome, p, JUDGE)


def compared(name, *judgements, size=2):
    return JudgedGroup(CandidateGroup(prompt(name), tuple(candidate(name, i) for i in range(size))), judgements)


def failure(*ids):
    return JudgeFailure(ids, Outcome.FAILED, "boom", JUDGE)


def test_a_run_of_six_prompts_by_hand():
    both = [
        Rejudged("step 1", compared("same", verdict("same", 0.9)), compared("same", verdict("same", 0.8))),
        Rejudged("step 1", compared("flip", verdict("flip", 0.9)), compared("flip", verdict("flip", 0.2))),
        Rejudged("step 1", compared("tie", verdict("tie", 0.9)), compared("tie", verdict("tie", 0.5))),
        Rejudged("step 2", compared("untie", verdict("untie", 0.5)), compared("untie", verdict("untie", 0.9))),
        Rejudged("step 2", compared("lost", verdict("lost", 0.9)), compared("lost", failure("lost/0", "lost/1"))),
        # The other way round: who is named first does not matter.
        Rejudged("step 2", compared("gain", failure("gain/0", "gain/1")), compared("gain", verdict("gain", 0.1, 1, 0))),
    ]
    found = drift(both, RULES)
    v = found.verdicts
    assert (v.compared, v.same, v.flipped, v.became_ties, v.untied, v.lost, v.gained) == (4, 1, 1, 1, 1, 1, 1)
    assert (v.agreement.hits, v.agreement.n) == (1, 2)  # ties left out
    p = found.pairs
    assert (p.old, p.new) == (4, 4)
    assert (p.kept, p.flipped, p.became_ties, p.dropped, p.added) == (1, 1, 1, 1, 2)
    assert found.fates_old == {Fate.TRAINED: 4, Fate.TIED: 1, Fate.JUDGE_FAILED: 1}
    assert found.fates_new == {Fate.TRAINED: 4, Fate.TIED: 1, Fate.JUDGE_FAILED: 1}
    assert [(c.prompt_id, pytest.approx(c.change)) for c in found.changed] == [
        ("flip", 0.7), ("tie", 0.4), ("untie", 0.4), ("same", 0.1),
    ]  # fmt: skip
    assert found.changed[0].place == "step 1"
    assert [(c.old, c.new) for c in found.changed][1] == (Fate.TRAINED, Fate.TIED)
    assert len(drift(both, RULES, most=2).changed) == 2


def test_kappa_is_cohens():
    """Two judges, ten matches: they agree on 7, by chance on (6 x 5 + 4 x 5) / 100."""
    olds = [0.9] * 6 + [0.1] * 4
    news = [0.9] * 4 + [0.1] * 2 + [0.9] + [0.1] * 3
    both = [
        Rejudged("", compared(f"p{i}", verdict(f"p{i}", o)), compared(f"p{i}", verdict(f"p{i}", n)))
        for i, (o, n) in enumerate(zip(olds, news, strict=True))
    ]
    assert drift(both, RULES).verdicts.kappa == pytest.approx((0.7 - 0.5) / (1 - 0.5))


def test_ties_that_are_kept_are_pairs():
    old, new = compared("p", verdict("p", 0.9)), compared("p", verdict("p", 0.5))
    to_tie = drift([Rejudged("", old, new)], KEEPS_TIES).pairs
    assert (to_tie.old, to_tie.new, to_tie.became_ties, to_tie.added) == (1, 1, 1, 0)
    same_tie = drift([Rejudged("", new, new)], KEEPS_TIES).pairs
    assert (same_tie.kept, same_tie.added) == (1, 0)


def test_ratings_compare_everybody_and_a_failed_rating_leaves_its_twos_open():
    old = judged([1.0, 2.0, 2.0])
    assert opinions(old) == {("p/0", "p/1"): 0.0, ("p/0", "p/2"): 0.0, ("p/1", "p/2"): 0.5}
    new = replace(old, judgements=(Rating("p/0", 3.0, JUDGE), Rating("p/1", 1.0, JUDGE), failure("p/2")))
    assert opinions(new) == {("p/0", "p/1"): 1.0, ("p/0", "p/2"): None, ("p/1", "p/2"): None}
    v = drift([Rejudged("", old, new)], RULES).verdicts
    assert (v.compared, v.flipped, v.lost) == (1, 1, 2)


def test_labels_are_items_too():
    rules = PairingRules(strategy="labels", threshold=0.5)
    p = drift([Rejudged("", judged([0.0, 1.0]), judged([1.0, 1.0]))], rules).pairs
    assert (p.old, p.kept, p.flipped) == (2, 1, 1)


def test_a_duel_is_a_win_rate_in_which_the_same_answer_is_a_tie():
    twin = compared("twin")
    same = tuple(replace(c, token_ids=(9,)) for c in twin.group.candidates)
    found = duel(
        [
            compared("won", verdict("won", 0.7)),
            compared("won2", verdict("won2", 0.3, 1, 0)),
            compared("lost", verdict("lost", 0.3)),
            JudgedGroup(CandidateGroup(prompt("twin"), same), ()),
            compared("failed", failure("failed/0", "failed/1")),
        ]
    )
    assert (found.wins, found.ties, found.losses) == (2, 1, 1)
    assert duel([compared("nobody")]) is None


def test_only_what_is_about_a_group():
    group = compared("p", size=3).group
    two = replace(group, candidates=group.candidates[:2])
    about = verdict("p", 0.9), Rating("p/1", 1.0, JUDGE)
    assert only([*about, verdict("p", 0.9, 0, 2), Rating("q/0", 1.0, JUDGE)], two).judgements == about


probability = st.sampled_from([0.1, 0.5, 0.9, None])


@given(st.lists(st.tuples(probability, probability), min_size=1, max_size=12))
def test_counts_add_up(rows):
    def group(name, p):
        return compared(name, failure(f"{name}/0", f"{name}/1") if p is None else verdict(name, p))

    both = [Rejudged("", group(f"p{i}", o), group(f"p{i}", n)) for i, (o, n) in enumerate(rows)]
    found, back = drift(both, RULES), drift([replace(b, old=b.new, new=b.old) for b in both], RULES)
    v, p = found.verdicts, found.pairs
    assert v.same + v.flipped + v.became_ties + v.untied == v.compared
    assert v.compared + v.lost + v.gained + sum(o is n is None for o, n in rows) == len(rows)
    assert p.kept + p.flipped + p.became_ties + p.dropped == p.old
    assert p.kept + p.flipped + p.added == p.new
    assert sum(found.fates_old.values()) == sum(found.fates_new.values()) == len(rows) == found.prompts
    # Seen from the other side it is the same.
    assert (v.lost, v.became_ties, v.flipped, p.kept) == (
        back.verdicts.gained, back.verdicts.untied, back.verdicts.flipped, back.pairs.kept,
    )  # fmt: skip
    unchanged = drift([Rejudged("", b.old, b.old) for b in both], RULES)
    assert unchanged.changed == ()
    assert unchanged.pairs.kept == unchanged.pairs.old == unchanged.pairs.new
