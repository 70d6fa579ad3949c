"""What a careful reader would object to in preference data: a line a finding, with the number and what may be done."""

from __future__ import annotations

import math
from collections.abc import Iterator

from preference.agreement import Share
from preference.diagnostics import Diagnosis

LENGTH = 0.6  # the interval of "longest wins" lies wholly above this, or wholly below 1 - this
CORRELATION = 0.4
NEAR_DUPLICATES, FORMATTING, CONTRADICTED = 0.2, 0.05, 0.01
TIES, FLIPPED, ABSTAINED, FAILED = 0.5, 0.2, 0.2, 0.05
USED = 0.5
ENOUGH = 20  # judgements that two judges must have in common before they are compared


def findings(d: Diagnosis) -> tuple[str, ...]:
    """Warnings, the gravest kind first; empty where nothing stands out."""
    return (*_coverage(d), *_length(d), *_judge(d), *_agreement(d), *_texts(d))


def percent(share: Share) -> str:
    """``83% [78%, 87%] of 512``; ``-`` where there was nothing to count."""
    if share.rate is None or share.low is None or share.high is None:
        return "-"
    return f"{share.rate:.0%} [{share.low:.0%}, {share.high:.0%}] of {share.n}"


def _above(share: Share, limit: float) -> bool:
    return share.rate is not None and share.rate > limit


def _coverage(d: Diagnosis) -> Iterator[str]:
    corpus = d.corpus
    total = sum(corpus.fates.values())
    if corpus.counted == "prompts" and total != corpus.prompts:
        yield f"{total} fates of {corpus.prompts} prompts: they should be as many; the run's ledger is incomplete"
    unused = d.per_prompt.get(0, 0)
    if corpus.prompts and 1 - unused / corpus.prompts < USED:
        yield f"only {corpus.prompts - unused} of {corpus.prompts} prompts gave anything to train on"


def _length(d: Diagnosis) -> Iterator[str]:
    longest, unit = d.length.longest_wins, d.corpus.unit
    by = f"{d.length.difference:+.1f} {unit} on average"
    if longest.low is not None and longest.low > LENGTH:
        yield (
            f"longest wins {percent(longest)} pairs ({by}): the judge may be rewarding length; pairing.length_penalty "
            f"or an objective that looks at length (r_dpo, ld_dpo, simpo) counters it"
        )
    if longest.high is not None and longest.high < 1 - LENGTH:
        yield f"longest wins {percent(longest)} pairs ({by}): the judge may be rewarding brevity"
    r = d.length.correlation
    if not math.isnan(r) and abs(r) > CORRELATION:
        yield f"scores go along with length (correlation {r:+.2f}): part of what they measure may be length"


def _judge(d: Diagnosis) -> Iterator[str]:
    if d.judging is None:
        return
    j = d.judging
    if _above(j.failed, FAILED):
        yield f"the judge failed at {percent(j.failed)} judgements: see the errors in the ledger"
    if _above(j.abstained, ABSTAINED):
        yield f"the judge abstained from {percent(j.abstained)} judgements"
    if _above(j.flipped, FLIPPED):
        yield f"the two orders contradict each other in {percent(j.flipped)} verdicts: the judge goes by position"
    if _above(j.ties, TIES):
        yield f"{percent(j.ties)} judgements are ties: the responses are too alike, or the judge cannot tell"


def _agreement(d: Diagnosis) -> Iterator[str]:
    for a in d.agreement:
        ours, longest = a.accuracy.rate, a.longest.rate
        if a.accuracy.n >= ENOUGH and ours is not None and longest is not None and ours <= longest:
            yield (
                f"{a.judge} agrees with {a.reference} on {ours:.0%} of {a.accuracy.n} pairs, "
                f'"pick the longer one" on {longest:.0%}: it is not better than length'
            )


def _texts(d: Diagnosis) -> Iterator[str]:
    if _above(d.contradicted, CONTRADICTED):
        yield f"{percent(d.contradicted)} pairs stand the other way round elsewhere: no objective can learn both"
    if _above(d.formatting_only, FORMATTING):
        yield f"{percent(d.formatting_only)} pairs differ in formatting alone: that is what they teach"
    if _above(d.diversity.near_duplicates, NEAR_DUPLICATES):
        yield f"{percent(d.diversity.near_duplicates)} responses have a near copy: sample hotter, or more prompts"
