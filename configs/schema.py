"""The sections of a configuration. ``configs.runs`` puts them together, ``configs.objectives`` makes ``objective:``.

A knob's meaning stands under it. Paths may start with ``~`` or use ``$VARIABLES``; relative input paths are
resolved against the folder of the YAML file; the run root must be absolute.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, PositiveFloat, PositiveInt, field_validator

from configs.judges import Judge
from configs.section import Section
from preference.strategies import Strategy


class RunDirectory(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """Name of the run and of its directory under ``root``; letters, digits, '.', '_' and '-'."""
    root: str = "~/.rondo/runs"
    """Absolute directory that holds run directories; every node must see it (a shared mount on a cluster)."""
    seed: int = 0
    """Seeds the order of the data, every candidate's sampling and the trainer."""
    min_free_disk_gb: Annotated[float, Field(ge=0)] = 3.0
    """Refuse to start with less free disk than this under ``root`` (checkpoint, export and MLflow's copy)."""


class Run(RunDirectory):
    steps: PositiveInt = 16
    """Optimizer steps; each consumes ``sampling.prompts_per_step`` prompts."""
    max_staleness: Annotated[int, Field(ge=0)] = 0
    """How many versions the sampling policy may be behind the trained one. 0 is synchronous on-policy."""


class LoRA(Section):
    rank: PositiveInt = 16
    """Rank of the adapters."""
    alpha: PositiveInt = 32
    """Adapters are scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapters' input; 0, because policy and reference must agree before the first step."""
    target: str | tuple[str, ...] = "all-linear"
    """Names of the modules that get adapters; ``all-linear``: every linear layer but the output projection."""


class Model(Section):
    path: str
    """Hugging Face model directory (safetensors, tokenizer, chat template)."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Compute type of sampler, reference and trainer alike; the trainer keeps fp32 master weights either way."""
    lora: LoRA | None = None
    """Train low-rank adapters (PEFT) instead of all parameters; what is published and exported is merged."""
    trust_remote_code: Literal[False] = False
    """Always off: code that a model directory ships is never run."""


class Prompts(Section):
    train: str
    """JSONL file of training prompts: ``{"id", "prompt"}`` or ``{"id", "messages"}``, other fields travel along."""
    heldout: str
    """JSONL file of held-out prompts for the win rate; ids and texts disjoint from ``train``."""
    max_tokens: PositiveInt = 512
    """Prompts longer than this under the chat template are too long."""
    too_long: Literal["skip", "stop"] = "skip"
    """What a too long prompt does: it is counted, listed and left out, or the run stops before any work."""


class Sampling(Section):
    prompts_per_step: PositiveInt = 16
    """Prompts sampled for one optimizer step."""
    candidates: PositiveInt = 4
    """Responses that the policy samples per prompt; without opponents two or more, since one makes no preference."""
    max_tokens: PositiveInt = 48
    """Longest response in tokens."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature. Kept log-probs are those of the untempered policy (vLLM logprobs_mode=raw_logprobs)."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus mass; 1.0 samples the whole distribution."""
    order: Literal["admitted", "in_time", "finished"] = "admitted"
    """Which prompts make a step. ``admitted``: those that began first, whatever their answers take, so that timing
    shapes nothing. ``in_time``: those that are ready first, as long as no other grows too old for it. ``finished``:
    those that are ready first; what grows older than ``run.max_staleness`` is dropped, counted and replaced."""
    spare: Annotated[int, Field(ge=0)] = 0
    """Prompts sampled beyond those that steps need, so that a step seldom waits for its longest responses; they feed
    later steps. Needs ``order: finished``."""
    missing_eos: Literal["allow", "penalise", "never_chosen", "drop"] = "allow"
    """Responses cut off without EOS: judged as they are, judged with a penalty, only ever rejected, or dropped."""
    missing_eos_penalty: Annotated[float, Field(ge=0)] = 1.0
    """Subtracted from the judge's score under ``missing_eos: penalise``, in the judge's units."""
    max_model_len: PositiveInt = 1024
    """Context length the engines allocate for; prompt and response must fit."""
    kv_cache_gb: PositiveFloat = 0.5
    """KV cache of one CPU engine in GiB; GPU engines take what ``gpu_memory_utilization`` leaves."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Share of a GPU's memory one GPU engine takes."""


class Pairing(Section):
    strategy: Strategy = "best_vs_worst"
    """What is made of a prompt's candidates. ``best_vs_worst``: one pair (max-min; West-of-N, 2401.12086, is the same).
    ``best_vs_mu_2sigma``: rejected is the one nearest to mean - 2 standard deviations (2502.16825). ``all_pairs``:
    every two that are no tie. ``rejection_sampling``: pairs among those that RSO accepts (2309.06657). ``labels``:
    each candidate is desirable or undesirable (for KTO and its like). ``versus``: a response of the policy with one of
    an opponent's, the clearest such pair. ``spin``: the data's response over a previous iterate's, or the policy's; no
    judge is asked (2401.01335)."""
    tournament: Literal["knockout", "round_robin"] = "knockout"
    """Which candidates a judge that compares sees: as few as decide the pair, or every two, scored by Bradley-Terry.
    Strategies that need every candidate's score play the round robin either way."""
    min_margin: Annotated[float, Field(ge=0)] = 0.0
    """Score differences (log-odds of a judge that compares) at or below this are ties."""
    ties: Literal["drop", "keep"] = "drop"
    """A tie trains nothing and is counted, or is kept as a pair for the objectives that know ties."""
    length_penalty: Annotated[float, Field(ge=0)] = 0.0
    """Subtracted from a candidate's score for each of its tokens, in the judge's units."""
    max_pairs: PositiveInt | None = None
    """Most pairs of one prompt, the clearest first; none: all (``rejection_sampling`` and ``versus``: one)."""
    rejection_beta: PositiveFloat = 0.5
    """Strength of the KL penalty whose optimal policy ``rejection_sampling`` draws from, in the judge's units: less is
    greedier."""
    threshold: FiniteFloat | Literal["mean"] = "mean"
    """What scores above are desirable under ``labels``: the mean over the prompt's candidates, or a fixed value."""
    neutral_band: Annotated[float, Field(ge=0)] = 0.0
    """Scores within this of the threshold get no label."""


class Reference(Section):
    refresh: Literal["fixed", "periodic"] = "fixed"
    """``fixed``: the model that training started from. ``periodic``: moved towards the policy (TR-DPO, 2404.09656)."""
    every: PositiveInt = 512
    """Steps between refreshes."""
    alpha: Annotated[float, Field(gt=0, le=1)] = 1.0
    """pi_ref <- alpha pi + (1 - alpha) pi_ref; 1 copies the policy (hard update), less is a moving average (soft)."""


class Optimizer(Section):
    lr: PositiveFloat = 5e-5
    """Peak learning rate of AdamW."""
    warmup_steps: Annotated[int, Field(ge=0)] = 3
    """Steps of linear warm-up from lr / warmup_steps."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After warm-up: hold, or decay to zero at the last step."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's moment decays."""
    max_grad_norm: PositiveFloat = 1.0
    """Clip the global gradient norm to this."""
    offload: Literal["none", "cpu", "nvme"] = "none"
    """Where optimizer states and fp32 master weights of a GPU trainer live."""
    offload_parameters: bool = False
    """Parameters, too, wait there until a layer needs them."""
    offload_path: str = ""
    """Local folder for ``offload: nvme``."""


class Batching(Section):
    micro_batch_tokens: PositiveInt = 2048
    """Most tokens (padding included) in one micro-batch of one worker, and in one call of a reference actor."""
    logprob_chunk: PositiveInt = 128
    """Completion positions projected onto the vocabulary at a time; bounds the memory of logits."""
    activation_checkpointing: bool = False
    """Recompute activations in backward: less memory, a third more compute."""


class Group(Section):
    """One stage's actors and what each of them takes from the cluster."""

    actors: PositiveInt = 1
    """How many actors (for the trainer: worker processes, one ZeRO-3 rank each)."""
    cpus: Annotated[float, Field(ge=0)] = 0.25
    """CPUs Ray reserves per actor. Stages that never run at once may share a core through fractions."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs Ray reserves per actor; fractions colocate stages on one device."""
    threads: PositiveInt = 1
    """OpenMP threads of one actor."""
    custom: dict[str, float] = Field(default_factory=dict)
    """Custom Ray resources per actor, to land a stage on its own node group."""


class Resources(Section):
    sampler: Group = Group()
    """vLLM engines of the policy."""
    opponents: Group = Group()
    """vLLM engines of its opponents: one pool for earlier versions of the policy, and one for each other model."""
    judge: Group = Group()
    """Judge actors (each judge of the run has such a pool)."""
    reference: Group = Group()
    """Reference log-prob actors; a pool of its own, never inside the trainer."""
    trainer: Group = Group()
    """DeepSpeed ZeRO-3 workers under Ray Train."""
    data_cpus: Annotated[float, Field(gt=0)] = 0.5
    """CPUs left to Ray Data for reading and tokenising prompts."""


class Weights(Section):
    transport: Literal["auto", "shm", "filesystem"] = "auto"
    """How new weights reach samplers: node shared memory, the run directory, or whichever fits their placement."""
    bucket_mb: PositiveInt = 64
    """Most megabytes of parameters gathered at a time."""
    update: Literal["in_flight", "requeue", "finish"] = "in_flight"
    """What becomes of answers that are under way when new weights arrive: they go on with them (each candidate says
    which versions sampled it), begin anew, or are finished first. With ``run.max_staleness`` 0 there are none."""


class Evaluation(Section):
    prompts: PositiveInt = 128
    """Held-out prompts, answered once each."""
    every: Annotated[int, Field(ge=0)] = 0
    """Evaluate every this many steps, besides before the first and after the last; 0: only those two."""
    probe: Annotated[int, Field(ge=0)] = 8
    """Held-out prompts answered in every iteration for reward beside KL; they rotate. 0: none."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Sampling temperature of held-out answers (1.0: the KL estimate is of the policy itself)."""
    judge: Judge | None = None
    """An independent second judge, shown beside the first: a win that only the trained-on judge sees is suspect."""


class Data(Section):
    train: str
    """File of pairs, labelled responses or demonstrations (JSONL, JSON, Parquet), or an online run's directory."""
    heldout: str = ""
    """File of held-out items for loss and accuracy; empty: ``heldout_share`` of ``train``."""
    prompts: str = ""
    """Where ``train`` is a run's directory: the prompts it was sampled from, if they are not the shipped ones."""
    heldout_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of ``train`` that is held out instead, drawn by the seed."""
    format: Literal["auto", "pairs", "labels", "sft", "argilla", "label_studio"] = "auto"
    """Format of the records; ``auto``: recognised by the fields of the first one."""
    template: Literal["chat", "none"] = "chat"
    """Text goes through the model's chat template, or is encoded as it stands (base models have no template)."""
    batch_size: PositiveInt = 16
    """Items (pairs, or labelled responses) of one optimizer step."""
    epochs: PositiveFloat = 1.0
    """Passes over the data; a fraction stops in the middle of one."""
    max_prompt_tokens: PositiveInt = 512
    """Prompts longer than this are too long."""
    max_response_tokens: PositiveInt = 512
    """Responses longer than this are too long."""
    truncation: Literal["drop", "keep_start", "cut_prompt_start"] = "drop"
    """What is too long is dropped, loses its response's end, or loses its prompt's beginning; counted either way."""
    missing_eos: Literal["append", "keep", "drop"] = "append"
    """A response that the template leaves without an end of turn gets one, stays as it is, or is dropped."""
    evaluate_every: Annotated[int, Field(ge=0)] = 0
    """Steps between evaluations on the held-out items, besides the one at the end; 0: only that one."""


class Tracking(Section):
    uri: str = ""
    """MLflow tracking URI; empty: sqlite file ``mlflow.db`` in the run root."""
    experiment: str = "rondo"
    """MLflow experiment."""
    registered_model: str = ""
    """Name in the model registry for the final model; empty: the run's name."""
    trace_judgements: Annotated[int, Field(ge=0)] = 4
    """Prompts of a step whose judgements become traces in MLflow; every one that people judge does in any case."""
    parent: str = Field("", pattern=r"^[^'`]*$")
    """Name of a run in the experiment that this one is nested under, as those of a sweep are; made if it is missing."""


class Checkpointing(Section):
    every: PositiveInt = 8
    """Steps between checkpoints (a last one is always written); what came after is replayed from the ledger."""
    keep: PositiveInt = 1
    """How many of the newest checkpoints are kept; an old one goes only after a newer one is complete."""
    keep_best: Annotated[int, Field(ge=0)] = 0
    """How many are kept besides because they are the best by ``best_metric``; 0: none."""
    best_metric: str = "eval/win_rate"
    """A metric by its name in MLflow, measured at the checkpoint's own step."""
    best: Literal["max", "min"] = "max"
    """Whether the best is the greatest or the least value."""
    storage: str = ""
    """Where checkpoints and journals are copied in the background: ``s3://bucket/prefix``, or a second directory
    (absolute). ``--resume=auto`` on an empty disk restores the run from there. Empty: nowhere."""

    @field_validator("storage")
    @classmethod
    def _is_a_place(cls, storage: str) -> str:
        if storage and not re.fullmatch(r"s3://[^/]+(/.*)?|[/~].*", storage):
            raise ValueError("is neither s3://bucket/prefix nor the absolute path of a directory")
        return storage


class Deadlines(Section):
    nodes_s: Annotated[float, Field(ge=0)] = 0.0
    """Longest wait for nodes that the cluster lacks; an autoscaler is asked for them. 0: the run is refused at once."""
    start_s: PositiveFloat = 300.0
    """Longest time an actor may take to come up."""
    call_s: PositiveFloat = 600.0
    """Longest time one remote call may take before its actor is declared hung and replaced."""
    heartbeat_s: PositiveFloat = 120.0
    """Longest time a sampler may leave a poll unanswered (it answers about every second) before it is declared hung."""
    lease_s: PositiveFloat = 30.0
    """A process of another machine that gives no sign of life in its run for so long counts as dead."""


class Recovery(Section):
    retries: Annotated[int, Field(ge=0)] = 10
    """Actors of one stage that may be lost and replaced within ``window_s``; one more ends the run. 0: none is."""
    window_s: PositiveFloat = 3600.0
    """Seconds after which a lost actor no longer counts."""
