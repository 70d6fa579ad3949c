"""The engine contract, on real vLLM in Ray actors: streaming, seeds, abort, and above all weights that arrive."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from actors.engine import InProcessEngine
from actors.requests import SampleRequest
from actors.weights import WeightFiles, WeightsError, WeightWriter
from configs.schema import Model, Sampling
from pipelines.export import export_weights
from preference.types import Version
from tests.tiny import tiny_model

SAMPLING = Sampling(max_model_len=128, max_tokens=16, kv_cache_gb=0.1)
PROMPTS = [tuple(range(5 + i, 25 + i)) for i in range(4)]


class Bench:
    """A real engine in an actor of its own, driven synchronously."""

    def __init__(self, model: str) -> None:
        self.engine = InProcessEngine(Model(path=model, dtype="float32"), SAMPLING, seed=0, on_gpu=False)

    def answers(self, temperature, tag, count=None):
        prompts = PROMPTS[:count]
        self.engine.submit([SampleRequest(f"{tag}{i}", p, 16, temperature, 1.0, 7 + i) for i, p in enumerate(prompts)])
        found = {}
        while len(found) < len(prompts):
            found |= {s.request_id: s for s in self.engine.poll(1.0)}
        return [found[f"{tag}{i}"] for i in range(len(prompts))]

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


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def case(request, ray_here, tmp_path_factory):
    """A running engine on model A, and model B: the same architecture, other weights, published and exported."""
    directory = tmp_path_factory.mktemp("engine")
    a = tiny_model(directory / "a", seed=1, tied=request.param)
    other = load_file(tiny_model(directory / "other", seed=2, tied=request.param) / "model.safetensors")
    writer = WeightWriter(directory / "published", Version(0, 1))
    names = list(other)
    for start in range(0, len(names), 5):  # several buckets
        writer.add({n: other[n] for n in names[start : start + 5]})
    writer.finish()
    b = export_weights(WeightFiles.open(directory / "published"), a, directory / "b")
    env = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    remote = ray_here.remote(num_cpus=0.25, runtime_env={"env_vars": env})(Bench)
    engine, fresh = remote.remote(str(a)), remote.remote(str(b))
    yield lambda ref: ray_here.get(ref, timeout=120), engine, fresh, directory
    ray_here.kill(engine)
    ray_here.kill(fresh)


def close(a, b):
    return a.token_ids == b.token_ids and torch.allclose(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-4)


def test_contract(case):
    get, engine, fresh, directory = case
    before = get(engine.answers.remote(0.0, "a"))
    assert all(len(s.token_ids) == len(s.logprobs) for s in before)
    assert {s.version_min for s in before} == {Version(0, 0)}
    # Same seeds, same answers; log-probs are those of the untempered policy whatever the temperature.
    assert [s.token_ids for s in get(engine.answers.remote(1.0, "b"))] == [
        s.token_ids for s in get(engine.answers.remote(1.0, "c"))
    ]
    # Half-published weights are refused and change nothing.
    partial = directory / "partial"
    WeightWriter(partial, Version(0, 9))
    assert get(engine.bad_weights.remote(str(partial))) == Version(0, 0)
    # New weights: prompts served before answer exactly as a fresh engine on the export does.
    assert get(engine.load.remote(str(directory / "published"))) == Version(0, 1)
    after, expected = get(engine.answers.remote(0.0, "d")), get(fresh.answers.remote(0.0, "d"))
    assert all(close(x, y) for x, y in zip(after, expected, strict=True))
    assert not all(close(x, y) for x, y in zip(after, before, strict=True))
    assert {s.version_max for s in after} == {Version(0, 1)}
    # Abort in flight.
    finished, running = get(engine.abort_one.remote())
    assert finished == ["x1"]
    assert running == 0


def test_damaged_bucket_is_found(case):
    _, _, _, directory = case
    bucket = next((directory / "published").glob("bucket-00001*"))
    data = bytearray(bucket.read_bytes())
    data[-1] ^= 1
    bucket.write_bytes(data)
    with pytest.raises(WeightsError, match="checksum mismatch"):
        list(WeightFiles.open(directory / "published"))
