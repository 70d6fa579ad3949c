"""Why a judge stops the run. What went wrong with one question is a ``JudgeFailure`` instead, counted and survived."""

from __future__ import annotations


class JudgeError(Exception):
    """The judge cannot work as configured; the message names the field, the value and the fix."""


class JudgeUnauthorised(JudgeError):
    """The endpoint refuses the key, the account or the model: no question can succeed."""


class BudgetExhausted(JudgeError):
    """The next question might cost more than is left of ``judge.budget``; what is judged so far stays."""
