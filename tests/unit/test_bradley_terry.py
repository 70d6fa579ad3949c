"""Strengths from games: worked numbers, identities, and intervals that hold what they promise."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preference.bradley_terry import ELO, PRIOR, Game, components, ratings_table, strengths


def logit(p):
    return math.log(p / (1 - p))


def played(first, second, wins, losses, ties=0):
    return [Game(first, second, s) for s, n in ((1.0, wins), (0.0, losses), (0.5, ties)) for _ in range(n)]


def test_two_players_are_apart_by_their_log_odds():
    fit = strengths(played("a", "b", 75, 25), prior=1e-9)
    assert fit.difference("a", "b")[0] == pytest.approx(math.log(3), abs=1e-7)
    # The variance of a logit is 1 / (n p (1 - p)).
    assert fit.difference("a", "b")[1] == pytest.approx(math.sqrt(1 / (100 * 0.75 * 0.25)), rel=1e-6)


def test_ties_are_half_wins_and_a_probability_fits_its_log_odds():
    with_ties = strengths(played("a", "b", 50, 0, 50), prior=1e-9)
    assert with_ties.difference("a", "b")[0] == pytest.approx(math.log(3), abs=1e-7)
    assert strengths([Game("a", "b", 0.9)], prior=1e-9).difference("a", "b")[0] == pytest.approx(logit(0.9), abs=1e-6)


def test_three_players_worked_by_hand():
    """Strengths e^s of 4, 2 and 1 meet often enough that the observed shares are the exact ones."""
    games = played("a", "b", 400, 200) + played("b", "c", 400, 200) + played("a", "c", 480, 120)
    fit = strengths(games, prior=1e-9)
    expected = np.log([4, 2, 1]) - np.log(2)
    assert [fit.of(p) for p in "abc"] == pytest.approx(expected.tolist(), abs=1e-6)


def test_one_certain_win_has_the_strength_that_the_prior_allows():
    """d solves sigmoid(-d) = prior x d / 2: each of the two carries half of it."""
    d = strengths([Game("a", "b", 1.0)]).difference("a", "b")[0]
    assert 1 / (1 + math.exp(d)) == pytest.approx(PRIOR * d / 2)
    assert d == pytest.approx(3.914, abs=1e-3)


players = st.integers(2, 6)


@st.composite
def tournaments(draw):
    n = draw(players)
    pairs = [(i, j) for i in range(n) for j in range(i)]
    chosen = draw(st.lists(st.sampled_from(pairs), min_size=1, max_size=25))
    return [Game(f"p{i}", f"p{j}", draw(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]))) for i, j in chosen]


@settings(deadline=None)
@given(tournaments())
def test_identities(games):
    fit = strengths(games)
    assert np.isfinite(fit.values).all()
    assert fit.values.mean() == pytest.approx(0, abs=1e-8)
    # At the optimum everyone's points are the expected ones, but for the pull of the prior.
    for name, value in zip(fit.players, fit.values, strict=True):
        won = sum(g.score if g.first == name else 1 - g.score for g in games if name in (g.first, g.second))
        expected = sum(
            1 / (1 + math.exp(-(value - fit.of(g.second if g.first == name else g.first))))
            for g in games
            if name in (g.first, g.second)
        )
        assert won - expected == pytest.approx(PRIOR * value, abs=1e-6)
    swapped = strengths([Game(g.second, g.first, 1 - g.score) for g in games])
    for name in fit.players:
        assert swapped.of(name) == pytest.approx(fit.of(name), abs=1e-6)
    assert np.linalg.eigvalsh(fit.covariance).min() > -1e-9
    assert fit.covariance.sum() == pytest.approx(0, abs=1e-6)


@settings(deadline=None)
@given(st.permutations(range(5)))
def test_a_full_round_robin_is_ordered_by_wins(rank):
    games = [Game(f"p{i}", f"p{j}", float(rank[i] < rank[j])) for i in range(5) for j in range(i)]
    fit = strengths(games)
    assert sorted(fit.players, key=fit.of, reverse=True) == sorted(
        (f"p{i}" for i in range(5)), key=lambda p: rank[int(p[1])]
    )


def test_who_never_met_stays_apart_by_the_prior_alone():
    games = [*played("a", "b", 9, 1), *played("c", "d", 9, 1)]
    assert components(games) == [frozenset("ab"), frozenset("cd")]
    assert components([*games, Game("d", "a", 0.5)]) == [frozenset("abcd")]
    value, error = strengths(games).difference("a", "c")
    assert value == pytest.approx(0, abs=1e-6)
    assert error > 5


def test_ratings_are_on_the_elo_scale():
    rows = ratings_table(played("new", "old", 91, 9), anchor="old")
    assert [r.player for r in rows] == ["new", "old"]
    assert rows[0].rating == pytest.approx(1000 + 400 * math.log10(91 / 9), abs=2)
    assert (rows[0].games, rows[0].wins, rows[0].ties, rows[0].losses) == (100, 91, 0, 9)
    assert (rows[1].rating, rows[1].low, rows[1].high) == (1000, 1000, 1000)
    error = ELO / math.sqrt(100 * 0.91 * 0.09)
    assert rows[0].high - rows[0].low == pytest.approx(2 * 1.96 * error, rel=0.02)
    assert sum(r.rating for r in ratings_table(played("new", "old", 91, 9))) == pytest.approx(2000)


@pytest.mark.parametrize("resamples", [0, 200])
def test_intervals_cover_the_truth(resamples):
    """Of 95% intervals over 60 repeated leagues of three, all but a few hold the true difference."""
    truth = {"a": 0.5, "b": 0.0, "c": -0.7}
    rng = np.random.default_rng(0)
    covered = total = 0
    for seed in range(60):
        games = []
        for first, second in (("a", "b"), ("b", "c"), ("a", "c")):
            p = 1 / (1 + math.exp(truth[second] - truth[first]))
            games += [Game(first, second, float(x)) for x in rng.random(60) < p]
        for row in ratings_table(games, anchor="b", base=0.0, resamples=resamples, seed=seed):
            if row.player != "b":
                total += 1
                covered += row.low <= ELO * truth[row.player] <= row.high
    assert 0.88 <= covered / total <= 1.0


def test_bootstrap_is_reproducible():
    games = played("a", "b", 6, 4)
    assert ratings_table(games, resamples=50, seed=1) == ratings_table(games, resamples=50, seed=1)
    assert ratings_table(games, resamples=50, seed=1) != ratings_table(games, resamples=50, seed=2)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"'a' against itself"):
        Game("a", "a", 1.0)
    with pytest.raises(ValueError, match=r"in \[0, 1\], not nan"):
        Game("a", "b", math.nan)
    with pytest.raises(ValueError, match="no games"):
        strengths([])
    with pytest.raises(ValueError, match="prior must be > 0, not 0"):
        strengths([Game("a", "b", 1.0)], prior=0)
    with pytest.raises(ValueError, match="anchor 'z' played no game; players are a, b"):
        ratings_table([Game("a", "b", 1.0)], anchor="z")
