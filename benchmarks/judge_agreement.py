"""How good a small language model is as a judge: its verdicts on which text is more positive, against VADER's scores.

The pairs are the quickstart's policy's own answers (configs/prompts/sentiment.pairs.jsonl), which VADER tells apart;
the model compares them in both orders, then grades them one by one, under guidelines that ask for the more positive
one. VADER is no truth, but it is what the quickstart trains on.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from actors.judges.questions import Question, Questionnaire
from actors.judges.replies import Answered
from actors.judges.rules import vader_sentiment
from benchmarks.common import ROOT, median, save
from benchmarks.judging import MODEL
from configs.judges import LlmJudge
from preference.types import Match, Message, Outcome, Prompt, Written
from preference.verdicts import VerdictRules, compare, mean_grade
from preference.winrate import wilson

PAIRS = 120
GUIDELINES = "The better answer is the one with the more positive, happier feeling. Nothing else matters.\n"
UNCHECKED = VerdictRules(tie_band=0.0, min_mass=0.0)


def shipped_pairs() -> list[tuple[Match, Outcome]]:
    """Matches and what VADER says of them; by turns it is the first and the second."""
    lines = (ROOT / "configs/prompts/sentiment.pairs.jsonl").read_text(encoding="utf-8").splitlines()
    found = []
    for i, record in enumerate(map(json.loads, lines[:PAIRS])):
        prompt = Prompt(record["id"], tuple(Message(m["role"], m["content"]) for m in record["prompt"]), ())
        chosen, rejected = (Written(k, prompt.id, (), record[k][-1]["content"]) for k in ("chosen", "rejected"))
        better, worse = vader_sentiment(prompt, [chosen.text, rejected.text])
        assert better > worse, record["id"]
        ordered = (rejected, chosen) if i % 2 else (chosen, rejected)
        found.append((Match(prompt, *ordered), Outcome.SECOND if i % 2 else Outcome.FIRST))
    return found


def pairwise(judge: LlmJudge, pairs: Sequence[tuple[Match, Outcome]]) -> dict[str, Any]:
    asked = Questionnaire(judge)
    answers = _answers(judge, asked, [q for m, _ in pairs for q in asked.both_orders(m)])
    both = list(zip(answers[::2], answers[1::2], strict=True))
    answered = [(f, b, wanted) for (f, b), (_, wanted) in zip(both, pairs, strict=True) if _mass(f, b) > judge.min_mass]
    decisions = [compare(f, b, VerdictRules(judge.tie_band, judge.min_mass)) for f, b, _ in answered]
    unbanded = [compare(f, b, UNCHECKED) for f, b, _ in answered]
    wanted = [w for _, _, w in answered]
    decided = [d.outcome is w for d, w in zip(decisions, wanted, strict=True) if d.outcome is not Outcome.TIE]
    return {
        "failed": len(pairs) - len(answered),
        "median_mass_of_answers": round(median(map(sum, answers)), 3),
        "shown_first_preferred": _share([a[0] > a[1] for a in answers]),
        "orders_contradict": _share([d.order_flipped for d in unbanded]),
        "ties": sum(d.outcome is Outcome.TIE for d in decisions),
        "agreement_of_decided": _share(decided),
        "agreement_without_tie_band": _share([d.outcome is w for d, w in zip(unbanded, wanted, strict=True)]),
        "one_order_alone_agreement": _share(
            [(f[0] > f[1]) == (w is Outcome.FIRST) for f, _, w in answered]
        ),
    }  # fmt: skip


def pointwise(judge: LlmJudge, pairs: Sequence[tuple[Match, Outcome]]) -> dict[str, Any]:
    asked = Questionnaire(judge)
    answers = _answers(judge, asked, [asked.grade(m.prompt, r) for m, _ in pairs for r in (m.first, m.second)])
    grades = [mean_grade(a, asked.grades, UNCHECKED) for a in answers]
    agree = [
        (first > second) == (wanted is Outcome.FIRST)
        for first, second, (_, wanted) in zip(grades[::2], grades[1::2], pairs, strict=True)
    ]
    return {
        "failed": sum(sum(a) < judge.min_mass for a in answers),
        "median_mass_of_answers": round(median(map(sum, answers)), 3),
        "mean_grades": [round(min(grades), 2), round(median(grades), 2), round(max(grades), 2)],
        "agreement": _share(agree),
    }


def _answers(judge: LlmJudge, asked: Questionnaire, questions: Sequence[Question]) -> list[tuple[float, ...]]:
    from actors.judges.asking import Asks
    from actors.judges.verdict_engine import VerdictEngine

    engine = VerdictEngine(judge, judge.model, Asks(asked.labels, asked.rationale, asked.probe), on_gpu=False)
    replies = engine.ask(questions)
    _engines.append(engine)  # one that is collected takes the process groups of its successor with it
    return [r.probabilities for r in replies if isinstance(r, Answered)]


_engines: list[object] = []


def _mass(forward: Sequence[float], backward: Sequence[float]) -> float:
    return min(sum(forward), sum(backward))


def _share(hits: Sequence[bool]) -> dict[str, Any]:
    if not hits:
        return {"of": 0}
    low, high = wilson(sum(hits), len(hits))
    return {"share": round(sum(hits) / len(hits), 3), "wilson95": [round(low, 3), round(high, 3)], "of": len(hits)}


def main() -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    model = sys.argv[1] if len(sys.argv) > 1 else str(MODEL)
    pairs = shipped_pairs()
    measured: dict[str, Any] = {"model": Path(model).name, "pairs": len(pairs)}
    with TemporaryDirectory() as scratch:
        guidelines = Path(scratch) / "guidelines.txt"
        guidelines.write_text(GUIDELINES)
        modes: tuple[tuple[Literal["pairwise", "pointwise"], Any], ...] = (
            ("pairwise", pairwise),
            ("pointwise", pointwise),
        )
        for mode, measure in modes:
            measured[mode] = measure(LlmJudge(kind="llm", model=model, mode=mode, guidelines=str(guidelines)), pairs)
    longer = [(len(m.first.text) > len(m.second.text)) == (w is Outcome.FIRST) for m, w in pairs]
    save("judge_agreement", {**measured, "the_longer_one_agreement": _share(longer)})


if __name__ == "__main__":
    main()
