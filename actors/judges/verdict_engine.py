"""vLLM as a judge: many questions in one batch, one constrained token each, its probabilities before the constraint.

The engine is stepped inside the calling process and stays in the thread that built it, as ``actors.engine`` explains.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from actors.imports import lean_imports
from actors.judges.encoding import QuestionEncoder, VerdictRequest
from actors.judges.errors import JudgeError
from actors.judges.questions import Piece, Question
from actors.judges.replies import Answered, Reply, Unanswered
from actors.judges.template import Rationale
from configs.judges import LlmJudge


@dataclass(frozen=True, slots=True)
class Asks:
    """What an engine has to know of a questionnaire."""

    labels: tuple[str, ...]
    rationale: Rationale | None
    probe: Question


class VerdictEngine:
    """``model`` is the judge's model directory. Raises JudgeError where it cannot answer what ``asks`` asks."""

    def __init__(self, judge: LlmJudge, model: str, asks: Asks, *, on_gpu: bool) -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        with lean_imports():
            from transformers import AutoTokenizer
            from vllm import EngineArgs, LLMEngine

        # Before the engine is built: a judge that cannot answer is refused in a second.
        try:
            tokenizer = AutoTokenizer.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise JudgeError(f"judge.model {model} cannot be loaded: {error}") from error
        self._encoder = QuestionEncoder(tokenizer, asks.labels, model)
        self._encoder.encode(asks.probe)
        self._rationale, self._longest = asks.rationale, judge.max_model_len
        args = EngineArgs(
            model=model,
            dtype=judge.dtype,
            max_model_len=judge.max_model_len,
            seed=0,
            enforce_eager=not on_gpu,
            logprobs_mode="raw_logprobs",  # before the constraint to verdict tokens
            enable_prefix_caching=True,
            gpu_memory_utilization=judge.gpu_memory_utilization,
            kv_cache_memory_bytes=None if on_gpu else int(judge.kv_cache_gb * 2**30),
            disable_log_stats=True,
            trust_remote_code=False,
            generation_config="vllm",
        )
        try:
            self._engine = LLMEngine.from_engine_args(args)
        except ValueError as error:  # a context longer than the model's, say
            raise JudgeError(f"judge.model {model} cannot be served as configured: {error}") from error
        self._names = (f"q{number}" for number in count())

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """One reply a question, in order; all are in the engine at once."""
        started = time.monotonic()
        rationales = self._rationales(questions) if self._rationale else [""] * len(questions)
        replies: dict[int, Reply] = {}
        requests: dict[str, VerdictRequest] = {}
        positions: dict[str, int] = {}
        for position, (question, rationale) in enumerate(zip(questions, rationales, strict=True)):
            prompt = self._encode(question, self._begin(rationale))
            if isinstance(prompt, Unanswered):
                replies[position] = prompt
                continue
            request = VerdictRequest(next(self._names), prompt, self._encoder.verdict_ids)
            requests[request.id], positions[request.id] = request, position
            self._engine.add_request(request.id, {"prompt_token_ids": list(prompt)}, verdict_params(request))
        for output in self._finished():
            position = positions[output.request_id]
            answers = answer_probabilities(requests[output.request_id], output.outputs[0].logprobs[0])
            replies[position] = Answered(answers, rationales[position], seconds=time.monotonic() - started)
        return [replies[position] for position in range(len(questions))]

    def _rationales(self, questions: Sequence[Question]) -> list[str]:
        """What the model says before its verdict; empty where the question is too long, which the verdict reports."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        assert self._rationale is not None
        params = SamplingParams(
            max_tokens=self._rationale.max_tokens,
            temperature=0.0,
            stop=[self._rationale.ends_with],
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        said = [""] * len(questions)
        positions = {}
        for position, question in enumerate(questions):
            prompt = self._encode(question, ())
            if not isinstance(prompt, Unanswered):
                positions[name := next(self._names)] = position
                self._engine.add_request(name, {"prompt_token_ids": list(prompt)}, params)
        for output in self._finished():
            said[positions[output.request_id]] = output.outputs[0].text.strip()
        return said

    def _begin(self, rationale: str) -> tuple[Piece, ...]:
        """What stands in the model's turn before the verdict."""
        if self._rationale is None:
            return ()
        return Piece(rationale, True), Piece(f"\n{self._rationale.ends_with}", False)

    def _encode(self, question: Question, begin: Sequence[Piece]) -> tuple[int, ...] | Unanswered:
        try:
            prompt = self._encoder.encode(question, begin)
        except ValueError as error:
            return Unanswered(str(error))
        # The verdict takes a token, and what comes before it if there is still something to come.
        extra = 1 if begin or self._rationale is None else self._rationale.max_tokens + 8
        if len(prompt) + extra > self._longest:
            return Unanswered(
                f"the question has {len(prompt)} tokens and {extra} are needed to answer it, judge.max_model_len is "
                f"{self._longest}: raise it, or shorten guidelines or responses"
            )
        return prompt

    def _finished(self) -> list[Any]:
        outputs = []
        while self._engine.has_unfinished_requests():
            outputs += [output for output in self._engine.step() if output.finished]
        return outputs


def verdict_params(request: VerdictRequest) -> Any:
    """vLLM's parameters of a verdict request, whatever engine it goes to (with ``logprobs_mode=raw_logprobs``)."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    ids = [i for label in request.verdict_ids for i in label]
    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        allowed_token_ids=ids,
        logprob_token_ids=ids,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def answer_probabilities(request: VerdictRequest, logprobs: Mapping[int, Any]) -> tuple[float, ...]:
    """P of each allowed answer from the log-probs at the verdict's position (``CompletionOutput.logprobs[0]``)."""
    return tuple(math.fsum(math.exp(logprobs[i].logprob) for i in ids) for ids in request.verdict_ids)
