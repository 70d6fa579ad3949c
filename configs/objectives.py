"""The ``objective:`` section: one model an objective, made from its function's parameters.

objective: {name: ipo, beta: 0.2}
objective: {name: mix, terms: [{name: dpo, beta: 0.1}, {name: sft, weight: 0.2}]}
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from pydantic import Field, create_model

from configs.section import Section
from preference.objectives import REGISTRY
from preference.objectives.base import Objective as Definition
from preference.objectives.step import Term
from preference.reward_model import BRADLEY_TERRY


class Single(Section):
    """One objective and its parameters."""

    name: str
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Factor of this objective in the loss; of interest where several are mixed."""

    def as_terms(self) -> tuple[Term, ...]:
        return (Term(REGISTRY[self.name], self.weight, self.model_dump(exclude={"name", "weight"})),)


def _section(definition: Definition) -> type[Single]:
    hints = get_type_hints(definition.loss, include_extras=True)
    parameters = [p for p in inspect.signature(definition.loss).parameters.values() if p.kind is p.KEYWORD_ONLY]
    fields: dict[str, Any] = {p.name: (hints[p.name], p.default) for p in parameters}
    fields["name"] = (Literal[definition.name], definition.name)
    model: type[Single] = create_model(
        f"Objective_{definition.name}",
        __base__=Single,
        __module__=__name__,
        __doc__=definition.loss.__doc__,
        **fields,
    )
    return model


SECTIONS = {name: _section(definition) for name, definition in sorted(REGISTRY.items())}
globals().update({section.__name__: section for section in SECTIONS.values()})  # where pickle looks for them


class BradleyTerry(Single):
    """What a reward model learns by: -log sigmoid(r_chosen - r_rejected)."""

    name: Literal["bradley_terry"] = "bradley_terry"
    margin: Annotated[float, Field(ge=0)] = 0.0
    """A pair is learned until its chosen response scores this much higher (Llama 2, 2307.09288)."""
    centring: Annotated[float, Field(ge=0)] = 0.0
    """Weight of (r_chosen + r_rejected)^2, which keeps scores around zero (2312.09244; 0.01 does)."""

    def as_terms(self) -> tuple[Term, ...]:
        return (Term(BRADLEY_TERRY, self.weight, {"margin": self.margin, "centring": self.centring}),)


if TYPE_CHECKING:
    AnySingle = Single
else:
    _union = None
    for _model in SECTIONS.values():
        _union = _model if _union is None else _union | _model
    AnySingle = Annotated[_union, Field(discriminator="name")]


class Mix(Section):
    """Several objectives, added with their weights."""

    name: Literal["mix"] = "mix"
    terms: Annotated[tuple[AnySingle, ...], Field(min_length=2)]
    """The objectives; rewards and accuracies are shown by the first one's beta."""

    def as_terms(self) -> tuple[Term, ...]:
        return tuple(term for single in self.terms for term in single.as_terms())


if TYPE_CHECKING:
    Objective = Single | Mix
else:
    Objective = Annotated[_union | Mix, Field(discriminator="name")]


def default() -> Objective:
    return SECTIONS["dpo"](name="dpo")
