"""vLLM as a judge: many questions in one batch, one constrained token each, its probabilities before the constraint.

The engine is stepped inside the calling process and stays in the thread that built it, as ``actors.engine`` explains.
"""

from __future__ import annotations

from collections.abc import Sequence

from actors.engine import InProcessEngine
from actors.imports import lean_imports
from actors.judges.asking import Asking, Asks, answered
from actors.judges.errors import JudgeError
from actors.judges.questions import Question
from actors.judges.replies import Reply
from actors.requests import Finished, Request
from configs.judges import LlmJudge
from configs.schema import Model, Sampling

_WHILE = 3600.0  # seconds of one poll; it ends as soon as everything is answered


class VerdictEngine:
    """``model`` is the judge's model directory. Raises JudgeError where it cannot answer what ``asks`` asks."""

    def __init__(self, judge: LlmJudge, model: str, asks: Asks, *, on_gpu: bool) -> None:
        # Before the engine is built: a judge that cannot answer is refused in a second.
        with lean_imports():
            self._asking = Asking(asks, model, judge.max_model_len, "judge.max_model_len")
        limits = Sampling(
            max_model_len=judge.max_model_len,
            kv_cache_gb=judge.kv_cache_gb,
            gpu_memory_utilization=judge.gpu_memory_utilization,
        )
        try:
            self._engine = InProcessEngine(
                Model(path=model, dtype=judge.dtype), limits, seed=0, on_gpu=on_gpu, seeded=False
            )
        except ValueError as error:  # a context longer than the model's, say
            raise JudgeError(f"judge.model {model} cannot be served as configured: {error}") from error

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """One reply a question, in order; all are in the engine at once."""
        return answered(self._asking.put(questions), self._answer)

    def _answer(self, requests: Sequence[Request]) -> list[Finished]:
        self._engine.submit(requests)
        found: dict[str, Finished] = {}
        while len(found) < len(requests):
            found.update((f.request_id, f) for f in self._engine.poll(_WHILE))
        return [found[r.id] for r in requests]
