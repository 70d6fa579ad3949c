"""Who plays against the policy: players whose responses stand beside its own in every prompt's group."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from configs.schema import Pairing, Reference, Sampling
from configs.section import Section
from preference.league import LEAGUE, Draw
from preference.objectives.base import Objective
from preference.objectives.step import Term
from preference.types import DATA, HUMAN, POLICY, REFERENCE

PREVIOUS = "previous"


class _Sampled(Section):
    candidates: PositiveInt = 1
    """Responses it gives to every prompt."""


class PreviousPlayer(_Sampled):
    """The policy as it was some steps ago."""

    player: Literal["previous"]
    lag: PositiveInt = 1
    """How many steps older its weights are than those that the policy is sure to sample with."""

    @property
    def name(self) -> str:
        return PREVIOUS


class LeaguePlayer(_Sampled):
    """A pool of past versions; one of them plays each prompt."""

    player: Literal["league"]
    size: PositiveInt = 4
    """Most versions in the pool, the newest ones; each takes the disk space of the model."""
    every: PositiveInt = 4
    """Steps between the versions that enter the pool; the initial policy is the first."""
    draw: Draw = "win_rate"
    """``uniform``, or ``win_rate``: the more often one beats the policy, the more often it plays."""

    @property
    def name(self) -> str:
        return LEAGUE


class ReferencePlayer(_Sampled):
    """The reference: the initial policy, or what ``reference.refresh`` has made of it."""

    player: Literal["reference"]

    @property
    def name(self) -> str:
        return REFERENCE


class ModelPlayer(_Sampled):
    """Another model, on engines of its own."""

    player: Literal["model"]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """What it is called in metrics and journals."""
    path: str
    """Hugging Face model directory. With another tokenizer it reads prompts through its own chat template, and its
    responses are written anew in the policy's tokens."""


class DataPlayer(Section):
    """The prompt's own response: a field ``response`` of its record."""

    player: Literal["data"]

    @property
    def name(self) -> str:
        return DATA

    @property
    def candidates(self) -> int:
        return 1


PastPlayer = PreviousPlayer | LeaguePlayer | ReferencePlayer
"""Players with weights that the policy once had: one pool of engines serves them all."""
Opponent = Annotated[PastPlayer | ModelPlayer | DataPlayer, Field(discriminator="player")]


def refuse_ambiguous(opponents: Sequence[Opponent]) -> None:
    """Raise ValueError where two players could not be told apart in the results."""
    taken = {POLICY: "the policy itself", HUMAN: "people who write an answer"}
    for number, opponent in enumerate(opponents):
        field = f"opponents.{number}"
        if isinstance(opponent, ModelPlayer) and opponent.name in (PREVIOUS, LEAGUE, REFERENCE, DATA):
            raise ValueError(
                f"{field}.name = {opponent.name} is what another kind of player is called: choose another name"
            )
        if opponent.name in taken:
            raise ValueError(
                f"{field}: a player called {opponent.name}, but so is {taken[opponent.name]}: leave one of them out, "
                f"or give models different names"
            )
        taken[opponent.name] = field


def refuse_unplayable(
    opponents: Sequence[Opponent], sampling: Sampling, pairing: Pairing, reference: Reference, terms: Sequence[Term]
) -> None:
    """Raise ValueError where players, pairing and objectives do not go together; both fields are named."""
    refuse_ambiguous(opponents)
    responses = sampling.candidates + sum(o.candidates for o in opponents)
    if responses < 2:
        raise ValueError(
            f"sampling.candidates = {sampling.candidates} without opponents must be greater than or equal to 2: one "
            f"response makes no preference; raise it, or name opponents"
        )
    kinds = {o.player for o in opponents}
    if pairing.strategy == "versus" and not opponents:
        raise ValueError(
            "pairing.strategy = versus joins the policy's responses with its opponents', but opponents = []: name some "
            "(e.g. opponents=[{player: reference}]), or choose another strategy"
        )
    if pairing.strategy == "spin" and DATA not in kinds:
        raise ValueError(
            "pairing.strategy = spin takes the data's response for the chosen one, but opponents name no player: data: "
            'add opponents=[{player: data}] and give the prompts a field "response"'
        )
    if pairing.strategy == "rejection_sampling" and opponents:
        raise ValueError(
            f"pairing.strategy = rejection_sampling draws from the policy's own samples, but opponents = "
            f"{[o.name for o in opponents]} would be among them: leave them out, or choose another strategy"
        )
    if REFERENCE in kinds and reference.refresh == "periodic" and reference.alpha < 1:
        raise ValueError(
            f"opponents: player reference with reference.alpha = {reference.alpha:g}: a moving average of weights is "
            f"in no engine that samples; set reference.alpha=1 or reference.refresh=fixed"
        )
    for term in terms:
        _refuse_unfit(term.objective, kinds, pairing)


def _refuse_unfit(objective: Objective, kinds: Collection[str], pairing: Pairing) -> None:
    """Objectives that want to know who wrote what."""
    met = REFERENCE in kinds and pairing.strategy == "versus"
    if objective.reference_samples and not met:
        raise ValueError(
            f"objective.name = {objective.name} learns from pairs of which the reference wrote a response: that takes "
            f"opponents=[{{player: reference}}] (now {sorted(kinds)}) and pairing.strategy=versus (now "
            f"{pairing.strategy}); or train from a file that names the writer (`rondo offline`)"
        )
    if objective.own_samples and kinds and not (met and len(kinds) == 1):
        raise ValueError(
            f"objective.name = {objective.name} takes every response that the reference did not write for the policy's "
            f"own: with opponents these must be [{{player: reference}}] (now {sorted(kinds)}), with "
            f"pairing.strategy=versus (now {pairing.strategy})"
        )
