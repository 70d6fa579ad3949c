"""What one iteration and one evaluation have to tell: produced by the loop, read by progress display and tracking."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from preference.types import Fate, JudgedGroup, Version
from preference.winrate import WinRate as WinRate
from preference.winrate import wilson


@dataclass(frozen=True, slots=True)
class StageTime:
    """One stage of one iteration. ``seconds`` is wall time of the stage, overlap with other stages included."""

    name: str  # sample | judge | pair | reference | train | publish | load
    seconds: float
    tokens: int  # tokens the stage worked on (0 where tokens have no meaning)
    began: float = math.nan  # seconds since the epoch: its first start and its last end in the iteration
    ended: float = math.nan

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class TrainMetrics:
    """Means over one optimizer step (all ranks); nan where a figure is not defined.

    Chosen and rejected are a pair's, or the desirable and the undesirable ones of labelled responses.
    ``scalars``: ``loss/<objective>`` and the objectives' own figures.
    """

    loss: float
    grad_norm: float
    lr: float
    rewards_chosen: float  # beta x log-ratio summed over tokens, nats (reference-free objectives: see their ``reward``)
    rewards_rejected: float
    rewards_margins: float
    rewards_accuracies: float
    logps_chosen: float  # summed over tokens, nats
    logps_rejected: float
    log_ratio_chosen: float  # log pi - log pi_ref, nats: the chosen responses' drift since the reference
    log_ratio_rejected: float
    kl: float  # mean log-ratio of all trained responses, nats; of KL(pi || ref) where pi sampled them
    length_ratio: float  # mean tokens of chosen / mean tokens of rejected
    mismatch: float  # mean |sampler - trainer| log-prob per token, nats; same tokens, trainer before its update
    items: int
    tokens: int  # prompt and response tokens computed, prefix shared
    waiting: float  # share of the ranks' time lost to unequal cells, if time goes with tokens
    scalars: Mapping[str, float]

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """Wilson 95% interval of ``rewards_accuracies``; nan where that is."""
        if math.isnan(self.rewards_accuracies):
            return float("nan"), float("nan")
        return wilson(self.rewards_accuracies * self.items, self.items)


@dataclass(frozen=True, slots=True)
class JudgeMetrics:
    """Over the judgements of one iteration; nan where there is nothing to take a rate of."""

    judgements: int  # ratings, verdicts and failures that stand
    ties: float  # share of the verdicts
    flips: float  # share of the verdicts whose two orders contradict each other
    abstained: int
    failed: int
    cost: float  # in the currency of the judge's prices
    seconds: float  # mean time of a judgement
    overruled: int  # verdicts that another judge's replaced: escalated or audited
    agreement: float  # of these: how often both name the same side, ties left out
    kappa: float  # of these: Cohen's kappa
    longest: float  # how often the longer of two responses won


@dataclass(frozen=True, slots=True)
class Faced:
    """How the policy fared against one opponent in an iteration: each of its responses against each of the other's."""

    player: str  # league/<version>: one member of the league
    games: int
    win_rate: float  # of the policy, ties half; nan without a game


@dataclass(frozen=True, slots=True)
class OpponentMetrics:
    """The opponents of an iteration."""

    faced: tuple[Faced, ...]
    loads: int  # of earlier weights, into engines that served others; 0 in a replayed iteration
    unusable: int  # prompts for which a response of another model could not be had in the policy's tokens


@dataclass(frozen=True, slots=True)
class SampleMetrics:
    """Over every candidate that the policy sampled in the iteration, trained on or not."""

    score: float  # mean judge score
    score_std: float
    length: float  # mean response tokens
    missing_eos: float  # share of responses cut off
    entropy: float  # mean over responses of -sum log pi, nats (Monte Carlo)
    judge: JudgeMetrics
    opponents: OpponentMetrics | None = None  # None: the policy plays against itself alone


@dataclass(frozen=True, slots=True)
class ProbeMetrics:
    """Fresh samples on a rotating handful of held-out prompts: reward beside KL, unbiased by pair selection."""

    score: float
    kl: float  # mean over responses of sum (log pi - log ref), nats
    prompts: int


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One line of the samples table."""

    prompt_id: str
    prompt: str
    response: str
    score: float
    role: str  # chosen | rejected | unused
    version: str
    tokens: int


@dataclass(frozen=True, slots=True)
class StepReport:
    step: int  # 1-based: the optimizer step this iteration took (or skipped)
    version: Version  # weights after it
    fates: Mapping[Fate, int]  # adds up to the prompts sampled
    stages: tuple[StageTime, ...]
    seconds: float
    sample: SampleMetrics | None  # None: nothing was sampled (training from files)
    probe: ProbeMetrics | None
    train: TrainMetrics | None  # None: no pair survived, the step was skipped
    ages: tuple[int, ...]  # per trained pair, in versions
    rows: tuple[SampleRow, ...]
    judged: tuple[JudgedGroup, ...] = ()  # what the items were made of
    waiting: tuple[JudgedGroup, ...] = ()  # what people had been asked about and had not decided


@dataclass(frozen=True, slots=True)
class Judged:
    """One judge's view of new answers against baseline answers on the same held-out prompts."""

    judge: str
    win_rate: WinRate
    length_controlled: float  # win rate at equal length (logistic regression on the length difference)
    score_before: float
    score_after: float
    trained_on: bool = True  # of the first judge: whether the pairs come from it, or from people or the policy itself


@dataclass(frozen=True, slots=True)
class BeforeAfter:
    prompt: str
    before: str
    after: str
    score_before: float
    score_after: float


@dataclass(frozen=True, slots=True)
class PromptScores:
    """Scores of the two answers to one held-out prompt, one a judge; nan where the judge failed."""

    prompt_id: str
    before: tuple[float, ...]
    after: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class EvalReport:
    step: int
    version: Version
    judges: tuple[Judged, ...]  # first: the judge trained on; second: the independent one, where configured
    length_before: float
    length_after: float
    kl: float  # of all held-out answers to the reference, nats per response
    examples: tuple[BeforeAfter, ...]
    seconds: float
    prompts: tuple[PromptScores, ...] = ()  # every held-out prompt: what two runs are compared by
