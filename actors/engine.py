"""A vLLM engine behind five verbs: submit, poll, abort, load weights, health.

``InProcessEngine`` steps ``LLMEngine`` inside the calling process: on CPU that is faster and leaner than vLLM's own
engine processes, and it allows streaming, aborting and loading between steps, none of which a blocking ``generate``
does. Only this file imports vllm.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from actors.imports import lean_imports
from actors.requests import ChoiceRequest, Chosen, Finished, Health, Request, Sampled, SampleRequest
from actors.weights import WeightFiles
from configs.schema import Model, Sampling
from preference.types import FinishReason, Version


class Engine(Protocol):
    """What a sampler needs of an inference engine; ``tests/integration/test_engine.py`` holds every one to it."""

    def submit(self, requests: Sequence[Request]) -> None:
        """Responses to sample and questions to answer, in any mixture: they run side by side."""
        ...

    def poll(self, seconds: float) -> list[Finished]:
        """Work for ``seconds`` or until nothing is left to do; return what finished."""
        ...

    def abort(self, request_ids: Sequence[str]) -> None: ...

    def load_weights(self, weights: WeightFiles) -> None:
        """Serve ``weights`` from the next token on. Cached prefixes of older weights are forgotten."""
        ...

    def health(self) -> Health: ...


@dataclass(frozen=True, slots=True)
class _Running:
    request: Request
    began: Version  # weights of its first token


class InProcessEngine:
    """Of ``sampling`` it takes the context length and the memory."""

    def __init__(self, model: Model, sampling: Sampling, seed: int, *, on_gpu: bool, seeded: bool = True) -> None:
        """``seeded``: requests that sample have seeds of their own. Raises ValueError on what vLLM cannot serve."""
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        with lean_imports():
            from vllm import EngineArgs, LLMEngine

        args = EngineArgs(
            model=model.path,
            dtype=model.dtype,
            max_model_len=sampling.max_model_len,
            seed=seed,
            # Compiling costs a minute on CPU for 3-10%; GPUs have CUDA graphs to gain.
            enforce_eager=not on_gpu,
            # Log-probs before temperature and top-p: those of the policy that is trained.
            logprobs_mode="raw_logprobs",
            enable_prefix_caching=True,
            gpu_memory_utilization=sampling.gpu_memory_utilization,
            # On CPU a fixed cache: a share of the machine's memory is not the engine's to take.
            kv_cache_memory_bytes=None if on_gpu else int(sampling.kv_cache_gb * 2**30),
            disable_log_stats=True,
            trust_remote_code=False,
            # The model's own generation defaults (top_k, repetition penalty) must not shape the policy.
            generation_config="vllm",
            # A partly prefilled request with its own seed asks a CPU generator for an offset, which it has not.
            enable_chunked_prefill=on_gpu or not seeded,
        )
        self._engine = LLMEngine.from_engine_args(args)
        self._on_gpu = on_gpu
        self._version = Version(0, 0)
        self._running: dict[str, _Running] = {}
        self._generated = 0
        self._load_seconds = 0.0

    def submit(self, requests: Sequence[Request]) -> None:
        for r in requests:
            params = _sampling(r) if isinstance(r, SampleRequest) else _choosing(r)
            self._engine.add_request(r.id, {"prompt_token_ids": list(r.prompt_ids)}, params)
            self._running[r.id] = _Running(r, self._version)

    def poll(self, seconds: float) -> list[Finished]:
        deadline = time.monotonic() + seconds
        finished: list[Finished] = []
        while self._engine.has_unfinished_requests() and time.monotonic() < deadline:
            finished += [self._finished(out) for out in self._engine.step() if out.finished]
        return finished

    def _finished(self, out: Any) -> Finished:
        running, completion = self._running.pop(out.request_id), out.outputs[0]
        self._generated += len(completion.token_ids)
        if isinstance(running.request, ChoiceRequest):
            [step] = completion.logprobs
            found = tuple(tuple(step[i].logprob for i in option) for option in running.request.options)
            return Chosen(out.request_id, found, self._version)
        ids = tuple(completion.token_ids)
        logprobs = tuple(step[token].logprob for step, token in zip(completion.logprobs, ids, strict=True))
        reason = FinishReason.STOP if completion.finish_reason == "stop" else FinishReason.LENGTH
        return Sampled(out.request_id, ids, logprobs, completion.text, reason, running.began, self._version)

    def abort(self, request_ids: Sequence[str]) -> None:
        self._engine.abort_request(list(request_ids))
        for request_id in request_ids:
            self._running.pop(request_id, None)

    def load_weights(self, weights: WeightFiles) -> None:
        started = time.monotonic()
        self._engine.collective_rpc(_reload, args=(str(weights.directory), not self._on_gpu))
        # A prefix computed by older weights must never serve a newer version.
        if not self._engine.reset_prefix_cache(reset_running_requests=True):
            raise RuntimeError(f"vLLM refused to forget its prefix cache before serving weights {weights.version}")
        self._version = weights.version
        self._engine.set_weight_version(str(weights.version))
        self._load_seconds = time.monotonic() - started

    def health(self) -> Health:
        return Health(self._version, len(self._running), self._generated, self._load_seconds)


def _sampling(r: SampleRequest) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=r.max_tokens,
        temperature=r.temperature,
        top_p=r.top_p,
        seed=r.seed,
        stop=[r.stop] if r.stop else None,
        logprobs=0,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _choosing(r: ChoiceRequest) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    ids = [i for option in r.options for i in option]
    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        allowed_token_ids=ids,
        logprob_token_ids=ids,  # with raw_logprobs: of the whole vocabulary, before the constraint
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _reload(worker: Any, directory: str, on_cpu: bool) -> None:
    """Runs inside vLLM's worker: layerwise reload from published files.

    Plain ``model.load_weights`` asserts on CPU (its packed Linear layers hold no weight any more), so the layerwise
    path it is. On CPU that path leaves the packed copy of a *tied* output projection stale: pack it anew.
    """
    runner = worker.model_runner
    model = runner.get_model()
    tied = bool(getattr(runner.model_config.hf_text_config, "tie_word_embeddings", False))
    files = WeightFiles.open(Path(directory))
    runner.reload_weights(
        weights_iterator=((name, tensor) for name, tensor in files if not (tied and name == "lm_head.weight"))
    )
    head = getattr(model, "lm_head", None)
    if on_cpu and tied and head is not None:
        head.quant_method.process_weights_after_loading(head)
