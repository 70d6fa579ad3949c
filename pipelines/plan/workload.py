"""What one step of a run asks for, in prompts and tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from configs.judges import HttpJudge, HumanJudge, ImplicitJudge, LlmJudge, RewardModelJudge, singles
from configs.runs import RunConfig
from pipelines.plan.architecture import PlanError, read_architecture
from pipelines.plan.cluster import Cluster

_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Lengths:
    """Log-normal response lengths in tokens, cut off at ``cap``."""

    mean: float
    """Before the cut."""
    spread: float
    """Standard deviation of the logarithm; 0: every response has the same length."""
    cap: int

    @property
    def location(self) -> float:
        """Mean of the logarithm."""
        return math.log(self.mean) - self.spread**2 / 2

    @property
    def cut_mean(self) -> float:
        """Mean after the cut: E[min(X, cap)]."""
        if not self.spread:
            return min(self.mean, float(self.cap))
        z = (math.log(self.cap) - self.location) / self.spread
        return self.mean * _NORMAL.cdf(z - self.spread) + self.cap * (1 - _NORMAL.cdf(z))

    def longer_than(self, tokens: float) -> float:
        """P(a response has more than ``tokens`` tokens)."""
        if tokens >= self.cap:
            return 0.0
        if tokens <= 0:
            return 1.0
        if not self.spread:
            return float(self.mean > tokens)
        return 1 - _NORMAL.cdf((math.log(tokens) - self.location) / self.spread)


@dataclass(frozen=True, slots=True)
class Judging:
    """One prompt's judgement."""

    parameters: float
    """Of the judge's model on GPUs; 0: it runs none there."""
    tokens: float
    """That its model reads for one prompt."""
    seconds: float
    """Of one actor for one prompt, where no model of ours runs."""
    slots: int | None
    """Judgements at a time, of all actors together; None: one an actor."""
    note: str


@dataclass(frozen=True, slots=True)
class Workload:
    """One step."""

    prompts: int
    candidates: int
    prompt_tokens: float
    longest_prompt: int
    lengths: Lengths
    tie_rate: float
    judging: Judging

    @property
    def responses(self) -> int:
        return self.prompts * self.candidates

    @property
    def pairs(self) -> float:
        """Expected."""
        return self.prompts * (1 - self.tie_rate)

    @property
    def pair_tokens(self) -> float:
        """Of a packed pair: the prompt once, both responses."""
        return self.prompt_tokens + 2 * self.lengths.cut_mean


def workload(config: RunConfig, cluster: Cluster) -> Workload:
    """From the configuration, and from the cluster file's ``workload`` what that does not say. Raises PlanError."""
    spec, sampling = cluster.workload, config.sampling
    lengths = Lengths(spec.response_tokens or sampling.max_tokens / 2, spec.spread, sampling.max_tokens)
    prompt = spec.prompt_tokens or config.prompts.max_tokens / 2
    if prompt > config.prompts.max_tokens:
        raise PlanError(
            f"workload.prompt_tokens = {prompt:g} exceeds prompts.max_tokens ({config.prompts.max_tokens}): lower the "
            f"one or raise the other"
        )
    return Workload(
        prompts=sampling.prompts_per_step,
        candidates=sampling.candidates,
        prompt_tokens=prompt,
        longest_prompt=config.prompts.max_tokens,
        lengths=lengths,
        tie_rate=spec.tie_rate,
        judging=_judging(config, cluster, prompt, lengths.cut_mean),
    )


def _judging(config: RunConfig, cluster: Cluster, prompt: float, response: float) -> Judging:
    """Of the judge that is trained on; several add up."""
    n = config.sampling.candidates
    comparisons = math.ceil(1.5 * n) - 2 if n > 2 else 1  # matches that decide best and worst
    parameters = tokens = seconds = 0.0
    slots: int | None = None
    notes: list[str] = []
    for section, judge in singles("judge", config.judge):
        notes.append(judge.kind)
        match judge:
            case LlmJudge():
                calls, read = (
                    (2 * comparisons, prompt + 2 * response) if judge.mode == "pairwise" else (n, prompt + response)
                )
                tokens += calls * read
                parameters = max(parameters, _judge_size(section, judge.model, config, cluster))
            case RewardModelJudge() | ImplicitJudge():
                models = 2 if isinstance(judge, ImplicitJudge) else 1
                tokens += models * n * (prompt + response)
                parameters = max(parameters, models * _judge_size(section, judge.model, config, cluster))
            case HttpJudge():
                calls = 2 * comparisons if judge.mode == "pairwise" else n
                # Comparisons go round by round, the two orders and a round's matches at once.
                seconds += cluster.judge.seconds * (math.ceil(math.log2(n)) if judge.mode == "pairwise" else 1)
                slots = max(1, judge.concurrency // calls)
            case HumanJudge():
                notes[-1] = "human (people's time is not planned)"
            case _:
                seconds += cluster.judge.seconds
    return Judging(parameters, tokens, seconds, slots, " + ".join(notes))


def _judge_size(section: str, model: str, config: RunConfig, cluster: Cluster) -> float:
    if cluster.judge.parameters_b:
        return cluster.judge.parameters_b * 1e9
    directory = config.model.path if model in ("initial", "policy") else model
    try:
        return float(read_architecture(directory).parameters)
    except PlanError as error:
        raise PlanError(f"{section}.model: {error}; or give judge.parameters_b in the cluster file") from None
