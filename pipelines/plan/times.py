"""Seconds of every stage by roofline: the longest of what compute, memory and links take, at stated efficiencies.

Symbols: P parameters (b bytes each), g GPUs of an engine, a sequences decoding on it, F and W a GPU's peak FLOP/s and
memory bandwidth.

    decoding step    max(b P + a KV over g W, a 2 P over g F) + overhead; KV at a response's mean context
    scoring          forward FLOPs over F
    training         max(3 or 4 forward FLOPs over F, 3 b P over the link) a micro-batch, + optimizer, + gradient norm
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from configs.runs import RunConfig
from pipelines.plan.architecture import Architecture
from pipelines.plan.cluster import Cluster, Pool
from pipelines.plan.memory import item_bytes, kv_sequences, trainable
from pipelines.plan.workload import Workload


@dataclass(frozen=True, slots=True)
class Decode:
    """Seconds between two tokens of every sequence, with ``a`` of them decoding on an engine."""

    weights_s: float
    """Reading the weights."""
    cache_s: float
    """Reading one sequence's KV cache."""
    compute_s: float
    """One token's FLOPs."""
    overhead_s: float

    def __call__(self, a: float) -> float:
        memory, compute = self.weights_s + self.cache_s * a, self.compute_s * a
        return (memory if memory > compute else compute) + self.overhead_s


@dataclass(frozen=True, slots=True)
class Stage:
    """One group's part in a step."""

    seconds: float
    """Of a step's work, the group working on nothing else and never waiting."""
    latency: float
    """Of one prompt through it (sampler: of a batch's slowest one; trainer: of the batch)."""
    limit: str
    """What bounds it."""


class Rooflines:
    """The stages of a run on a cluster, for any group sizes."""

    def __init__(self, arch: Architecture, config: RunConfig, cluster: Cluster, work: Workload) -> None:
        self.arch, self.config, self.cluster, self.work = arch, config, cluster, work
        self._decodes: dict[int, Decode] = {}
        self._slots: dict[int, float] = {}

    # -- sampler ---------------------------------------------------------------------------------------------------

    def decode(self, gpus: int) -> Decode:
        """Of an engine that spans ``gpus``."""
        if gpus not in self._decodes:
            self._decodes[gpus] = self._decode(gpus)
        return self._decodes[gpus]

    def _decode(self, gpus: int) -> Decode:
        pool, eff, item = self.cluster.pool("sampler"), self.cluster.efficiency, item_bytes(self.config)
        bandwidth = gpus * pool.device.bandwidth_gb_s * 1e9 * eff.decode
        flops = gpus * pool.device.tflops * 1e12 * eff.forward
        context = self.work.prompt_tokens + self.work.lengths.cut_mean / 2
        cache = self.arch.kv_bytes(context, item) * max(1.0, gpus / self.arch.kv_heads)
        reduces = 2 * self.arch.layers * eff.tensor_parallel_s if gpus > 1 else 0.0
        return Decode(
            item * (self.arch.trunk + self.arch.embedding) / bandwidth,
            cache / bandwidth,
            self.arch.forward_flops(1, 1, context) / flops,
            eff.decode_overhead_s + reduces,
        )

    def prefill(self, gpus: int) -> float:
        """Seconds an engine takes for one prompt, which its candidates share."""
        pool, prompt = self.cluster.pool("sampler"), self.work.prompt_tokens
        flops = self.arch.forward_flops(prompt, self.work.candidates, prompt / 2)
        return flops / (gpus * pool.device.tflops * 1e12 * self.cluster.efficiency.forward)

    def slots(self, gpus: int) -> float:
        """Sequences that an engine's KV cache holds."""
        if gpus not in self._slots:
            device = self.cluster.pool("sampler").device
            self._slots[gpus] = kv_sequences(self.arch, self.config, self.work, device, gpus)
        return self._slots[gpus]

    def sampler(self, engines: int, gpus: int, ahead: float) -> Stage:
        """``ahead``: batches in the samplers at a time; 0: one batch that drains before the next one begins."""
        work, decode = self.work, self.decode(gpus)
        share = work.responses / engines
        prefill = self.prefill(gpus) * work.prompts / engines
        if not ahead:
            seconds = drain_seconds(work, decode, min(share, self.slots(gpus)), share) + prefill
            return Stage(seconds, seconds, "longest responses")
        a = max(1.0, min(share * ahead, self.slots(gpus)))
        seconds = share * work.lengths.cut_mean * decode(a) / a + prefill
        bound = decode.weights_s + decode.cache_s * a
        limit = "memory bandwidth" if bound > decode.compute_s * a else "FLOP/s"
        if decode.overhead_s > max(bound, decode.compute_s * a):
            limit = "engine overhead"
        return Stage(seconds, self.slowest_prompt(engines, gpus, seconds), limit)

    def slowest_prompt(self, engines: int, gpus: int, period: float) -> float:
        """Seconds that the longest response of a batch decodes for when a step takes ``period`` seconds.

        By Little's law an engine then has a sequences with a / decode(a) = the tokens a second that are asked of it.
        No prompt is dropped: this one has to be there within max_staleness + 1 steps.
        """
        work, decode = self.work, self.decode(gpus)
        asked = work.responses / engines * work.lengths.cut_mean / period
        a, most = 1.0, self.slots(gpus)
        for _ in range(50):
            a = min(max(1.0, asked * decode(a)), most)
        return _longest(work, work.responses) * decode(a) + self.prefill(gpus) * work.prompts / engines

    # -- judge, reference, driver ----------------------------------------------------------------------------------

    def judge_seconds(self, gpus: int) -> float:
        """Of one actor for one prompt."""
        judging = self.work.judging
        if not judging.parameters:
            return judging.seconds
        device = self.cluster.pool("judge").device
        return judging.seconds + 2 * judging.parameters * judging.tokens / (
            max(1, gpus) * device.tflops * 1e12 * self.cluster.efficiency.forward
        )

    def judge(self, actors: int, gpus: int) -> Stage:
        each = self.judge_seconds(gpus)
        slots = self.work.judging.slots or actors
        limit = "FLOP/s" if self.work.judging.parameters else self.work.judging.note
        return Stage(self.work.prompts * each / slots, each, limit)

    def reference_seconds(self) -> float:
        """Of one actor on one GPU for one pair."""
        work, device = self.work, self.cluster.pool("reference").device
        flops = self._pair_flops()
        read = item_bytes(self.config) * self.arch.trunk * work.pair_tokens / self.config.batching.micro_batch_tokens
        return max(
            flops / (device.tflops * 1e12 * self.cluster.efficiency.forward), read / (device.bandwidth_gb_s * 1e9)
        )

    def _pair_flops(self) -> float:
        response = self.work.lengths.cut_mean
        context = (self.work.prompt_tokens + response) / 2
        return self.arch.forward_flops(self.work.pair_tokens, 2 * response, context)

    def reference(self, actors: int) -> Stage:
        each = self.reference_seconds()
        return Stage(self.work.pairs * each / actors, each, "FLOP/s")

    def driver(self) -> Stage:
        each = self.cluster.efficiency.driver_s
        return Stage(self.work.prompts * each, each, "one process")

    # -- trainer ---------------------------------------------------------------------------------------------------

    def trainer(self, ranks: int) -> Stage:
        pool, eff, item = self.cluster.pool("trainer"), self.cluster.efficiency, item_bytes(self.config)
        tokens = self.work.pairs * self.work.pair_tokens
        cells = max(1, math.ceil(tokens / (ranks * self.config.batching.micro_batch_tokens)))
        passes = 4 if self.config.batching.activation_checkpointing else 3
        compute = passes * self.work.pairs * self._pair_flops() / ranks / (pool.device.tflops * 1e12 * eff.train)
        learned = trainable(self.arch, self.config)
        gathered = (2 * self.arch.parameters + learned) * item / 1e9  # forward, backward; gradients scattered
        link, hops = rank_link(pool, ranks, eff.link)
        layers = 3 * self.arch.layers * hops * eff.collective_s  # a collective a layer
        moved = 0.0 if ranks == 1 else cells * (gathered / link + layers)
        optimizer = self._optimizer(pool, learned / ranks)
        fullest = max(compute, moved)
        limit = "FLOP/s" if compute >= moved else "links (ZeRO-3 gathers)"
        if optimizer > fullest:
            limit = "optimizer"
        return Stage(fullest + optimizer, fullest + optimizer, limit)

    def _optimizer(self, pool: Pool, numbers: float) -> float:
        """Reads and writes 12 bytes of state, gradients and weights of every number; offloaded, over PCIe."""
        if self.config.optimizer.offload == "none":
            return 32 * numbers / (pool.device.bandwidth_gb_s * 1e9 * self.cluster.efficiency.decode)
        return 4 * numbers / (pool.device.host_gb_s * 1e9) + 32 * numbers / (self.cluster.host_copy_gb_s * 1e9)


def rank_link(pool: Pool, ranks: int, efficiency: float) -> tuple[float, float]:
    """GB/s at which a ring collective passes each rank, and the hops between nodes of its latency."""
    if ranks <= pool.gpus:
        return pool.device.link_gb_s * efficiency, 0.0
    nodes = math.ceil(ranks / pool.gpus)
    # The ring crosses every node's network once each way, whatever the number of its GPUs.
    return min(pool.device.link_gb_s, pool.network_gb_s) * efficiency, float(nodes)


def drain_seconds(work: Workload, decode: Decode, most: float, share: float) -> float:
    """One engine answers ``share`` responses and nothing else, at most ``most`` at a time, fewer and fewer as they end.

    Token j of a wave is decoded by those longer than j: the sum of decode(a P(length > j)) over j, until less than one
    response is left. Further waves fill the places of those that end.
    """
    if most < 1:
        return math.inf
    wave = min(share, most)
    seconds, steps = 0.0, 64
    end = _longest(work, max(share, 1.0))
    for i in range(steps):
        j = end * (i + 0.5) / steps
        seconds += end / steps * decode(max(1.0, wave * work.lengths.longer_than(j)))
    queued = share - wave
    return seconds + queued * work.lengths.cut_mean * decode(most) / most


def _longest(work: Workload, number: float) -> float:
    """Tokens of the longest of so many responses: the length that half a response is expected to exceed."""
    low, high = 0.0, float(work.lengths.cap)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if number * work.lengths.longer_than(middle) > 0.5 else (low, middle)
    return max(high, 1.0)
