"""A configuration's way of making pairs, whether the run is under way or read back from its directory."""

from __future__ import annotations

from configs.schema import Pairing, Sampling
from preference.pairing import PairingRules


def pairing_rules(pairing: Pairing, sampling: Sampling, seed: int) -> PairingRules:
    """The rules of ``preference.pairing``; they have the fields of ``pairing:`` under the same names."""
    return PairingRules(
        **pairing.model_dump(),
        missing_eos=sampling.missing_eos,
        missing_eos_penalty=sampling.missing_eos_penalty,
        seed=seed,
    )
