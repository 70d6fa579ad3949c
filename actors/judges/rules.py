"""Rule judges: plain functions that score responses without a model.

Contract of every rule: ``rule(prompt, responses)`` returns one finite score a response, in order, higher is better;
it raises on trouble and never invents a score. A rule's packages are imported when it is first called, so importing
this module costs nothing and a judge actor pays only for the rule it runs.

The two sentiment rules share no data: VADER's lexicon holds crowd-rated valences of 7,500 tokens of social media
text, Pattern's 2,900 senses of 1,500 words, mostly adjectives of product reviews, annotated by its authors. VADER adds
valences up and Pattern averages them, so "great great great" raises the one and not the other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from actors.imports import lean_imports
from preference.types import Prompt

NEEDS_DOWNLOAD = frozenset({"length_constraints:number_sentences", "change_case:capital_word_frequency"})
"""IFEval checkers that load NLTK's punkt tokenizer at run time; refused, as nothing is downloaded at run time."""


def vader_sentiment(prompt: Prompt, responses: Sequence[str]) -> Sequence[float]:
    """VADER's compound score of each response, in [-1, 1]; text without any rated word (an empty one too) scores 0.

    Source: Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text",
    ICWSM 2014. The score saturates: some six strongly positive words are within 0.03 of the maximum.
    """
    return _scores(_vader(), "VADER", responses)


def pattern_sentiment(prompt: Prompt, responses: Sequence[str]) -> Sequence[float]:
    """Polarity by Pattern's subjectivity lexicon (shipped in TextBlob), in [-1, 1]; no rated word scores 0.

    The mean over rated words and phrases after negation and intensifiers, so repeating praise does not raise it.
    Source: De Smedt and Daelemans, "Pattern for Python", JMLR 13, 2012.
    """
    return _scores(_pattern(), "Pattern", responses)


def verifiable(prompt: Prompt, responses: Sequence[str]) -> Sequence[float]:
    """Share of the prompt's constraints that each response satisfies as written, in [0, 1]; an empty one scores 0.

    The constraints are ``instruction_id_list`` and ``kwargs`` of ``prompt.meta`` (IFEval's names, arXiv 2311.07911).
    The two case checkers also ask langdetect whether the text is English, which is a guess for a handful of words.
    Raises ValueError on missing, unknown or incompletely specified constraints.
    """
    return [strict for strict, _ in _shares(prompt, responses)]


def verifiable_loose(prompt: Prompt, responses: Sequence[str]) -> Sequence[float]:
    """As ``verifiable``, but a constraint also counts where it holds without the first or last line or asterisks."""
    return [loose for _, loose in _shares(prompt, responses)]


def _scores(score: Callable[[str], float], rule: str, responses: Sequence[str]) -> list[float]:
    values = []
    for response in responses:
        if not isinstance(response, str):  # Pattern would score anything else 0
            raise TypeError(f"{rule} rates text, not {type(response).__name__}")
        value = score(response)
        if not math.isfinite(value):
            raise ValueError(f"{rule} gave {value} for {response[:80]!r}")
        values.append(value)
    return values


@lru_cache(maxsize=1)
def _vader() -> Callable[[str], float]:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    return lambda text: float(analyzer.polarity_scores(text)["compound"])


@lru_cache(maxsize=1)
def _pattern() -> Callable[[str], float]:
    with lean_imports():
        from textblob.en.sentiments import PatternAnalyzer

    analyzer = PatternAnalyzer()
    return lambda text: float(analyzer.analyze(text).polarity)


Constraint = tuple[str, Mapping[str, Any]]
"""An IFEval instruction id and the arguments of its checker."""


def _shares(prompt: Prompt, responses: Sequence[str]) -> list[tuple[float, float]]:
    """(strict, loose) share of satisfied constraints per response."""
    ids, kwargs = zip(*_constraints(prompt.meta), strict=True)
    evaluate, registry = _ifeval()
    shares = []
    for response in responses:
        _, scores = evaluate(response, list(ids), [dict(k) for k in kwargs], prompt.text, registry)
        shares.append((float(scores.partial_strict), float(scores.partial_loose)))
    return shares


@lru_cache(maxsize=1)
def _ifeval() -> tuple[Callable[..., Any], Mapping[str, Any]]:
    # The evaluation function and not the package's API, whose dispatch offers IFBench: importing that downloads data.
    import langdetect  # type: ignore[import-untyped]
    from if_verifiable.common import evaluate_instructions
    from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT

    # langdetect samples features at random; unseeded, the case checkers flip on the same text between calls.
    langdetect.DetectorFactory.seed = 0
    return evaluate_instructions, INSTRUCTION_DICT


@lru_cache(maxsize=4096)
def _constraints(meta: str) -> tuple[Constraint, ...]:
    """The constraints of a prompt's meta; refuses what the package would skip in silence or fill in at random."""
    fields = json.loads(meta)
    if not isinstance(fields, dict):
        raise ValueError(f"prompt meta must be a JSON object, not {meta[:80]!r}")
    ids, kwargs = fields.get("instruction_id_list"), fields.get("kwargs")
    if not isinstance(ids, list) or not ids or not isinstance(kwargs, list) or len(ids) != len(kwargs):
        raise ValueError(
            "a verifiable prompt needs instruction_id_list and kwargs, two non-empty lists of one length, "
            f"in its JSONL line; got {meta[:200]!r}"
        )
    _, registry = _ifeval()
    constraints = []
    for instruction_id, arguments in zip(ids, kwargs, strict=True):
        if instruction_id in NEEDS_DOWNLOAD:
            raise ValueError(f"constraint {instruction_id!r} needs NLTK data that is not shipped: use another one")
        if instruction_id not in registry:
            raise ValueError(f"unknown constraint {instruction_id!r}; known: {', '.join(sorted(registry))}")
        given = {name: value for name, value in (arguments or {}).items() if value is not None}
        _check_arguments(instruction_id, registry[instruction_id](instruction_id), given)
        constraints.append((instruction_id, given))
    return tuple(constraints)


def _check_arguments(instruction_id: str, checker: Any, given: Mapping[str, Any]) -> None:
    """Raise unless the checker tests exactly ``given``: it draws a random value for a missing or invalid argument."""
    try:
        checker.build_description(**given)
    except TypeError as error:
        raise ValueError(f"constraint {instruction_id!r}: {error}") from error
    for name, used in (checker.get_instruction_args() or {}).items():
        if name not in given:
            raise ValueError(f"constraint {instruction_id!r} lacks its argument {name!r}")
        if _canonical(used) != _canonical(given[name]):
            raise ValueError(f"constraint {instruction_id!r} has an invalid {name!r}: {given[name]!r}")


def _canonical(value: Any) -> Any:
    """Checkers strip and lower-case strings and sort lists; neither changes what is tested."""
    if isinstance(value, str):
        return value.strip().lower()
    return sorted(map(_canonical, value)) if isinstance(value, list | tuple) else value
