"""What texts have in common: their words, how varied those are, near copies, and differences that are only dress."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence

# Scripts without spaces between words are taken character by character.
_WORD = re.compile(r"[぀-ヿ㐀-鿿]|[^\W぀-ヿ㐀-鿿]+")
_LINE_MARKS = re.compile(r"^[ \t]*(?:>|#{1,6}[ \t]|[-*+•][ \t]|\d{1,3}[.)][ \t])[ \t]*", re.MULTILINE)
_APOSTROPHES = re.compile(r"(?<=\w)['’](?=\w)")
_OF_NUMBERS = re.compile(r"(?<=\d)[.,:](?=\d)|(?<!\w)-(?=\d)")  # 3.14 is not 314, and -5 is not 5
_MARKUP = frozenset("`~|<>^$")  # symbols by their category, markup by their use

Words = tuple[str, ...]


def words(text: str) -> Words:
    """The words of a text, without case and punctuation."""
    return tuple(_WORD.findall(text.casefold()))


def ngrams(text: Words, n: int) -> Iterator[Words]:
    return (text[i : i + n] for i in range(len(text) - n + 1))


def distinct_n(texts: Sequence[Words], n: int) -> float:
    """Different n-grams over all n-grams of all texts (distinct-n, Li et al., arXiv 1510.03055); nan without any.

    It falls as there is more text: compare sets of like size.
    """
    seen: set[Words] = set()
    total = 0
    for text in texts:
        total += max(0, len(text) - n + 1)
        seen.update(ngrams(text, n))
    return len(seen) / total if total else math.nan


def same_but_for_formatting(one: str, other: str) -> bool:
    """Whether two unequal texts say the same words: they differ in markup, white space, case or punctuation alone."""
    return one != other and _undressed(one) == _undressed(other)


def _undressed(text: str) -> list[str]:
    text = _LINE_MARKS.sub("", unicodedata.normalize("NFKC", text).casefold())
    text = _APOSTROPHES.sub("", text)
    kept = {m.start() for m in _OF_NUMBERS.finditer(text)}
    return "".join(c if i in kept or _speaks(c) else " " for i, c in enumerate(text)).split()


def _speaks(char: str) -> bool:
    """Letters, digits, their marks (vowels in many scripts) and symbols (+, €, emoji) carry meaning."""
    return unicodedata.category(char)[0] in "LNM" or (unicodedata.category(char)[0] == "S" and char not in _MARKUP)


def near_duplicates(texts: Sequence[Words], threshold: float = 0.8, n: int = 3) -> list[int | None]:
    """For every text the number of another whose n-grams are nearly the same, or None: Jaccard >= ``threshold``.

    Exact, yet far from comparing all with all: two such sets share one of their first few n-grams in order of rarity
    (prefix filtering, Chaudhuri et al., ICDE 2006). Texts shorter than n words are one n-gram.
    """
    alike: dict[frozenset[Words], list[int]] = {}
    for number, text in enumerate(texts):
        alike.setdefault(frozenset(ngrams(text, n)) or frozenset([text]), []).append(number)
    twins: list[int | None] = [None] * len(texts)
    for numbers in alike.values():
        if len(numbers) > 1:
            for number in numbers:
                twins[number] = numbers[1] if number == numbers[0] else numbers[0]
    frequency = Counter(gram for grams in alike for gram in grams)
    index: dict[Words, list[frozenset[Words]]] = {}
    for grams in sorted(alike, key=len):
        rare_first = sorted(grams, key=lambda g: (frequency[g], g))
        prefix = rare_first[: len(grams) - math.ceil(threshold * len(grams)) + 1]
        candidates = {other for gram in prefix for other in index.get(gram, ())}
        for other in candidates:
            one, two = alike[grams], alike[other]
            if all(twins[i] is not None for i in (*one, *two)):
                continue
            shared = len(grams & other)
            if shared >= threshold * (len(grams) + len(other) - shared):
                for numbers, twin in ((one, two[0]), (two, one[0])):
                    for number in numbers:
                        twins[number] = twin if twins[number] is None else twins[number]
        for gram in prefix:
            index.setdefault(gram, []).append(grams)
    return twins
