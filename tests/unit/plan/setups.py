"""Models, runs and clusters for the planner's tests."""

import json

from configs.loading import validate
from configs.runs import RunConfig
from pipelines.plan.architecture import architecture
from pipelines.plan.cluster import Cluster
from pipelines.plan.layout import Planner
from pipelines.plan.pipeline import Pipeline
from pipelines.plan.times import Decode
from pipelines.plan.weights import WeightPath
from pipelines.plan.workload import Lengths, workload
from preference.admission import AdmissionRules

LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_70B = LLAMA_8B | {
    "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
}  # fmt: skip


def run_config(directory="/m", **sections):
    raw = {
        "run": {"name": "planned", "root": "/tmp"},
        "model": {"path": str(directory)},
        "prompts": {"train": "/t", "heldout": "/h", "max_tokens": 512},
        "sampling": {"prompts_per_step": 256, "candidates": 4, "max_tokens": 1024, "max_model_len": 2048},
        "batching": {"micro_batch_tokens": 4096, "activation_checkpointing": True},
        "judge": {"kind": "rule", "rule": "a:b"},
    }
    return validate(RunConfig, raw | sections)


def cluster(nodes=2, gpu="H100-SXM", **more):
    pool = {"nodes": nodes, "gpus": 8, "gpu": gpu, "network_gbit_s": 3200, "price_per_hour": 30.0}
    return Cluster.model_validate({"pools": [pool | more.pop("pool", {})], **more})


def planner(model=LLAMA_8B, config=None, spec=None):
    config, spec = config or run_config(), spec or cluster()
    return Planner(architecture(model), config, spec, workload(config, spec))


def model_directory(directory, model=LLAMA_8B):
    (directory / "config.json").write_text(json.dumps(model))
    return directory


AT_ONCE = WeightPath("shm", 0.0, 0.0, 0.0, 1, 0.0)


def paced(sample=1.0, judge=0.0, reference=0.0, train=1.0, staleness=1, steps=40, publish=0.0, batch=1, **more):
    """Single servers that take whole steps: what a tandem queue's closed forms are about."""
    values = {
        "rules": AdmissionRules(batch, staleness, steps=steps), "engines": 1, "token_s": Decode(0, 0, 0, sample),
        "slots": 1.0, "prefill_s": 0.0, "candidates": 1, "lengths": Lengths(1.0, 0.0, 1), "judges": 1,
        "judge_s": judge, "references": 1, "reference_s": reference, "driver_s": 0.0, "train_s": train,
        "path": WeightPath("shm", publish, 0.0, 0.0, 1, 0.0),
    }  # fmt: skip
    return Pipeline(**(values | more))
