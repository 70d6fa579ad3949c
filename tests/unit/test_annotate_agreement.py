"""Agreement: published worked examples, identities, and what is left out."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preference.agreement import (
    MISSING,
    Share,
    accuracy_without_ties,
    cohens_kappa,
    krippendorff_alpha,
    longest_wins,
    position_bias,
)

M = MISSING
# Four observers, twelve units, missing values: the example of Krippendorff 2011, section C.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, M, M, M],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, M, 3],
    [M, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, M],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, M],
]


def test_alpha_of_the_published_example() -> None:
    assert krippendorff_alpha(np.array(OBSERVERS).T) == pytest.approx(0.743, abs=5e-4)


def test_alpha_of_two_observers_of_ten_binary_units() -> None:
    # Two disagreements: 4 of 20 values in pairs that differ; 16 zeros and 4 ones -> 1 - 19 * 4 / (2 * 16 * 4).
    units = [[0, 0], [1, 1], [0, 1], [0, 0], [0, 0], [0, 0], [0, 0], [0, 0], [1, 0], [0, 0]]
    assert krippendorff_alpha(units) == pytest.approx(1 - 19 * 4 / (2 * 16 * 4), abs=1e-12)


def test_alpha_needs_two_answers_and_two_categories() -> None:
    assert math.isnan(krippendorff_alpha([[0, M], [M, 1]]))
    assert math.isnan(krippendorff_alpha([[2, 2], [2, 2]]))
    assert math.isnan(krippendorff_alpha(np.zeros((0, 2), int)))
    assert krippendorff_alpha([[0, 0], [1, 1]]) == 1


codes = st.lists(st.lists(st.integers(-1, 3), min_size=3, max_size=3), min_size=1, max_size=12)


@given(codes, st.permutations(range(3)), st.permutations(range(4)))
def test_alpha_knows_neither_raters_nor_names_of_categories(table, raters, names) -> None:
    renamed = [[names[c] if c >= 0 else c for c in row] for row in np.array(table)[:, raters].tolist()]
    assert krippendorff_alpha(renamed) == pytest.approx(krippendorff_alpha(table), nan_ok=True)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
def test_alpha_of_two_is_scotts_pi_with_its_small_sample_correction(pairs) -> None:
    # alpha = 1 - (1 - pi) (n - 1) / n for two raters without missing values, n = 2 x units.
    table = np.array(pairs)
    p = np.bincount(table.ravel(), minlength=3) / table.size
    chance = float((p**2).sum())
    if chance == 1:
        assert math.isnan(krippendorff_alpha(table))
        return
    pi = (float((table[:, 0] == table[:, 1]).mean()) - chance) / (1 - chance)
    assert krippendorff_alpha(table) == pytest.approx(1 - (1 - pi) * (table.size - 1) / table.size)


def test_kappa_of_a_table_done_by_hand() -> None:
    # 20 both yes, 5 yes/no, 10 no/yes, 15 both no: observed 0.7, by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5.
    first = [1] * 25 + [0] * 25
    second = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    assert cohens_kappa(first, second) == pytest.approx(0.4)
    assert cohens_kappa([*first, M], [*second, 1]) == pytest.approx(0.4)


def test_kappa_where_it_says_nothing() -> None:
    assert math.isnan(cohens_kappa([1, 1], [1, 1]))
    assert math.isnan(cohens_kappa([M], [0]))
    assert cohens_kappa([0, 1, 2], [0, 1, 2]) == 1


def test_accuracy_counts_only_what_both_decided() -> None:
    share = accuracy_without_ties([1, 1, 0, 0.5, 1], [1, 0, 0, 1, 0.5])
    assert (share.hits, share.n) == (2, 3)
    assert share.rate == pytest.approx(2 / 3)
    assert accuracy_without_ties([0.5], [1]) == Share(0.0, 0, None, None, None)


def test_position_bias_leaves_ties_out() -> None:
    assert position_bias([1, 1, 1, 0, 0.5]).rate == 0.75


def test_longest_wins_leaves_ties_and_equal_lengths_out() -> None:
    share = longest_wins([1, 0, 1, 0.5, 1], [9, 9, 1, 5, 7], [3, 3, 2, 1, 7])
    assert (share.hits, share.n) == (1, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: krippendorff_alpha([1, 2]), "2 axes"),
        (lambda: krippendorff_alpha([[1.5, 2.0]]), "integer"),
        (lambda: krippendorff_alpha([[-2, 0]]), "at least 0"),
        (lambda: cohens_kappa([1], [1, 2]), "1 and 2 codes"),
        (lambda: accuracy_without_ties([1], [1, 0]), "1 outcomes"),
        (lambda: accuracy_without_ties([0.7], [1]), "none of 0, 0.5 and 1"),
        (lambda: longest_wins([1], [1, 2], [1, 3]), "2 pairs"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, words) -> None:
    with pytest.raises(ValueError, match=words):
        call()
