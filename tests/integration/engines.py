"""vLLM in an actor of its own, driven synchronously."""

import gc
from pathlib import Path

import pytest

from actors.engine import InProcessEngine
from actors.requests import ChoiceRequest, SampleRequest
from actors.weights import WeightFiles, WeightsError
from configs.schema import Model, Sampling

SAMPLING = Sampling(max_model_len=128, max_tokens=16, kv_cache_gb=0.1)
PROMPTS = [tuple(range(5 + i, 25 + i)) for i in range(4)]


class EngineActor:
    """Rondo's engine after ``start``; ``plain`` is vLLM without anything of Rondo."""

    engine: InProcessEngine | None = None

    def start(self, model: str) -> None:
        self.engine = None
        gc.collect()  # an engine that is collected later takes the process groups of its successor with it
        self.engine = InProcessEngine(Model(path=model, dtype="float32"), SAMPLING, seed=0, on_gpu=False)

    def answers(self, temperature, tag, count=None):
        prompts = PROMPTS[:count]
        requests = [SampleRequest(f"{tag}{i}", p, 16, temperature, 1.0, 7 + i) for i, p in enumerate(prompts)]
        self.engine.submit(requests)
        return self._all(requests)

    def mixed(self, tag):
        """(answers as ``answers`` gives them, what the engine says to questions beside them, its own first tokens)."""
        firsts = [SampleRequest(f"{tag}f{i}", p, 1, 0.0, 1.0, 0) for i, p in enumerate(PROMPTS)]
        self.engine.submit(firsts)
        first = self._all(firsts)
        # The engine's own choice with others, and options of unlike size.
        questions = [
            ChoiceRequest(f"{tag}q{i}", p, ((own.token_ids[0],), tuple({40, 41, 42} - set(own.token_ids))))
            for i, (p, own) in enumerate(zip(PROMPTS, first, strict=True))
        ]
        sampled = [SampleRequest(f"{tag}{i}", p, 16, 1.0, 1.0, 7 + i) for i, p in enumerate(PROMPTS)]
        self.engine.submit([sampled[0], *questions[:2], *sampled[1:], *questions[2:]])
        found = self._all([*sampled, *questions])
        return found[: len(sampled)], found[len(sampled) :], first

    def choices(self, tag):
        """A question with fixed options about every prompt."""
        questions = [ChoiceRequest(f"{tag}{i}", p, ((40, 41), (42,), (43, 44, 45))) for i, p in enumerate(PROMPTS)]
        self.engine.submit(questions)
        return self._all(questions)

    def _all(self, requests):
        found = {}
        while len(found) < len(requests):
            found |= {f.request_id: f for f in self.engine.poll(1.0)}
        return [found[r.id] for r in requests]

    def load(self, directory):
        self.engine.load_weights(WeightFiles.open(Path(directory)))
        return self.engine.health().version

    def abort_one(self):
        requests = [SampleRequest(f"x{i}", PROMPTS[i], 100, 1.0, 1.0, i) for i in range(2)]
        self.engine.submit(requests)
        self.engine.poll(0.0)
        self.engine.abort(["x0"])
        found = []
        while not found:
            found = self.engine.poll(1.0)
        return [s.request_id for s in found], self.engine.health().running

    def bad_weights(self, directory):
        with pytest.raises(WeightsError):
            self.engine.load_weights(WeightFiles.open(Path(directory)))
        return self.engine.health().version

    def plain(self, model, prompt):
        from vllm import LLM, SamplingParams

        llm = LLM(model, dtype="float32", enforce_eager=True, max_model_len=128, kv_cache_memory_bytes=2**26)
        params = SamplingParams(max_tokens=8, temperature=0)
        result = llm.generate({"prompt_token_ids": prompt}, params, use_tqdm=False)
        return list(result[0].outputs[0].token_ids)
