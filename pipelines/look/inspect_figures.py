"""Figures of a diagnosis of preference data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pipelines.look.figures import finish, new_figure
from preference.diagnostics import Diagnosis

BINS = 30
POINTS = 5000  # most points of a scatter plot


def figures(d: Diagnosis) -> dict[str, Any]:
    """matplotlib figures by file stem; those that there is no data for are left out."""
    drawn = {"lengths": _lengths(d), "margins": _margins(d), "scores": _scores(d), "coverage": _coverage(d)}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _lengths(d: Diagnosis) -> Any:
    """Chosen minus rejected length: weight on the right of zero is length bias."""
    differences = [p.chosen.length - p.rejected.length for p in d.corpus.pairs if not p.tied]
    if not differences:
        return None
    figure, axes = new_figure()
    axes.hist(differences, bins=BINS, color="C0")
    axes.axvline(0, color="0.3", lw=1)
    axes.axvline(float(np.mean(differences)), color="C3", ls="--", label=f"mean {np.mean(differences):+.1f}")
    return finish(figure, axes, f"length of chosen minus rejected, {d.corpus.unit}", "pairs", "Length bias")


def _margins(d: Diagnosis) -> Any:
    if not d.margins or d.margins[0] == d.margins[-1]:
        return None
    figure, axes = new_figure()
    axes.hist(d.margins, bins=BINS, color="C2")
    return finish(figure, axes, "margin of chosen over rejected, judge's units", "pairs", "Margins")


def _scores(d: Diagnosis) -> Any:
    answers = [a for a in d.corpus.answers if not math.isnan(a.score)]
    if not answers:
        return None
    shown = answers[:: -(-len(answers) // POINTS)]
    figure, axes = new_figure()
    axes.scatter([a.length for a in shown], [a.score for a in shown], s=8, alpha=0.4, color="C1", edgecolors="none")
    title = f"Score and length (within prompts: correlation {d.length.correlation:+.2f})"
    return finish(figure, axes, f"length, {d.corpus.unit}", "judge's score", title)


def _coverage(d: Diagnosis) -> Any:
    """What became of everything: fates of prompts, or of a file's records."""
    fates = sorted(d.corpus.fates.items(), key=lambda f: f[1])
    if len(fates) < 2:  # all of one colour
        return None
    figure, axes = new_figure()
    axes.barh([name.replace("_", " ") for name, _ in fates], [n for _, n in fates], color="C4")
    return finish(figure, axes, d.corpus.counted, "", f"What became of {d.corpus.counted}")
