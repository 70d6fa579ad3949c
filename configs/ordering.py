"""Which orders of prompts (``sampling.order``) a configuration can have."""

from __future__ import annotations

from collections.abc import Sequence

from configs.opponents import Opponent
from configs.schema import Sampling
from preference.admission_rules import AdmissionRules


def refuse_unordered(sampling: Sampling, staleness: int, opponents: Sequence[Opponent], people: bool) -> None:
    """Raise ValueError where the order needs what the rest of the configuration does not give; ``people`` judge."""
    order = sampling.order
    AdmissionRules(sampling.prompts_per_step, staleness, order, sampling.spare)  # raises with the arithmetic
    if order == "admitted":
        return
    if people:
        raise ValueError(
            f"sampling.order = {order} with people as judges: their answers feed whichever step comes, and the quorum "
            f"decides how long one waits; set sampling.order=admitted"
        )
    if opponents:
        raise ValueError(
            f"sampling.order = {order} with opponents: who plays follows from the step that a prompt belongs to; set "
            f"sampling.order=admitted, or opponents=[]"
        )
