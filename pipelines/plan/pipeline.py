"""What the simulation is given and what it returns."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipelines.plan.engines import TokenSeconds
from pipelines.plan.weights import WeightPath
from pipelines.plan.workload import Lengths
from preference.admission import AdmissionRules


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What is simulated; seconds throughout."""

    rules: AdmissionRules
    engines: int
    token_s: TokenSeconds
    slots: float
    """Sequences that an engine has room for."""
    prefill_s: float
    candidates: int
    lengths: Lengths
    judges: int
    judge_s: float
    references: int
    reference_s: float
    driver_s: float
    train_s: float
    path: WeightPath
    tie_rate: float = 0.0
    """Ties take up their place in a batch and are not scored."""
    train_spread: float = 0.0
    """Standard deviation of the logarithm of a step's time."""
    load_beside_training: bool = False
    """The trainer takes its next step while samplers load; else it waits until they serve the last one."""
    engine_mtbf_s: float = math.inf
    """Of one engine."""
    trainer_mtbf_s: float = math.inf
    """Of the group: one rank's failure stops all."""
    restart_s: float = 0.0
    checkpoint_steps: int = 1


@dataclass(frozen=True, slots=True)
class Simulated:
    """What came of it."""

    steps: int
    seconds: float
    period: float
    """Seconds a step, after a warm-up."""
    pairs: int
    """Trained."""
    pairs_per_s: float
    """In the steady state."""
    utilisation: dict[str, float]
    waits: dict[str, float]
    """Share of the trainer's time, by what it waited for."""
    ages: dict[int, int]
    """Trained prompts by age in versions."""
    stale: int
    restarted: int
    """Prompts sampled again because their engine died."""
    failures: dict[str, int]
    events: int
