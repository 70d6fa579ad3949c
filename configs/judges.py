"""The judges: who says which response is better, and by what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from configs.section import Section


class _Judge(Section):
    max_failure_rate: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Stop the run, naming the cause, when more than this share of an iteration's judgements failed."""


class RuleJudge(_Judge):
    """A Python function scores responses."""

    kind: Literal["rule"] = "rule"
    rule: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """``package.module:callable``; called with a prompt and its responses, returns one score a response."""


class _Prompted(_Judge):
    """What a language model is asked."""

    mode: Literal["pairwise", "pointwise"] = "pairwise"
    """Compare two responses (in both orders), or grade one at a time."""
    template: str = ""
    """Template file of the question; empty: the one that ships for ``mode``."""
    guidelines: str = ""
    """Text file that says what is better; empty: the ones that ship. Their hash stands in every judgement."""
    grades: tuple[NonNegativeInt, NonNegativeInt] = (1, 5)
    """Lowest and highest grade of a pointwise judge; a rating is the mean over the model's distribution of grades."""
    tie_band: Annotated[float, Field(ge=0, lt=0.5)] = 0.05
    """P(first is better), both orders averaged, within this of 1/2 is a tie."""
    min_mass: Annotated[float, Field(ge=0, le=1)] = 0.1
    """A model that gives the verdict tokens less probability than this did not answer the question: failed."""

    @model_validator(mode="after")
    def _gradable(self) -> Self:
        lowest, highest = self.grades
        if not 1 <= highest - lowest < 20:  # endpoints show the 20 likeliest tokens
            raise ValueError(f"judge.grades = [{lowest}, {highest}]: give the lowest and the highest of 2 to 20 grades")
        return self


class LlmJudge(_Prompted):
    """A chat model on vLLM in a pool of its own, or the policy's own engines."""

    kind: Literal["llm"]
    model: str
    """Hugging Face model directory; ``initial``: a frozen copy of the model that training began with; ``policy``: the
    samplers' engines with their present weights (self-rewarding)."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Compute type of the judge's engine."""
    max_model_len: PositiveInt = 2048
    """Context length of the judge's engine: question and both responses must fit, or the judgement fails."""
    kv_cache_gb: PositiveFloat = 0.5
    """KV cache of one CPU engine in GiB."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Share of a GPU's memory one GPU engine takes."""

    @model_validator(mode="after")
    def _own_engine(self) -> Self:
        if self.model == "policy":
            for knob in ("dtype", "max_model_len", "kv_cache_gb", "gpu_memory_utilization"):
                if getattr(self, knob) != type(self).model_fields[knob].default:
                    raise ValueError(
                        f"judge.{knob} = {getattr(self, knob)} is of an engine of the judge's own, but judge.model = "
                        f"policy is asked on the samplers' engines: set it under sampling (dtype: under model)"
                    )
        return self


class HttpJudge(_Prompted):
    """Any OpenAI-compatible chat endpoint."""

    kind: Literal["http"]
    url: str = Field(pattern=r"^https?://[^@\s?#]+$")
    """Base URL, usually ending in ``/v1``; without credentials in it."""
    model: str
    """Name of the model at the endpoint."""
    api_key_env: str = Field("", pattern=r"^([A-Za-z_]\w*)?$")
    """Environment variable of the judge's node that holds the API key; never part of a run's configuration."""
    api_key_file: str = ""
    """File on the judge's node that holds the API key; readable by its owner alone (0600)."""
    concurrency: PositiveInt = 16
    """Requests in flight."""
    requests_per_minute: PositiveFloat | None = None
    """Rate limit; none: as fast as ``concurrency`` goes."""
    timeout_s: PositiveFloat = 60.0
    """Longest time of one request."""
    retries: Annotated[int, Field(ge=0)] = 4
    """Retries of a request that timed out or met 408, 409, 429 or 5xx, with growing, jittered pauses."""
    price_in: NonNegativeFloat = 0.0
    """Price of a million input tokens."""
    price_out: NonNegativeFloat = 0.0
    """Price of a million output tokens."""
    budget: PositiveFloat | None = None
    """Stop the run before the judge has cost more than this; resumed runs go on counting."""

    @model_validator(mode="after")
    def _answerable(self) -> Self:
        if self.api_key_env and self.api_key_file:
            raise ValueError(
                f"judge.api_key_env = {self.api_key_env} and judge.api_key_file = {self.api_key_file}: keep one of them"
            )
        if self.budget is not None and not (self.price_in or self.price_out):
            raise ValueError(
                f"judge.budget = {self.budget:g}, but judge.price_in and judge.price_out are 0: without prices no "
                f"budget is ever spent; set them, per million tokens"
            )
        if self.mode == "pointwise" and self.grades[1] > 9:
            raise ValueError(
                f"judge.grades = {list(self.grades)}: many endpoints answer in tokens of one digit, and 1 and 10 begin "
                f"with the same; give single digits, e.g. judge.grades=[1, 9]"
            )
        return self


class RewardModelJudge(_Judge):
    """A Hugging Face sequence-classification model with one output scores responses."""

    kind: Literal["reward_model"]
    model: str
    """Model directory."""
    dtype: Literal["bfloat16", "float32"] = "float32"
    """Compute type."""
    batch_tokens: PositiveInt = 4096
    """Most tokens (padding included) of one forward pass."""
    max_tokens: PositiveInt = 2048
    """A conversation longer than this is not scored: failed."""

    @model_validator(mode="after")
    def _one_fits(self) -> Self:
        if self.max_tokens > self.batch_tokens:
            raise ValueError(
                f"judge.max_tokens ({self.max_tokens}) exceeds judge.batch_tokens ({self.batch_tokens}): the longest "
                f"conversation would not fit one forward pass; raise judge.batch_tokens to {self.max_tokens}"
            )
        return self


class ImplicitJudge(_Judge):
    """``beta`` x (log pi - log pi_ref) of two checkpoints: what DPO training made of a model, as a reward model."""

    kind: Literal["implicit"]
    model: str
    """Directory of the trained model."""
    reference: str
    """Directory of the model it was trained from."""
    beta: PositiveFloat = 0.1
    """Scale of the reward."""
    dtype: Literal["bfloat16", "float32"] = "float32"
    """Compute type of both models."""
    batch_tokens: PositiveInt = 4096
    """Most tokens of one forward pass; a prompt and a response longer than this are not scored: failed."""
    length_normalised: bool = False
    """Divide by the response's tokens."""


class HumanJudge(_Judge):
    """People, through the web page of ``rondo annotate``."""

    kind: Literal["human"]
    mode: Literal["pairs", "labels"] = "pairs"
    """Which of two responses is better, or thumbs up / down on one (unary labels for KTO)."""
    store: str = ""
    """Database URL (``postgresql+psycopg://...``), one database (or schema) a run; empty: SQLite (WAL) in the run's
    directory, which then is on a disk of the driver's node (SQLite does not work over network file systems)."""
    host: str = "127.0.0.1"
    """Address that the page is served on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8700
    """Port of the page; 0: any free one."""
    public_url: str = Field("", pattern=r"^$|^https?://[^#?]+$")
    """Address that people open, where a proxy stands before the page; ``https://``: it ends TLS."""
    serve: bool = True
    """Serve the page from inside the run; false: ``rondo annotate`` does, on the same store."""
    annotators: tuple[str, ...] = ("annotator",)
    """Names of the people; each gets a link of their own."""
    reviewers: tuple[str, ...] = ()
    """Annotators who decide conflicts between the others and see the agreement page."""
    overlap: PositiveInt = 1
    """How many people judge an item. Where they disagree a reviewer decides; without one the majority, else it is a
    tie."""
    lease_s: PositiveFloat = 600.0
    """An item that was handed out and not judged within this is given to others."""
    gold: str = ""
    """JSONL file of items with known answers, mixed in to check annotators."""
    gold_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of items handed out that are gold."""
    qualification: Annotated[int, Field(ge=0)] = 0
    """Gold items that a new annotator must answer first."""
    qualification_accuracy: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Share of them to be right; who misses it is thanked and gets no more items."""
    guidelines: str = ""
    """Markdown file of guidelines; empty: the ones that ship. Their hash stands in every judgement."""
    warning: str = ""
    """Content warning that is shown before the first item."""
    strength: bool = False
    """Also ask how much better."""
    rationale: bool = True
    """Offer a field for the reason."""
    write: bool = True
    """Offer to write a better answer, which becomes the chosen one."""
    quorum: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Go on as soon as this share of a batch is judged; later labels feed a later batch."""
    deadline_s: PositiveFloat | None = None
    """Go on after this long with what is judged (at least one item); none: wait for the quorum."""


Single = RuleJudge | LlmJudge | HttpJudge | RewardModelJudge | ImplicitJudge | HumanJudge


class Member(Section):
    """One judge of a panel."""

    judge: Annotated[Single, Field(discriminator="kind")]
    """Any judge that works alone."""
    weight: PositiveFloat = 1.0
    """Its share in the panel's average, among those that gave a verdict."""
    scale: PositiveFloat = 1.0
    """For judges that rate: P(first is better) = sigmoid((rating of first - rating of second) / scale)."""


class PanelJudge(_Judge):
    """Several judges; P(first is better) is the weighted mean of theirs."""

    kind: Literal["panel"]
    members: Annotated[tuple[Member, ...], Field(min_length=2)]
    """The judges with their weights."""
    tie_band: Annotated[float, Field(ge=0, lt=0.5)] = 0.05
    """A mean within this of 1/2 is a tie."""
    min_votes: PositiveInt = 1
    """Fewer members than this with a verdict: the panel abstains."""


class EscalationJudge(_Judge):
    """A cheap judge first; what it is unsure of goes on to the next one, and a random share is audited."""

    kind: Literal["escalation"]
    first: Annotated[Single | PanelJudge, Field(discriminator="kind")]
    """Judges everything."""
    then: Annotated[Single | PanelJudge, Field(discriminator="kind")]
    """Judges what is escalated; its verdict stands."""
    scale: PositiveFloat = 1.0
    """For a first judge that rates: P = sigmoid(difference / scale)."""
    below: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Escalate where |P - 1/2| is below this."""
    on_flip: bool = True
    """Escalate where the first judge's two orders contradict each other."""
    on_failure: bool = True
    """Escalate what the first judge abstained from or failed at."""
    audit: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Random share that goes on anyway: the agreement of the two judges on it is reported every iteration."""


Judge = Annotated[Single | PanelJudge | EscalationJudge, Field(discriminator="kind")]


def people_of(judge: Judge) -> HumanJudge | None:
    """The people that the judge is, or hands on to."""
    if isinstance(judge, EscalationJudge):
        return people_of(judge.then)
    return judge if isinstance(judge, HumanJudge) else None


def singles(section: str, judge: Judge) -> Iterator[tuple[str, Single]]:
    """Every judge that works alone inside ``judge``, with the section that configures it."""
    if isinstance(judge, PanelJudge):
        for i, member in enumerate(judge.members):
            yield f"{section}.members.{i}.judge", member.judge
    elif isinstance(judge, EscalationJudge):
        yield from singles(f"{section}.first", judge.first)
        yield from singles(f"{section}.then", judge.then)
    else:
        yield section, judge


def asks_policy(judge: Single) -> bool:
    """Whether the policy itself judges, with its present weights."""
    return isinstance(judge, LlmJudge) and judge.model == "policy"


def is_independent(judge: Judge) -> bool:
    """Whether it may judge held-out answers: nobody waits for people there, and no policy judges its own progress."""
    return people_of(judge) is None and not any(asks_policy(single) for _, single in singles("", judge))
