"""The data, in the order it flows: Prompt -> Candidate -> Judgement -> Pair -> Scored -> weights v+1.

One frozen dataclass per arrow. A later stage gets a new type, never an optional field filled in later.
Everything here is plain Python and numpy, so a record can be journaled, hashed and sent between actors.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

POLICY = "policy"  # the player that is trained; every other one is its opponent
REFERENCE = "reference"  # plays with the weights of the reference
DATA = "data"  # a data set's own responses
HUMAN = "human"  # people who wrote a better one


def content_id(*parts: object) -> str:
    """The content hash that keys a record in the ledger: 16 hex digits of SHA-256 over JSON of ``parts``."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, order=True, slots=True)
class Version:
    """Which weights: ``incarnation`` grows at every rollback, ``step`` counts publishes. Ordered as a pair.

    The incarnation is compared first, so what a dead incarnation left behind never looks newer.
    """

    incarnation: int
    step: int

    def __str__(self) -> str:
        return f"{self.incarnation}.{self.step}"

    @classmethod
    def parse(cls, text: str) -> Version:
        """Inverse of ``str``; raises ValueError on anything else."""
        incarnation, _, step = text.partition(".")
        return cls(int(incarnation), int(step))

    def age_at(self, current: Version) -> int:
        """How many publishes ``current`` is ahead of this version, in units of versions."""
        return current.step - self.step


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation to be answered and its token ids under the policy's chat template."""

    id: str
    messages: tuple[Message, ...]
    token_ids: tuple[int, ...]
    meta: str = "{}"
    """JSON object that travelled with the prompt (constraints of a verifiable prompt, a reference answer ...)."""

    @property
    def text(self) -> str:
        """The last user turn: what a person reads in a table."""
        return self.messages[-1].content


class FinishReason(StrEnum):
    STOP = "stop"  # the policy emitted its end-of-sequence token
    LENGTH = "length"  # cut off at max_tokens


@dataclass(frozen=True, slots=True)
class Candidate:
    """One sampled response. Training uses ``token_ids`` as sampled, never re-tokenised ``text``."""

    id: str
    prompt_id: str
    index: int
    token_ids: tuple[int, ...]
    """Sampled ids, the end-of-sequence token included where the policy emitted one."""
    logprobs: tuple[float, ...]
    """log pi(token | prefix) of the untempered policy, one per token of ``token_ids``, in nats."""
    text: str
    finish_reason: FinishReason
    version_min: Version
    version_max: Version
    """Oldest and newest weights that sampled a token of it (they differ only for in-flight weight updates)."""
    player: str = POLICY
    """Who sampled it: the policy, ``previous`` and ``league`` with earlier versions of it, the reference, another
    model (``opponents:``). Versions are the policy's but for another model."""

    @property
    def finished(self) -> bool:
        """Whether it ends with the end of the turn rather than at max_tokens."""
        return self.finish_reason is FinishReason.STOP


@dataclass(frozen=True, slots=True)
class Written:
    """A response that was not sampled in the policy's tokens: out of a data set, by a person or by another model."""

    id: str
    prompt_id: str
    token_ids: tuple[int, ...]
    """Ids that follow the prompt's under the chat template, the end of the turn included."""
    text: str
    player: str = DATA
    finished: bool = True
    """Whether it ends with the end of the turn; another model may have been cut off at max_tokens."""


Response = Candidate | Written


@dataclass(frozen=True, slots=True)
class CandidateGroup:
    """All candidates of one prompt: the unit that judges and pairing work on."""

    prompt: Prompt
    candidates: tuple[Response, ...]

    @property
    def sampled(self) -> tuple[Candidate, ...]:
        """The candidates without those that came from a data set or a person."""
        return tuple(c for c in self.candidates if isinstance(c, Candidate))

    @property
    def own(self) -> tuple[Candidate, ...]:
        """The policy's candidates, without its opponents'."""
        return tuple(c for c in self.sampled if c.player == POLICY)


@dataclass(frozen=True, slots=True)
class Match:
    """Two responses to one prompt that a pairwise judge is asked to compare."""

    prompt: Prompt
    first: Response
    second: Response

    @property
    def ids(self) -> tuple[str, str]:
        return self.first.id, self.second.id


class Outcome(StrEnum):
    FIRST = "first"
    SECOND = "second"
    TIE = "tie"
    ABSTAIN = "abstain"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class JudgeInfo:
    """Who judged: kind and name, and the hash of whatever defines its values (template, guidelines, code path)."""

    name: str
    definition_hash: str
    weights: str = ""
    """Version of the weights that judged, where they change during a run (two where that was between the orders)."""


@dataclass(frozen=True, slots=True)
class Vote:
    """What one person said, where people judge."""

    annotator: str
    """A pseudonym that says nothing outside of the run's annotation store; empty: the person has been erased."""
    choice: str
    """first, second, tie, both_bad, cannot_judge, up or down."""
    strength: int | None = None
    """How much better, 1 slightly to 3 much."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Rating:
    """A pointwise judgement. There is a value or an error, never an invented value for a failure."""

    candidate_id: str
    value: float
    judge: JudgeInfo
    rationale: str = ""
    seconds: float = 0.0
    cost: float = 0.0
    votes: tuple[Vote, ...] = ()
    """Whose words it rests on, where people judged."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A pairwise judgement. ``probability`` is P(first is better), both orders averaged where the judge has orders."""

    first_id: str
    second_id: str
    outcome: Outcome
    probability: float
    judge: JudgeInfo
    order_flipped: bool = False
    """The two orders of presentation, decided alone, contradict each other (first against second)."""
    rationale: str = ""
    seconds: float = 0.0
    """Time from asking to the verdict, of all the calls it took."""
    cost: float = 0.0
    """What it cost, in the currency of the judge's configured prices."""
    votes: tuple[Vote, ...] = ()
    """Whose words it rests on, where people judged."""


@dataclass(frozen=True, slots=True)
class JudgeFailure:
    """The judge raised, timed out or answered garbage about these candidates. Counted, never a verdict."""

    candidate_ids: tuple[str, ...]
    outcome: Outcome  # ABSTAIN or FAILED
    error: str
    judge: JudgeInfo
    seconds: float = 0.0
    cost: float = 0.0
    votes: tuple[Vote, ...] = ()


Judgement = Rating | Verdict | JudgeFailure


def ids_of(judgement: Judgement) -> tuple[str, ...]:
    """The candidates it is about."""
    match judgement:
        case Rating():
            return (judgement.candidate_id,)
        case Verdict():
            return judgement.first_id, judgement.second_id
    return judgement.candidate_ids


@dataclass(frozen=True, slots=True)
class JudgedGroup:
    group: CandidateGroup
    judgements: tuple[Judgement, ...]
    overruled: tuple[Judgement, ...] = ()
    """What a judge said whose word did not stand: it was escalated or audited. For agreement, never for pairs."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A preference: ``chosen`` over ``rejected`` as answers to ``prompt``."""

    id: str
    prompt: Prompt
    chosen: Response
    rejected: Response
    margin: float
    """Judge score of chosen minus rejected, in the judge's units; log-odds of a judge that compares (> 0, for a kept
    tie >= 0; 1 where there is no score)."""
    probability: float = 1.0
    """The judge's P(chosen is better); 1 for a plain label, 1/2 for a kept tie."""
    tied: bool = False
    """Neither is better, and which one is called chosen means nothing: for objectives that know ties alone."""

    @property
    def responses(self) -> tuple[Response, ...]:
        return self.chosen, self.rejected


@dataclass(frozen=True, slots=True)
class Labelled:
    """One response and whether it is wanted (thumbs up or down): what KTO and SFT learn from."""

    id: str
    prompt: Prompt
    response: Response
    desirable: bool

    @property
    def responses(self) -> tuple[Response, ...]:
        return (self.response,)


Item = Pair | Labelled


def oldest_version(item: Item) -> Version | None:
    """The oldest weights with which the policy sampled any of it: what its age is counted from. None where it did not.

    Opponents are old on purpose.
    """
    own = (r for r in item.responses if isinstance(r, Candidate) and r.player == POLICY)
    return min((r.version_min for r in own), default=None)


class Fate(StrEnum):
    """What became of a prompt. Every prompt has exactly one; the counts add up to the prompts sampled."""

    TRAINED = "trained"
    TIED = "tied"
    IDENTICAL = "identical"
    UNFINISHED = "unfinished"  # too few candidates left under the missing-EOS policy
    UNOPPOSED = "unopposed"  # no opponent's response to make a pair with
    JUDGE_FAILED = "judge_failed"
    ABSTAINED = "abstained"
    WAITING = "waiting"  # for people; its labels come with a later batch, which then decides its fate
    STALE = "stale"
    TOO_LONG = "too_long"


@dataclass(frozen=True, slots=True)
class Scored:
    """An item with the reference's log-probs by the trainer's own code: fp32 nats a token, one array a response.

    Without a reference pool they are nan.
    """

    item: Item
    reference: tuple[NDArray[np.float32], ...]
