"""The engine contract, on real vLLM in Ray actors: seeds, questions, abort, and above all weights that arrive."""

import pytest
import torch
from safetensors.torch import load_file

from actors.weights import WeightFiles, WeightsError, WeightWriter
from pipelines.export import export_weights
from preference.types import Version
from tests.tiny import tiny_model


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def case(request, engines, tmp_path_factory):
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
    get, engine, fresh = engines
    get([engine.start.remote(str(a)), fresh.start.remote(str(b))])
    return get, engine, fresh, directory


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
    # Questions run beside them and change nothing of them; their log-probs are of the whole vocabulary.
    sampled, chosen, firsts = get(engine.mixed.remote("m"))
    assert [s.token_ids for s in sampled] == [s.token_ids for s in get(engine.answers.remote(1.0, "n"))]
    for answer, first in zip(chosen, firsts, strict=True):
        assert answer.logprobs[0] == pytest.approx(first.logprobs, abs=1e-4)
        assert max(answer.logprobs[1]) <= answer.logprobs[0][0]  # the first token was the likeliest
        assert 0 < sum(answer.probabilities) < 1
        assert answer.version == Version(0, 0)
    undecided = get(engine.choices.remote("o"))
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
    asked, expected = get(engine.choices.remote("p")), get(fresh.choices.remote("p"))
    assert {c.version for c in asked} == {Version(0, 1)}
    for new, other, old in zip(asked, expected, undecided, strict=True):
        assert new.probabilities == pytest.approx(other.probabilities, abs=1e-4)
        assert new.probabilities != pytest.approx(old.probabilities, abs=1e-4)
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
