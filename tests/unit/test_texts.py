"""Words, variety, near copies and dress: worked numbers, and the fast search against comparing all with all."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preference.texts import distinct_n, near_duplicates, ngrams, same_but_for_formatting, words


def test_words():
    assert words("The cat's hat, THE end!") == ("the", "cat", "s", "hat", "the", "end")
    assert words("") == words("... !?") == ()
    assert words("我爱你 and you") == ("我", "爱", "你", "and", "you")


def test_distinct_n_worked_by_hand():
    texts = [words("a b a b"), words("a b c")]
    assert distinct_n(texts, 1) == pytest.approx(3 / 7)
    assert distinct_n(texts, 2) == pytest.approx(3 / 5)  # ab, ba, ab and ab, bc
    assert distinct_n(texts, 3) == pytest.approx(3 / 3)  # aba, bab and abc
    assert math.isnan(distinct_n([words("a")], 2))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Hello world", "hello,  world!"),
        ("# Title\n\n- one\n- two", "Title\none\ntwo"),
        ("1. one\n2. two", "* one\n* two"),
        ("**bold** and `code`", "bold and code"),
        ("> quoted", "quoted"),
        ("don't", "dont"),
        ("smart “quotes” — here", 'smart "quotes" - here'),
    ],
)
def test_formatting_alone(one, other):
    assert same_but_for_formatting(one, other)
    assert same_but_for_formatting(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("same", "same"),  # no difference at all
        ("yes", "no"),
        ("3.14", "314"),
        ("it is -5 degrees", "it is 5 degrees"),
        ("2 + 2", "2 2"),
        ("well done 👍", "well done 👎"),
        ("costs 5 €", "costs 5 £"),
        ("हिन्दी", "हनद"),  # vowels are marks, not letters
    ],
)
def test_differences_of_substance(one, other):
    assert not same_but_for_formatting(one, other)


def jaccard(one, other, n):
    a, b = (set(ngrams(t, n)) or {t} for t in (one, other))
    return len(a & b) / len(a | b)


texts = st.lists(st.lists(st.sampled_from("abc"), max_size=9).map(tuple), max_size=12)


@settings(deadline=None, max_examples=200)
@given(texts, st.sampled_from([0.3, 0.5, 0.8, 1.0]), st.integers(1, 3))
def test_near_duplicates_are_those_that_comparing_all_with_all_finds(texts, threshold, n):
    found = near_duplicates(texts, threshold, n)
    for i, text in enumerate(texts):
        alike = [j for j, other in enumerate(texts) if j != i and jaccard(text, other, n) >= threshold - 1e-12]
        assert (found[i] is not None) == bool(alike)
        assert found[i] is None or found[i] in alike


def test_a_copy_with_one_word_changed():
    long = words(" ".join(f"w{i}" for i in range(60)))
    changed = (*long[:-1], "other")
    assert near_duplicates([long, words("something else entirely here"), changed]) == [2, None, 0]
