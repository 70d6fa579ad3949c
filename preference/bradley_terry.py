"""Bradley-Terry strengths from games between players (Bradley & Terry, Biometrika 39, 1952), in numpy.

P(a beats b) = sigmoid(s_a - s_b). A tie counts as half a win for both; a judge's probability may stand for the outcome,
which fits its log-odds. A weak normal prior around 0 keeps an undefeated player finite and makes the answer unique:
strengths have mean 0, and two players whom no chain of games connects stay apart by the prior alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from preference.winrate import sigmoid

PRIOR = 0.01  # precision of the prior, i.e. sd 10 in log-odds: one game won for certain is worth 3.9
ELO = 400 / math.log(10)  # Elo points a unit of log-odds

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Game:
    first: str
    second: str
    score: float
    """1: the first won, 0: the second, 1/2: a tie; in between a judge's P(first is better)."""

    def __post_init__(self) -> None:
        if self.first == self.second:
            raise ValueError(f"a game needs two players, found {self.first!r} against itself")
        if not 0 <= self.score <= 1:
            raise ValueError(f"the score of {self.first!r} against {self.second!r} must be in [0, 1], not {self.score}")


@dataclass(frozen=True, slots=True)
class Strengths:
    players: tuple[str, ...]
    values: Floats  # [P] log-odds, mean 0
    covariance: Floats  # [P, P] of ``values``: inverse Hessian of the posterior, centred

    def of(self, player: str) -> float:
        return float(self.values[self.players.index(player)])

    def difference(self, first: str, second: str) -> tuple[float, float]:
        """(log-odds that ``first`` beats ``second``, their standard error)."""
        i, j = self.players.index(first), self.players.index(second)
        variance = self.covariance[i, i] + self.covariance[j, j] - 2 * self.covariance[i, j]
        return float(self.values[i] - self.values[j]), math.sqrt(max(float(variance), 0.0))


def strengths(games: Sequence[Game], prior: float = PRIOR) -> Strengths:
    """Maximum a posteriori strengths of everyone who played; ``prior``: precision of the normal prior.

    Raises ValueError without a game, or with a prior that is not positive.
    """
    if not games:
        raise ValueError("no games, no strengths")
    if not prior > 0:
        raise ValueError(f"prior must be > 0, not {prior}: without it an undefeated player has no finite strength")
    players = tuple(dict.fromkeys(name for g in games for name in (g.first, g.second)))
    values, hessian = _newton(_scored(games, players), prior)
    centring = np.eye(len(players)) - 1 / len(players)
    return Strengths(players, values, centring @ np.linalg.inv(hessian) @ centring)


def _scored(games: Sequence[Game], players: Sequence[str]) -> Floats:
    """[P, P] points that the row's player took from the column's."""
    number = {name: i for i, name in enumerate(players)}
    points = np.zeros((len(players), len(players)))
    rows, columns = (np.array([number[getattr(g, side)] for g in games]) for side in ("first", "second"))
    scores = np.array([g.score for g in games])
    np.add.at(points, (rows, columns), scores)
    np.add.at(points, (columns, rows), 1 - scores)
    return points


def _newton(points: Floats, prior: float) -> tuple[Floats, Floats]:
    """(strengths [P], Hessian [P, P] there) of the strictly convex negative log-posterior."""
    played = points + points.T
    values = np.zeros(len(points))

    def loss(s: Floats) -> float:
        return float((points * np.logaddexp(0.0, s[None, :] - s[:, None])).sum() + 0.5 * prior * (s**2).sum())

    for _ in range(200):
        p = sigmoid(values[:, None] - values[None, :])
        gradient = prior * values - (points - played * p).sum(axis=1)
        information = played * p * (1 - p)
        hessian = np.diag(information.sum(axis=1) + prior) - information
        if np.abs(gradient).max() < 1e-10 * max(1.0, played.max()):
            break
        step = np.linalg.solve(hessian, gradient)
        # Far out the curvature is next to nothing and a full step overshoots; a short enough one always descends.
        size, bound = 1.0, loss(values) * (1 + 1e-12)
        while size > 1e-9 and loss(values - size * step) > bound:
            size /= 2
        values = values - size * step
        values -= values.mean()  # where the optimum's is; a weak prior leaves rounding to drift along it
    return values, hessian


def components(games: Sequence[Game]) -> list[frozenset[str]]:
    """Players connected by chains of games, the largest group first: strengths compare inside one group only."""
    groups: list[set[str]] = []
    for game in games:
        joined = {game.first, game.second}
        apart = []
        for group in groups:
            if group & joined:
                joined |= group
            else:
                apart.append(group)
        groups = [*apart, joined]
    return sorted((frozenset(g) for g in groups), key=lambda g: (-len(g), min(g)))


@dataclass(frozen=True, slots=True)
class Rating:
    """One row of a table of ratings, on the Elo scale: 400 points are odds of ten to one."""

    player: str
    rating: float
    low: float  # 95% interval
    high: float
    games: int
    wins: int
    ties: int
    losses: int


def ratings_table(
    games: Sequence[Game], *, anchor: str | None = None, base: float = 1000.0, resamples: int = 0, seed: int = 0
) -> tuple[Rating, ...]:
    """Everyone's rating with a 95% interval, best first.

    ``base`` is the rating of ``anchor`` (whose interval is a point), or the mean of all without one. Intervals are
    normal ones from the curvature, or, with ``resamples`` > 0, percentiles over games drawn again with replacement.
    Judges' ties and probabilities vary less than the coin that either interval takes a game for, so the normal one is
    wider than needed, never too narrow. Raises ValueError on an unknown anchor, and without games.
    """
    fitted = strengths(games)
    if anchor is not None and anchor not in fitted.players:
        raise ValueError(f"anchor {anchor!r} played no game; players are {', '.join(fitted.players)}")
    fixed = None if anchor is None else fitted.players.index(anchor)

    def relative(values: Floats) -> Floats:
        return values if fixed is None else values - values[fixed]

    values = relative(fitted.values)
    if resamples:
        drawn = _resampled(games, fitted.players, resamples, seed)
        low, high = np.percentile([relative(v) for v in drawn], [2.5, 97.5], axis=0)
    else:
        basis = np.eye(len(values)) if fixed is None else np.eye(len(values)) - np.eye(len(values))[fixed]
        half = 1.96 * np.sqrt(np.maximum(np.diag(basis @ fitted.covariance @ basis.T), 0.0))
        low, high = values - half, values + half
    rows = [
        Rating(name, base + ELO * float(v), base + ELO * float(lo), base + ELO * float(hi), *_record(games, name))
        for name, v, lo, hi in zip(fitted.players, values, low, high, strict=True)
    ]
    return tuple(sorted(rows, key=lambda r: -r.rating))


def _resampled(games: Sequence[Game], players: Sequence[str], resamples: int, seed: int) -> list[Floats]:
    rng = np.random.default_rng(seed)
    draws = (rng.integers(len(games), size=len(games)) for _ in range(resamples))
    return [_newton(_scored([games[i] for i in draw], players), PRIOR)[0] for draw in draws]


def _record(games: Sequence[Game], player: str) -> tuple[int, int, int, int]:
    """(games, wins, ties, losses); a probability counts for the side that it favours."""
    own = [g.score if g.first == player else 1 - g.score for g in games if player in (g.first, g.second)]
    wins, ties = sum(s > 0.5 for s in own), sum(s == 0.5 for s in own)
    return len(own), wins, ties, len(own) - wins - ties
