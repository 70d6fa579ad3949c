"""What can be run, put together from the sections of ``configs.schema``.

Strict and frozen: an unknown key, a wrong type or an impossible combination is refused. ``configs.loading`` reads YAML
and command-line overrides into these; nothing else constructs one from outside.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from configs.judges import HttpJudge, HumanJudge, Judge, asks_policy, people_of, singles
from configs.objectives import SECTIONS, BradleyTerry, Objective
from configs.objectives import default as default_objective
from configs.opponents import ModelPlayer, Opponent, PastPlayer, refuse_unplayable
from configs.ordering import refuse_unordered
from configs.schema import (
    Batching,
    Checkpointing,
    Data,
    Deadlines,
    Evaluation,
    Group,
    Model,
    Optimizer,
    Pairing,
    Prompts,
    Recovery,
    Reference,
    Resources,
    Run,
    RunDirectory,
    Sampling,
    Tracking,
    Weights,
)
from configs.section import Section
from preference.objectives import REGISTRY
from preference.objectives.step import Term
from preference.strategies import SEVERAL_PAIRS


class SftPhase(Section):
    """Supervised fine-tuning that comes before preference training."""

    data: Data
    """Demonstrations."""
    optimizer: Optimizer = Optimizer(lr=2e-5)
    """Its own optimizer."""


class TrainingConfig(Section):
    """What every kind of training has."""

    run: RunDirectory
    """Name, directory, seed and length of the run."""
    model: Model
    """The model that is trained."""
    objective: Objective = Field(default_factory=default_objective)
    """What is minimised."""
    reference: Reference = Reference()
    """Whether the reference stays as it was, or follows the policy."""
    optimizer: Optimizer = Optimizer()
    """AdamW, its schedule, and where its states live."""
    batching: Batching = Batching()
    """How a step is cut into pieces that fit memory."""
    resources: Resources = Resources()
    """Actors of every stage, and what each takes from the cluster."""
    weights: Weights = Weights()
    """How new weights reach the samplers."""
    tracking: Tracking = Tracking()
    """MLflow."""
    checkpoint: Checkpointing = Checkpointing()
    """When a run is saved, what is kept, and a second place for it."""
    deadlines: Deadlines = Deadlines()
    """How long anything is waited for."""
    recovery: Recovery = Recovery()
    """How many lost actors a run survives."""

    @property
    def terms(self) -> tuple[Term, ...]:
        """The objectives of the run with their weights."""
        return self.objective.as_terms()

    @property
    def needs_reference(self) -> bool:
        """Whether any objective asks for reference log-probs; without one there is no reference pool."""
        return any(term.objective.reference for term in self.terms)

    @property
    def groups(self) -> dict[str, tuple[Group, ...]]:
        """The actor groups of every stage that this run has."""
        reference = {"reference": (self.resources.reference,)} if self.needs_reference else {}
        return {**reference, "trainer": (self.resources.trainer,)}

    def _refuse_overflow(self, prompt_knob: str, prompt: int, response_knob: str, response: int) -> None:
        longest = prompt + 2 * response
        if longest > self.batching.micro_batch_tokens:
            raise ValueError(
                f"{prompt_knob} ({prompt}) + 2 x {response_knob} ({response}) = {longest} exceeds "
                f"batching.micro_batch_tokens ({self.batching.micro_batch_tokens}): the longest pair would not fit one "
                f"micro-batch; raise batching.micro_batch_tokens to {longest}"
            )

    def _refuse_single(self, knob: str, size: int) -> None:
        """A batch of one prompt has no other prompt's responses to compare with."""
        for term in self.terms:
            if term.objective.mismatched and size < 2:
                raise ValueError(
                    f"objective.name = {term.objective.name} compares prompts with other prompts' responses, but "
                    f"{knob} = {size}: raise it to 2 or more"
                )

    @model_validator(mode="after")
    def _trainable(self) -> Self:
        if self.reference.refresh != "fixed" and not self.needs_reference:
            raise ValueError(
                f"reference.refresh = {self.reference.refresh}, but objective.name = {self.objective.name} has no "
                f"reference: set reference.refresh=fixed"
            )
        if self.optimizer.offload == "nvme" and not self.optimizer.offload_path:
            raise ValueError("optimizer.offload = nvme needs optimizer.offload_path: a folder on a local disk")
        if self.optimizer.offload_parameters and self.optimizer.offload == "none":
            raise ValueError(
                "optimizer.offload_parameters = true with optimizer.offload = none: set optimizer.offload=cpu or nvme"
            )
        if self.optimizer.offload != "none" and not self.resources.trainer.gpus:
            raise ValueError(
                f"optimizer.offload = {self.optimizer.offload} with resources.trainer.gpus = 0: a CPU trainer has "
                f"nowhere to offload to; set optimizer.offload=none"
            )
        return self


class RunConfig(TrainingConfig):
    """An online run (``rondo run``)."""

    run: Run
    """Name, directory, seed and length of the run."""
    prompts: Prompts
    """The prompts that are sampled from, and the held-out ones."""
    sampling: Sampling = Sampling()
    """How the policy answers."""
    judge: Judge
    """Who says which response is better."""
    opponents: tuple[Opponent, ...] = ()
    """Who plays against the policy; without any, its own responses are compared with each other."""
    pairing: Pairing = Pairing()
    """What is made of a prompt's judged candidates."""
    evaluation: Evaluation = Evaluation()
    """Held-out win rate, and the judge that training never sees."""
    sft: SftPhase | None = None
    """Supervised fine-tuning before the first step; its result is the initial policy and the reference."""

    @property
    def groups(self) -> dict[str, tuple[Group, ...]]:
        asked = list(singles("judge", self.judge))
        if self.evaluation.judge is not None:
            asked += singles("evaluation.judge", self.evaluation.judge)
        own = self.resources.judge
        one = own.model_copy(update={"actors": 1})  # an endpoint is asked by one actor; people and the policy take none
        placed = [j for _, j in asked if not isinstance(j, HumanJudge) and not asks_policy(j)]
        judges = (one if isinstance(j, HttpJudge) else own for j in placed)
        pools = sum(isinstance(o, ModelPlayer) for o in self.opponents)
        pools += any(isinstance(o, PastPlayer) for o in self.opponents)  # one serves them all
        opponents = {"opponents": (self.resources.opponents,) * pools} if pools else {}
        return {
            "sampler": (self.resources.sampler,),
            **opponents,
            "judge": tuple(judges),
            **super().groups,
        }

    @model_validator(mode="after")
    def _judged(self) -> Self:
        people = people_of(self.judge)
        named = [*singles("judge", self.judge)]
        if self.evaluation.judge is not None:
            named += singles("evaluation.judge", self.evaluation.judge)
        for section, judge in named:
            if isinstance(judge, HumanJudge) and judge is not people:
                raise ValueError(
                    f"{section}.kind = human: people judge alone or as the last of an escalation (judge.then), since "
                    f"others would have to wait for them; move them there"
                )
            if asks_policy(judge) and section.startswith("evaluation."):
                raise ValueError(
                    f"{section}.model = policy: the policy would judge its own progress, by another measure at every "
                    f"step; name an independent judge, or {section}.model=initial: a frozen copy of the initial model"
                )
        if people is not None and self.evaluation.judge is None:
            raise ValueError(
                "judge.kind = human (or an escalation to people) without evaluation.judge: people are not asked about "
                "held-out answers, so name a judge that is, e.g. a rule or a reward model"
            )
        if any(asks_policy(judge) for _, judge in named) and self.evaluation.judge is None:
            raise ValueError(
                "judge.model = policy without evaluation.judge: the policy must not judge its own held-out answers, so "
                "name an independent judge of them, e.g. evaluation.judge={kind: llm, model: initial}, a frozen copy "
                "of the initial model"
            )
        if people is not None and people.mode == "labels":
            if not isinstance(self.judge, HumanJudge):
                raise ValueError("judge.then.mode = labels: an escalated match is a pair; set judge.then.mode=pairs")
            if self.pairing.strategy != "labels":
                raise ValueError(
                    f"judge.mode = labels, but pairing.strategy = {self.pairing.strategy} makes pairs: set "
                    f"pairing.strategy=labels and pairing.threshold=0.5, or judge.mode=pairs"
                )
        if people is not None and self.pairing.strategy == "spin":
            raise ValueError(
                "pairing.strategy = spin asks no judge, but judge.kind = human (or an escalation to people) would have "
                "people wait: name a judge of held-out answers, e.g. a rule, or choose another strategy"
            )
        return self

    @model_validator(mode="after")
    def _paired(self) -> Self:
        pairing = self.pairing
        for term in self.terms:
            name = term.objective.name
            if pairing.ties == "keep" and not term.objective.ties:
                known = ", ".join(sorted(n for n, o in REGISTRY.items() if o.ties))
                raise ValueError(
                    f"pairing.ties = keep, but objective.name = {name} knows no ties: set pairing.ties=drop, or "
                    f"use an objective that does ({known})"
                )
            if pairing.strategy == "labels" and term.objective.data == "pairs":
                raise ValueError(
                    f"pairing.strategy = labels makes single responses, but objective.name = {name} learns from "
                    f"pairs: set objective.name=kto (or another one on labels), or choose another strategy"
                )
        if (pairing.max_pairs or 1) > 1 and pairing.strategy not in SEVERAL_PAIRS:
            raise ValueError(
                f"pairing.max_pairs = {pairing.max_pairs}, but pairing.strategy = {pairing.strategy} makes at most one "
                f"pair a prompt: leave it out, or choose one of {', '.join(sorted(SEVERAL_PAIRS))}"
            )
        return self

    @model_validator(mode="after")
    def _fits(self) -> Self:
        need = self.prompts.max_tokens + self.sampling.max_tokens
        if need > self.sampling.max_model_len:
            raise ValueError(
                f"prompts.max_tokens ({self.prompts.max_tokens}) + sampling.max_tokens ({self.sampling.max_tokens}) "
                f"= {need} exceeds sampling.max_model_len ({self.sampling.max_model_len}): "
                f"raise sampling.max_model_len to {need} or shorten one of the two"
            )
        sampled = self.sampling.max_tokens
        self._refuse_overflow("prompts.max_tokens", self.prompts.max_tokens, "sampling.max_tokens", sampled)
        refuse_unplayable(self.opponents, self.sampling, self.pairing, self.reference, self.terms)
        self._refuse_single("sampling.prompts_per_step", self.sampling.prompts_per_step)
        refuse_unordered(self.sampling, self.run.max_staleness, self.opponents, people_of(self.judge) is not None)
        if self.optimizer.schedule != "constant" and self.optimizer.warmup_steps >= self.run.steps:
            raise ValueError(
                f"optimizer.warmup_steps ({self.optimizer.warmup_steps}) leaves no step of run.steps "
                f"({self.run.steps}) for schedule '{self.optimizer.schedule}': lower optimizer.warmup_steps"
            )
        return self


class OfflineConfig(TrainingConfig):
    """Training from files (``rondo offline``, ``rondo sft``)."""

    data: Data
    """The files that are trained on."""
    sft: SftPhase | None = None
    """Supervised fine-tuning before the first step; its result is the initial policy and the reference."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self._refuse_single("data.batch_size", self.data.batch_size)
        data = self.data
        self._refuse_overflow(
            "data.max_prompt_tokens", data.max_prompt_tokens, "data.max_response_tokens", data.max_response_tokens
        )
        return self


class SftConfig(OfflineConfig):
    """Supervised fine-tuning from files (``rondo sft``)."""

    objective: Objective = Field(default_factory=lambda: SECTIONS["sft"](name="sft"))
    """What is minimised."""

    @model_validator(mode="after")
    def _supervised(self) -> Self:
        if any(term.objective.data == "pairs" or term.objective.reference for term in self.terms):
            raise ValueError(
                f"objective.name = {self.objective.name} is no objective for supervised fine-tuning: leave it out, or "
                f"use `rondo offline`"
            )
        return self


class RewardModelConfig(OfflineConfig):
    """A Bradley-Terry reward model from files of pairs (``rondo reward-model``)."""

    objective: BradleyTerry = BradleyTerry()
    """What is minimised."""

    @model_validator(mode="after")
    def _conversations(self) -> Self:
        if self.data.template != "chat":
            raise ValueError(
                f"data.template = {self.data.template}: a reward model reads conversations through the chat template "
                f"that it is saved with; set data.template=chat and give the model one (chat_template.jinja)"
            )
        return self
