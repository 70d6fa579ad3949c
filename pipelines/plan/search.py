"""The fastest layout: of every stage as few actors as a step time asks for, and the least step time that then fits."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence

from pipelines.plan.architecture import PlanError
from pipelines.plan.cluster import STAGES
from pipelines.plan.layout import Groups, Layout, Planner
from pipelines.plan.memory import reference_memory, sampler_memory, trainer_memory
from pipelines.plan.weights import weight_path

_MOST_STALENESS = 4  # what is recommended; more is known to cost quality
_WORTH = 0.05  # every further version of staleness has to save this share of a step
_SPANS = (1, 2, 4, 8)  # GPUs of a tensor-parallel engine


def best_layout(planner: Planner, staleness: int | None = None) -> Layout:
    """Without ``staleness`` the least one that is worth it.

    Raises PlanError where the model fits no layout, naming what is missing.
    """
    curves = _Curves(planner)
    if staleness is not None:
        return planner.layout(_best_groups(planner, curves, max(1, staleness)), staleness)
    layouts = [planner.layout(_best_groups(planner, curves, k), k) for k in range(1, _MOST_STALENESS + 1)]
    chosen = layouts[0]
    for layout in layouts[1:]:
        if layout.period < chosen.period * (1 - _WORTH) ** (layout.staleness - chosen.staleness):
            chosen = layout
    return chosen


def _best_groups(planner: Planner, curves: _Curves, staleness: int) -> Groups:
    pool = planner.cluster.pool("sampler")
    found: list[tuple[float, Groups]] = []
    reasons: list[str] = []
    for gpus in _SPANS:
        if gpus > pool.gpus:
            break
        memory = sampler_memory(planner.arch, planner.config, pool.device, gpus)
        if memory.missing or planner.times.slots(gpus) < 1:
            reasons.append(f"sampler on {gpus} GPUs: {memory.arithmetic()}; {planner.remedy('sampler')}")
            continue
        if (groups := _Search(planner, curves, gpus, staleness, reasons).groups()) is not None:
            found.append((planner.layout(groups, staleness).period, groups))
    if not found:
        raise PlanError("no layout fits this cluster:\n  " + "\n  ".join(dict.fromkeys(reasons)))
    return min(found, key=lambda f: f[0])[1]


class _Curves:
    """Seconds over sizes of the groups that neither staleness nor the engines' size has a part in."""

    def __init__(self, planner: Planner) -> None:
        config, work, times = planner.config, planner.work, planner.times
        pools = {stage: planner.cluster.pool(stage) for stage in STAGES}
        self.judge_gpus = max(1, math.ceil(config.resources.judge.gpus)) if work.judging.parameters else 0
        self.judges = _Curve(
            _sizes(pools["judge"].size // (self.judge_gpus or 1), pools["judge"].gpus),
            lambda n: times.judge(n, self.judge_gpus).seconds,
        )
        self.references = _Curve(
            _sizes(pools["reference"].size, pools["reference"].gpus) if config.needs_reference else [0],
            lambda n: times.reference(n).seconds if n else 0.0,
        )
        device, self.most_ranks = pools["trainer"].device, max(1, min(pools["trainer"].size, int(work.pairs)))
        self.fitting_ranks = [
            n
            for n in _sizes(self.most_ranks, pools["trainer"].gpus)
            if not trainer_memory(planner.arch, config, device, n).missing
        ]
        self.ranks = _Curve(self.fitting_ranks, lambda n: times.trainer(n).seconds)


class _Search:
    """For engines of one size. What stands in the way is added to ``reasons``."""

    def __init__(self, planner: Planner, curves: _Curves, engine_gpus: int, staleness: int, reasons: list[str]) -> None:
        self._planner, self._curves, self._span = planner, curves, engine_gpus
        self._staleness, self._reasons = staleness, reasons
        self._scored = planner.config.needs_reference
        pool, times = planner.cluster.pool("sampler"), planner.times
        self._engines = _Curve(
            _sizes(pool.size // engine_gpus, max(1, pool.gpus // engine_gpus)),
            lambda n: times.sampler(n, engine_gpus, float(staleness)).seconds,
        )

    def groups(self) -> Groups | None:
        """With the shortest step, to 0.2%, by bisection; None where none fits."""
        if not self._fits_at_all():
            return None
        low, high = 1e-3, 1e6
        best = self._for(high)
        if best is None:
            least = Groups(1, self._span, 1, self._curves.judge_gpus, int(self._scored), self._curves.fitting_ranks[0])
            self._reasons.extend(self._planner.shortfalls(least))
            return None
        while high > 1.002 * low:
            middle = math.sqrt(low * high)
            groups = self._for(middle)
            if groups is None:
                low = middle
            else:
                best, high = groups, middle
        grown = self._grown(best)
        return grown if self._period(grown) < 0.999 * self._period(best) else best

    def _fits_at_all(self) -> bool:
        planner, pools = self._planner, self._planner.cluster
        if not self._curves.fitting_ranks:
            memory = trainer_memory(planner.arch, planner.config, pools.pool("trainer").device, self._curves.most_ranks)
            self._reasons.append(
                f"trainer on {self._curves.most_ranks} ranks: {memory.arithmetic()}; {planner.remedy('trainer')}"
            )
            return False
        if self._scored:
            memory = reference_memory(planner.arch, planner.config, pools.pool("reference").device)
            if memory.missing:
                self._reasons.append(f"reference: {memory.arithmetic()}; {planner.remedy('reference')}")
                return False
        return True

    def _for(self, period: float) -> Groups | None:
        """The smallest groups that take a step in ``period`` seconds, if they fit the cluster."""
        planner = self._planner
        engines, judges = self._engines.smallest(period), self._curves.judges.smallest(period)
        references = self._curves.references.smallest(period)
        if engines is None or judges is None or references is None:
            return None
        published, ranks = 0.0, self._curves.fitting_ranks[0]
        for _ in range(3):  # the way of the weights depends on the groups, a little
            found = self._curves.ranks.smallest(period - published)
            if found is None:
                return None
            ranks = found
            try:
                path = weight_path(planner.arch, planner.config, planner.cluster, ranks, engines, self._span)
            except PlanError as error:
                self._reasons.append(str(error))
                return None
            published = path.seconds
        groups = Groups(engines, self._span, judges, self._curves.judge_gpus, references, ranks)
        fits = all(sum(groups.gpus(s) for s in pool.stages) <= pool.size for pool in planner.cluster.pools)
        learn = planner.times.trainer(ranks).seconds + published
        return groups if fits and learn <= period * 1.001 else None

    def _grown(self, groups: Groups) -> Groups:
        """With the GPUs that are left over as further engines."""
        pool = self._planner.cluster.pool("sampler")
        more = (pool.size - sum(groups.gpus(s) for s in pool.stages)) // self._span
        return Groups(
            groups.engines + more, self._span, groups.judges, groups.judge_gpus, groups.references, groups.ranks
        )

    def _period(self, groups: Groups) -> float:
        return self._planner.layout(groups, self._staleness).period


class _Curve:
    """Seconds over group sizes, made falling: a larger group that is slower is never asked for."""

    def __init__(self, sizes: Sequence[int], seconds: Callable[[int], float]) -> None:
        self._sizes: list[int] = []
        self._falling: list[float] = []  # negated: bisection wants rising
        for size in sizes:
            taken = seconds(size)
            if not self._falling or -taken > self._falling[-1]:
                self._sizes.append(size)
                self._falling.append(-taken)

    def smallest(self, period: float) -> int | None:
        """The smallest size that takes no longer than ``period``."""
        at = bisect_left(self._falling, -period)
        return self._sizes[at] if at < len(self._sizes) else None


def _sizes(most: int, node: int) -> list[int]:
    """1 ... the GPUs of a node, then whole nodes."""
    return list(range(1, min(most, node) + 1)) + list(range(2 * node, most + 1, node))
