"""Peak memory of a trainer's step against the size of the vocabulary: 32k and 262k, parameters and states taken off.

One process, a small Llama in fp32 and bf16 with AdamW, the packed path with chunked projection. From the peak of a step
are taken off: what is resident before it (parameters, optimizer states) and the gradients. A chunk is
``batching.logprob_chunk`` rows of fp32 logits over the larger vocabulary.
"""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks import peak
from benchmarks.common import ROOT, save, spread

VOCABULARIES, CHUNK, REPETITIONS = (32_000, 262_144), 128, 3
PAIRS, PROMPT, RESPONSE = 4, 120, 200


def measure(vocabulary: int, dtype: str, tied: bool) -> float:
    """MB of a step's peak above parameters, optimizer states and gradients."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from preference.batching import Example, pack
    from preference.logprobs import LogProbModel, model_inputs

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=vocabulary, tie_word_embeddings=tied,
    )  # fmt: skip
    model = LogProbModel(AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)), CHUNK)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    ids = torch.randint(0, vocabulary, (PAIRS, PROMPT + 2 * RESPONSE)).tolist()
    examples = [Example(tuple(x[:PROMPT]), (tuple(x[PROMPT:-RESPONSE]), tuple(x[-RESPONSE:]))) for x in ids]
    inputs = model_inputs(pack(examples), "cpu")
    above = 0.0
    for _ in range(3):
        before = peak.resident()
        peak.reset()
        model(**inputs)[0].mean().backward()
        above = peak.megabytes() - before
        gradients = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6
        optimizer.step()
        optimizer.zero_grad()
    return above - gradients


def main() -> None:
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(REPETITIONS):
        for dtype in ("float32", "bfloat16"):
            for tied in (False, True):
                for vocabulary in VOCABULARIES:
                    words = [sys.executable, "-m", "benchmarks.vocabulary", str(vocabulary), dtype, str(int(tied))]
                    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
                    name = f"{dtype}{' tied' if tied else ''}"
                    found.setdefault(name, {}).setdefault(str(vocabulary), []).append(json.loads(done.stdout))
    chunk = CHUNK * VOCABULARIES[1] * 4 / 1e6
    result = {"chunk_mb": round(chunk, 1), "tokens": PAIRS * (PROMPT + 2 * RESPONSE - 2)}
    for name, by_size in found.items():
        small, large = (sorted(by_size[str(v)])[REPETITIONS // 2] for v in VOCABULARIES)
        result[name] = {
            **{f"{v}_mb": spread(by_size[str(v)]) for v in VOCABULARIES},
            "difference_mb": round(large - small, 1),
            "difference_in_chunks": round((large - small) / chunk, 2),
        }
    save("vocabulary", result)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]), sys.argv[2], sys.argv[3] == "1")))
    else:
        main()
