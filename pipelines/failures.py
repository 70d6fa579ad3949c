"""Which errors are messages to the person at the keyboard, and which are bugs that keep their traceback."""

from __future__ import annotations


def is_expected(error: Exception) -> bool:
    """True for errors whose message names the cause and the fix."""
    from actors.faults import StageFailed
    from actors.judges.errors import JudgeError
    from actors.stream import TrainerFailed
    from actors.weights import WeightsError
    from configs.loading import ConfigError
    from pipelines.annotate.items import AnnotationError
    from pipelines.data import DataError
    from pipelines.doctor import UnfitError
    from pipelines.export import ExportError
    from pipelines.ledger.ledger import LedgerError
    from pipelines.online import JudgeUnreliable
    from pipelines.plan.architecture import PlanError
    from pipelines.prompts import PromptError
    from pipelines.submit import SubmitError
    from pipelines.tracking import TrackingError
    from preference.admission_rules import AdmissionError

    return isinstance(
        error,
        (
            AdmissionError,
            AnnotationError,
            ConfigError,
            DataError,
            ExportError,
            JudgeError,
            JudgeUnreliable,
            LedgerError,
            PlanError,
            PromptError,
            StageFailed,
            SubmitError,
            TrackingError,
            TrainerFailed,
            UnfitError,
            WeightsError,
        ),
    )
