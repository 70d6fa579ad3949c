"""What became of every record of a data file: kept or left out for exactly one reason, and what was changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from preference.types import Fate, Item

SHOWN = 5  # places that a tally names


class Reason(StrEnum):
    """Why a record became no item. Every record that is not kept has exactly one."""

    TIE = "tie"  # annotators, scores or probability do not decide
    CONTRADICTORY = "contradictory"  # the rejected response scores higher than the chosen one
    UNANNOTATED = "unannotated"  # nobody submitted a verdict: skipped, cancelled, drafts only
    NO_PROMPT = "no_prompt"  # chosen and rejected have no common start
    NOT_ONE_ANSWER = "not_one_answer"  # the response is not exactly one turn of the assistant
    EMPTY_RESPONSE = "empty_response"
    IDENTICAL = "identical"  # chosen and rejected are the same ids
    DUPLICATE = "duplicate"  # the same ids as an earlier record
    TEMPLATE_REFUSED = "template_refused"  # the chat template raised (a role it does not know ...)
    TEMPLATE_MISMATCH = "template_mismatch"  # the prompt's ids do not begin the ids of prompt and response
    MISSING_EOS = "missing_eos"
    EOS_INSIDE = "eos_inside"  # an end-of-turn token in the midst of a response
    OUT_OF_VOCABULARY = "out_of_vocabulary"  # ids that the model has no embedding for
    PROMPT_TOO_LONG = "prompt_too_long"
    RESPONSE_TOO_LONG = "response_too_long"  # training on it would cut into a response
    ITEM_TOO_LONG = "item_too_long"  # prompt and responses exceed the token budget
    JUDGE_FAILED = "judge_failed"  # of an earlier run: the judge abstained or failed
    NOT_TRAINED = "not_trained"  # of an earlier run: sampled or judged, but never trained on


class Change(StrEnum):
    """What was done to an item that was kept. An item may have several."""

    EOS_APPENDED = "eos_appended"
    EOS_MISSING = "eos_missing"  # kept without
    DOUBLE_EOS = "double_eos"  # one was removed
    RESPONSE_CUT = "response_cut"
    PROMPT_CUT = "prompt_cut"


# What the online loop calls it.
REASON_OF_FATE: Mapping[Fate, Reason] = {
    Fate.TIED: Reason.TIE,
    Fate.IDENTICAL: Reason.IDENTICAL,
    Fate.UNFINISHED: Reason.MISSING_EOS,
    Fate.UNOPPOSED: Reason.NOT_TRAINED,
    Fate.JUDGE_FAILED: Reason.JUDGE_FAILED,
    Fate.ABSTAINED: Reason.JUDGE_FAILED,
    Fate.WAITING: Reason.UNANNOTATED,
    Fate.STALE: Reason.NOT_TRAINED,
    Fate.TOO_LONG: Reason.ITEM_TOO_LONG,
}


class Unfit(Exception):
    """This record becomes no item. Raised by parsing and encoding, caught and counted where the file is read."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Kept:
    place: str
    item: Item
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class Dropped:
    place: str
    reason: Reason
    detail: str = ""


Outcome = Kept | Dropped


@dataclass(frozen=True, slots=True)
class Tally:
    count: int
    first: tuple[str, ...]
    """Places of the first few, with what is known about them."""

    @classmethod
    def of(cls, places: Iterable[str]) -> Tally:
        all_places = list(places)
        return cls(len(all_places), tuple(all_places[:SHOWN]))


@dataclass(frozen=True, slots=True)
class LoadReport:
    """Counts of one load: ``total == kept + sum of dropped``, which the constructor insists on."""

    source: str
    format: str
    total: int
    kept: int
    dropped: Mapping[Reason, Tally]
    changed: Mapping[Change, Tally]
    """Among the kept."""
    notes: tuple[str, ...] = ()
    """What holds for the file as a whole: a tokenizer larger than the model's vocabulary and the like."""

    def __post_init__(self) -> None:
        dropped = sum(t.count for t in self.dropped.values())
        if self.kept + dropped != self.total:
            raise ValueError(f"{self.source}: {self.kept} kept + {dropped} left out is not {self.total} records")

    @classmethod
    def of(cls, source: str, format: str, outcomes: Iterable[Outcome], notes: tuple[str, ...] = ()) -> LoadReport:
        kept, total = 0, 0
        dropped: dict[Reason, list[str]] = {}
        changed: dict[Change, list[str]] = {}
        for outcome in outcomes:
            total += 1
            if isinstance(outcome, Dropped):
                place = f"{outcome.place} ({outcome.detail})" if outcome.detail else outcome.place
                dropped.setdefault(outcome.reason, []).append(place)
                continue
            kept += 1
            for change in outcome.changes:
                changed.setdefault(change, []).append(outcome.place)
        return cls(
            source,
            format,
            total,
            kept,
            {r: Tally.of(dropped[r]) for r in Reason if r in dropped},
            {c: Tally.of(changed[c]) for c in Change if c in changed},
            notes,
        )

    def lines(self) -> list[str]:
        """For people: one line a count."""
        out = [f"{self.source}: {self.kept} of {self.total} records kept ({self.format})"]
        tallies: list[tuple[str, Tally]] = [(f"left out, {r}", t) for r, t in self.dropped.items()]
        tallies += [(f"kept, {c}", t) for c, t in self.changed.items()]
        for label, tally in tallies:
            more = ", ..." if tally.count > len(tally.first) else ""
            out.append(f"  {tally.count} {label}: {', '.join(tally.first)}{more}")
        return out + [f"  note: {n}" for n in self.notes]
