"""Diagnostics of preference data: what is planted is found, what is not there is not reported."""

import math
import random
from collections import Counter
from dataclasses import replace

import pytest

from pipelines.look.inspect_sources import corpus_of
from preference.diagnostics import METRICS, Answer, Corpus, Graded, Preferred, diagnose, scalars
from preference.findings import findings
from preference.pairing import PairingRules
from preference.types import CandidateGroup, Fate, JudgedGroup, JudgeFailure, JudgeInfo, Outcome, Verdict
from tests.factories import JUDGE, candidate, judged, prompt

RULES = PairingRules()


def text(rng, length):
    return " ".join(f"w{rng.randrange(5000)}" for _ in range(length))


def corpus(pairs, **fields):
    answers = tuple(a for p in pairs for a in (p.chosen, p.rejected))
    prompts = len({p.prompt for p in pairs})
    plain = Corpus("test", "words", "records", answers, tuple(pairs), (), {"kept": len(pairs)}, prompts)
    return replace(plain, **fields)


def planted(bias, count=600, seed=0):
    """Pairs of a judge with P(first is better) = sigmoid(quality difference + bias x length difference)."""
    rng = random.Random(seed)
    pairs = []
    for i in range(count):
        lengths = [rng.randrange(10, 60) for _ in range(2)]
        quality = rng.gauss(0, 1) - rng.gauss(0, 1)
        z = quality + bias * (lengths[0] - lengths[1]) / 10
        two = [Answer(f"p{i}", text(rng, n), n) for n in lengths]
        first = rng.random() < 1 / (1 + math.exp(-z))
        chosen, rejected = two if first else two[::-1]
        pairs.append(Preferred(f"p{i}", chosen, rejected, abs(z)))
    return corpus(pairs)


def test_a_planted_length_bias_is_reported():
    diagnosis = diagnose(planted(bias=1.0))
    assert diagnosis.length.longest_wins.rate > 0.7
    assert diagnosis.length.difference > 5
    assert diagnosis.length.correlation > 0.4
    assert any(line.startswith(("longest wins 7", "longest wins 8")) for line in findings(diagnosis))
    brief = findings(diagnose(planted(bias=-1.0)))
    assert any("rewarding brevity" in line for line in brief)


@pytest.mark.parametrize("seed", range(5))
def test_no_bias_is_no_finding(seed):
    diagnosis = diagnose(planted(bias=0.0, seed=seed))
    assert findings(diagnosis) == ()
    low, high = diagnosis.length.longest_wins.low, diagnosis.length.longest_wins.high
    assert low < 0.53
    assert high > 0.47


def pair(prompt, chosen, rejected, margin=1.0, **fields):
    two = [Answer(prompt, t, len(t.split())) for t in (chosen, rejected)]
    return Preferred(prompt, *two, margin, **fields)


def test_numbers_worked_by_hand():
    pairs = [
        pair("a", "one two three", "one", 2.0),
        pair("a", "one two", "one two three four", 1.0),
        pair("b", "Yes indeed", "yes, **indeed**!", 3.0),  # of equal length: neither is longest
        pair("b", "left", "right"),
        pair("c", "right", "left"),  # another prompt: no contradiction
        pair("d", "up", "down"),
        pair("d", "down", "up"),
        pair("e", "this", "that there", 0.0, probability=0.5, tied=True),
    ]
    d = diagnose(corpus(pairs, prompts=6))
    assert (d.length.chosen, d.length.rejected) == (pytest.approx(11 / 7), pytest.approx(11 / 7))
    assert (d.length.longest_wins.hits, d.length.longest_wins.n) == (1, 2)
    # Margins 2 and 1 with differences 2 and -2; the others are level: 2 / sqrt(8 x (4 + 1 + 9 + 4)).
    assert d.length.correlation == pytest.approx(2 / math.sqrt(8 * 18))
    assert (d.formatting_only.hits, d.formatting_only.n) == (1, 8)
    assert (d.contradicted.hits, d.contradicted.n) == (2, 7)
    assert (d.ties.hits, d.ties.n) == (1, 8)
    assert d.margins == (1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 3.0)
    assert d.per_prompt == {0: 1, 1: 2, 2: 3}
    assert d.judging is None
    assert sum(n * items for items, n in d.per_prompt.items()) == 8


def test_labels_have_lengths_too():
    answers = tuple(Answer("a", "x " * n, n) for n in (4, 6, 1))
    labels = tuple(Graded(a, a.length > 1) for a in answers)
    d = diagnose(Corpus("t", "words", "records", answers, (), labels, {"kept": 3}, 1))
    assert (d.length.chosen, d.length.rejected) == (5, 1)
    assert d.length.longest_wins.rate is None
    assert d.per_prompt == {3: 1}


def test_scores_and_lengths_within_prompts():
    """Between prompts length and score rise together; within each they are opposed."""
    scored = [("a", 1, 0.2), ("a", 2, 0.1), ("b", 10, 0.9), ("b", 11, 0.8)]
    answers = tuple(Answer(p, "x", n, s) for p, n, s in scored)
    d = diagnose(Corpus("t", "tokens", "prompts", answers, (), (), {"tied": 2}, 2))
    assert d.length.correlation == pytest.approx(-1)


def test_fates_of_a_run_add_up():
    groups = [judged([0.1, 0.9], "a"), judged([0.5, 0.5], "b"), judged([0.2, 0.4, 0.8], "c"), judged([None, None], "d")]
    corpus = corpus_of("run", [(g.group.prompt.id, g) for g in groups], RULES)
    assert corpus.fates == Counter({"trained": 2, "tied": 1, "waiting": 1})
    assert sum(corpus.fates.values()) == corpus.prompts == 4
    d = diagnose(corpus)
    assert d.per_prompt == {0: 2, 1: 2}
    assert len(corpus.answers) == 9
    assert all(key in {f.value for f in Fate} for key in corpus.fates)
    wrong = replace(corpus, fates={"trained": 2})
    assert findings(diagnose(wrong))[0].startswith("2 fates of 4 prompts")


AI, HUMAN = JudgeInfo("model", "1"), JudgeInfo("people", "2")


def said(first, second, p, judge=JUDGE, flipped=False):
    outcome = Outcome.TIE if p == 0.5 else Outcome.FIRST if p > 0.5 else Outcome.SECOND
    return Verdict(first.id, second.id, outcome, p, judge, flipped, seconds=2.0, cost=0.25)


def test_what_the_judge_did():
    a, b, c = (candidate("p", i) for i in range(3))
    group = CandidateGroup(prompt(), (a, b, c))
    judgements = (
        said(a, b, 0.9, flipped=True),
        said(b, c, 0.5),
        JudgeFailure((a.id, c.id), Outcome.ABSTAIN, "", JUDGE),
    )
    other = JudgedGroup(
        CandidateGroup(prompt("q"), (a, b, c)), (JudgeFailure((a.id, b.id), Outcome.FAILED, "", JUDGE), said(a, c, 0.8))
    )
    j = diagnose(corpus_of("run", [("p", JudgedGroup(group, judgements)), ("q", other)], RULES)).judging
    assert (j.judgements, j.matches, j.round_robin) == (5, 5, 6)
    assert [s.hits for s in (j.ties, j.flipped, j.abstained, j.failed)] == [1, 1, 1, 1]
    assert (j.ties.n, j.flipped.n) == (5, 3)
    assert j.cost == 0.75
    assert j.seconds == pytest.approx(6 / 5)


def two_judges(agree, count=40, seed=1):
    """People prefer one of two at random in length; the model prefers what ``agree`` says of the shorter and longer."""
    rng = random.Random(seed)
    groups = []
    for i in range(count):
        one, two = (candidate(f"p{i}", k, tokens=n) for k, n in enumerate(rng.sample(range(3, 30), 2)))
        longer = len(one.token_ids) > len(two.token_ids)
        people = rng.random() < 0.5
        model = agree(people, longer)
        group = CandidateGroup(prompt(f"p{i}"), (one, two))
        # The same match the other way round is still the same match.
        verdicts = said(one, two, float(people), HUMAN), said(two, one, 1 - float(model), AI)
        groups.append((f"p{i}", JudgedGroup(group, verdicts)))
    return diagnose(corpus_of("run", groups, RULES))


def test_two_judges_are_measured_by_each_other():
    same = two_judges(lambda people, longer: people)
    assert {(a.judge, a.reference) for a in same.agreement} == {("model", "people"), ("people", "model")}
    assert all((a.matches, a.accuracy.rate, a.kappa) == (40, 1.0, pytest.approx(1.0)) for a in same.agreement)
    assert not any("not better than length" in line for line in findings(same))
    by_length = two_judges(lambda people, longer: longer)
    (model,) = (a for a in by_length.agreement if a.judge == "model")
    assert model.accuracy.rate == pytest.approx(model.longest.rate)
    assert any("model agrees with people" in line and "not better than length" in line for line in findings(by_length))
    assert not two_judges(lambda people, longer: longer, count=10).agreement[0].accuracy.n > 10


def test_sameness_is_found():
    rng = random.Random(0)
    copies = [pair(f"p{i}", "I am happy to help you with this today friend", text(rng, 12)) for i in range(10)]
    d = diagnose(corpus(copies))
    assert (d.diversity.near_duplicates.hits, d.diversity.near_duplicates.n) == (10, 20)
    assert d.diversity.examples
    assert any("near copy" in line for line in findings(d))


def test_scalars_are_documented_and_what_is_undefined_is_absent():
    run = two_judges(lambda people, longer: people)
    values = scalars(run)
    assert set(values) <= set(METRICS)
    assert all(math.isfinite(v) for v in values.values())
    files = scalars(diagnose(planted(0.0, 20)))
    assert set(values) | set(files) == set(METRICS)
    assert not {k for k in files if k.startswith("judge/")}
    empty = diagnose(Corpus("t", "words", "records", (), (), (), {}, 0))
    assert scalars(empty) == {}
    assert findings(empty) == ()
