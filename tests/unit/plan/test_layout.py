"""Memory, times, weights and the search for a layout: hand-worked numbers, monotony, refusals."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.loading import ConfigError
from pipelines.plan.architecture import PlanError, architecture
from pipelines.plan.cluster import GPUS, read_cluster
from pipelines.plan.layout import Groups, groups_of
from pipelines.plan.memory import GIB, kv_sequences, reference_memory, sampler_memory, trainer_memory
from pipelines.plan.search import best_layout
from pipelines.plan.times import Decode, drain_seconds
from pipelines.plan.weights import weight_path
from pipelines.plan.workload import Lengths, workload
from tests.unit.plan.setups import LLAMA_8B, LLAMA_70B, cluster, planner, run_config

H100 = GPUS["H100-SXM"]
P = 8_030_261_248


def part(memory, name):
    return dict(memory.parts)[name]


def test_zero_3_bytes_a_rank_by_hand():
    memory = trainer_memory(architecture(LLAMA_8B), run_config(), H100, ranks=8)
    assert part(memory, "weights") == 2 * P / 8
    assert part(memory, "gradients") == 2 * P / 8
    assert part(memory, "optimizer") == 12 * P / 8
    assert sum(part(memory, n) for n in ("weights", "gradients", "optimizer")) == pytest.approx(16.06e9, rel=1e-3)
    assert part(memory, "gathered layers") == 2e9  # DeepSpeed keeps up to 1e9 numbers
    assert part(memory, "logits") == 3 * 4 * 128 * 128256
    per_token = 32 * 2 * 4096 + 2 * (4 * 4096 + 80 * 128 + 2 * 14336)
    assert part(memory, "activations") == 4096 * per_token
    assert not memory.missing


def test_what_offloading_and_adapters_take_away():
    arch = architecture(LLAMA_8B)
    gpus = {"trainer": {"actors": 2, "gpus": 1}}
    offloaded = trainer_memory(arch, run_config(optimizer={"offload": "cpu"}, resources=gpus), H100, 2)
    assert "optimizer" not in dict(offloaded.parts)
    lora = trainer_memory(arch, run_config(model={"path": "/m", "lora": {"rank": 16}}), H100, 2)
    linear = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)
    assert part(lora, "optimizer") == 12 * 16 * 32 * linear / 2
    assert part(lora, "weights") == P


def test_a_sampler_holds_what_its_cache_has_room_for():
    arch, config, spec = architecture(LLAMA_8B), run_config(), cluster()
    memory = sampler_memory(arch, config, H100, gpus=1)
    assert part(memory, "weights") == 2 * P
    room = 0.85 * 79.1 * GIB - 2 * P - 2 * GIB
    work = workload(config, spec)
    each = 131_072 * (work.lengths.cut_mean + 256 / 4)  # a prompt's cache is shared by its four candidates
    assert kv_sequences(arch, config, work, H100, 1) == pytest.approx(room / each)
    assert sampler_memory(architecture(LLAMA_70B), config, H100, 1).missing > 66 * GIB
    assert reference_memory(architecture(LLAMA_70B), config, H100).missing > 0


def test_a_decoding_step_by_hand():
    times = planner().times
    decode = times.decode(1)
    bandwidth = 3350e9 * 0.7
    arch = times.arch
    assert decode.weights_s == pytest.approx(2 * (P - 128256 * 4096 - 4096) / bandwidth)  # embeddings are looked up
    context = 256 + times.work.lengths.cut_mean / 2
    assert decode.cache_s == pytest.approx(131_072 * context / bandwidth)
    assert decode.compute_s == pytest.approx(arch.forward_flops(1, 1, context) / (989e12 * 0.5))
    assert decode(1) == decode.weights_s + decode.cache_s + 0.003
    assert decode(1e6) == pytest.approx(1e6 * max(decode.cache_s, decode.compute_s), rel=0.01)


def test_training_is_bound_by_links_where_they_are_slow():
    fast, slow = planner(spec=cluster(4)), planner(spec=cluster(4, pool={"network_gbit_s": 25}))
    assert fast.times.trainer(32).limit == "FLOP/s"
    assert slow.times.trainer(32).limit == "links (ZeRO-3 gathers)"
    work = slow.work
    cells = math.ceil(work.pairs * work.pair_tokens / (32 * 4096))
    gathers = cells * (3 * P * 2 / 1e9 / (25 / 8 * 0.7) + 3 * 32 * 4 * 2e-5)
    optimizer = 32 * P / 32 / (3350e9 * 0.7)
    assert slow.times.trainer(32).seconds == pytest.approx(gathers + optimizer)
    assert slow.times.trainer(8).limit == "FLOP/s"  # inside a node


def test_weights_on_a_tree_by_hand():
    arch, config = architecture(LLAMA_8B), run_config()
    spec = cluster(16, transport="broadcast")
    path = weight_path(arch, config, spec, ranks=8, engines=112, gpus=1)
    assert (path.nodes, path.depth) == (14, 3)  # 2 + 4 + 8
    network = 400 * 0.7 / 2  # GB/s, to two children
    assert path.transfer_s == pytest.approx(2 * P / 1e9 / network)
    assert path.hop_s == pytest.approx(0.064 / network + 2e-5)
    assert path.seconds == pytest.approx(path.gather_s + path.transfer_s + 2 * path.hop_s + path.load_s)
    files = weight_path(arch, config, cluster(16), ranks=8, engines=112, gpus=1)
    assert files.transport == "filesystem"
    assert files.transfer_s == pytest.approx(2 * P / 1e9 * 15 / 2.0)  # written once, read by 14 nodes
    assert weight_path(arch, config, cluster(1), 4, 3, 1).transport == "shm"
    with pytest.raises(PlanError, match="8 trainer and 112 sampler GPUs take more than one node of 8"):
        weight_path(arch, config, cluster(16, transport="shm"), 8, 112, 1)


@settings(deadline=None, max_examples=40)
@given(st.floats(20, 800), st.floats(0.0, 1.5), st.integers(64, 2048))
def test_lengths_agree_with_draws(mean, spread, cap):
    import numpy as np

    lengths = Lengths(mean, spread, cap)
    drawn = np.full(1, mean) if not spread else np.random.default_rng(0).lognormal(lengths.location, spread, 200_000)
    cut = np.minimum(drawn, cap)
    assert lengths.cut_mean == pytest.approx(cut.mean(), rel=0.03)
    assert lengths.longer_than(mean / 2) == pytest.approx((cut > mean / 2).mean(), abs=0.01)


def test_a_batch_that_drains_by_hand():
    """Equal lengths: one wave of 8 at width 8; then what did not fit, at full width."""
    spec = cluster(workload={"response_tokens": 100, "spread": 0})
    work = workload(run_config(), spec)
    decode = Decode(0.01, 0.001, 0, 0)
    assert drain_seconds(work, decode, most=8, share=8) == pytest.approx(100 * 0.018)
    assert drain_seconds(work, decode, most=8, share=12) == pytest.approx(100 * 0.018 + 4 * 100 * 0.018 / 8)
    assert drain_seconds(work, decode, most=0.5, share=8) == math.inf


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 12), st.sampled_from(["L40S", "A100-80GB", "H100-SXM", "B200"]), st.integers(1, 6))
def test_more_nodes_are_never_slower_and_the_layout_fits(nodes, gpu, staleness):
    one, more = (planner(spec=cluster(n, gpu, transport="broadcast")) for n in (nodes, nodes + 3))
    try:
        found = best_layout(one, staleness)
    except PlanError:
        assert one.cluster.size * GPUS[gpu].memory_gib < 1000
        return
    assert one.shortfalls(found.groups) == []
    assert best_layout(more, staleness).period <= found.period * 1.02
    slowest = max(row.seconds for row in found.rows)
    assert found.period >= slowest
    assert found.period >= found.way / (staleness + 1) - 1e-9
    assert found.pairs_per_s == pytest.approx(one.work.pairs / found.period)
    assert found.price_per_1000_pairs == pytest.approx(nodes * 30 / 3600 * found.period / one.work.pairs * 1000)


def test_no_split_of_a_small_cluster_is_faster_than_the_one_found():
    p = planner(spec=cluster(1))
    best = best_layout(p, 2)
    others = [
        Groups(s, 1, 1, 0, r, 8 - s - r) for s in range(1, 7) for r in range(1, 8 - s) if 8 - s - r > 0
    ]  # fmt: skip
    fitting = [g for g in others if not p.shortfalls(g)]
    assert len(fitting) > 5
    assert best.period <= min(p.layout(g, 2).period for g in fitting) * 1.005


def test_staleness_is_raised_only_where_it_is_worth_it():
    p = planner()
    chosen = best_layout(p)
    less = [best_layout(p, k).period for k in range(1, chosen.staleness)]
    assert all(period > chosen.period / 0.95 for period in less)
    assert p.layout(chosen.groups, 0).period > chosen.period


def test_groups_that_do_not_fit_are_refused_with_what_is_missing():
    groups = {
        "sampler": {"actors": 12, "gpus": 1},
        "reference": {"actors": 2, "gpus": 1},
        "trainer": {"actors": 8, "gpus": 1},
    }
    config = run_config(resources=groups)
    p = planner(config=config)
    found = groups_of(config, p.work)
    assert found == Groups(12, 1, 1, 0, 2, 8)
    (line,) = p.shortfalls(found)
    assert "22 needed (sampler 12, reference 2, trainer 8), 2 x 8 = 16 present, 6 missing; add 1 more node(s)" in line
    big = planner(LLAMA_70B, run_config(resources=groups | {"sampler": {"actors": 1, "gpus": 1}}))
    lines = big.shortfalls(groups_of(big.config, big.work))
    assert [line.partition(":")[0] for line in lines] == ["sampler", "trainer", "reference"]
    assert "GiB of GPU memory missing on each device: weights 131.4 + engine 2.0" in lines[0]
    with pytest.raises(PlanError, match=r"(?s)no layout fits this cluster:.*reference: weights 131.4"):
        best_layout(big)


def test_what_is_offloaded_has_to_fit_the_host():
    """16 bytes a parameter on 8 ranks of one node: 8.03e9 x 16 / 2^30 = 119.7 GiB."""
    gpus = {"sampler": {"gpus": 1}, "reference": {"gpus": 1}, "trainer": {"actors": 8, "gpus": 1}}
    config = run_config(optimizer={"offload": "cpu"}, resources=gpus)
    assert (
        planner(config=config, spec=cluster(pool={"host_memory_gib": 120})).shortfalls(Groups(1, 1, 1, 0, 1, 8)) == []
    )
    (line,) = planner(config=config, spec=cluster(pool={"host_memory_gib": 100})).shortfalls(Groups(1, 1, 1, 0, 1, 8))
    assert line.startswith("trainer: 19.7 GiB of host memory missing on each node: 8 ranks x 15.0 GiB offloaded")


def test_a_judge_model_takes_gpus_of_its_own():
    judge = {"kind": "llm", "model": "/judge"}
    config = run_config(judge=judge)
    with pytest.raises(PlanError, match=r"judge.model: .*config.json.*; or give judge.parameters_b"):
        workload(config, cluster())
    p = planner(config=config, spec=cluster(judge={"parameters_b": 8}))
    best = best_layout(p, 2)
    assert best.groups.judges >= 1 == best.groups.judge_gpus
    # ceil(1.5 x 4) - 2 = 4 matches in both orders, each with the prompt and two responses
    assert p.work.judging.tokens == pytest.approx(8 * p.work.pair_tokens)
    assert p.times.judge_seconds(1) == pytest.approx(2 * 8e9 * p.work.judging.tokens / (989e12 * 0.5))


def test_a_cluster_file_names_every_problem(tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text("pools: [{gpu: H100}, {gpu: L4, nodes: 0}]\nworkload: {tie_rate: 1}\nprice: 3\n")
    with pytest.raises(ConfigError) as refused:
        read_cluster(file)
    message = str(refused.value)
    assert "pools.0: gpu = 'H100' is not in the library (A10G, L4, " in message
    assert "pools.1.nodes: Input should be greater than 0" in message
    assert "workload.tie_rate: Input should be less than 1" in message
    assert "price: unknown key" in message
    file.write_text("pools: [{gpu: L4, stages: [sampler, judge, trainer]}, {gpu: L4, stages: [trainer]}]\n")
    with pytest.raises(ConfigError, match="reference is placed in no pool: list it in the stages of exactly one pool"):
        read_cluster(file)


def test_two_pools_are_filled_apart():
    own = {"memory_gib": 48, "tflops": 300, "bandwidth_gb_s": 1000, "link_gb_s": 30}
    spec = {
        "pools": [
            {"nodes": 4, "gpus": 8, "gpu": own, "stages": ["sampler", "judge"]},
            {"nodes": 2, "gpus": 8, "gpu": "H100-SXM", "stages": ["reference", "trainer"]},
        ],
        "transport": "broadcast",
    }
    p = planner(spec=type(cluster()).model_validate(spec))
    groups = best_layout(p, 2).groups
    assert groups.engines * groups.engine_gpus <= 32
    assert groups.references + groups.ranks <= 16
    assert p.shortfalls(groups) == []


def test_fractions_of_a_gpu_are_not_planned():
    config = run_config(resources={"sampler": {"gpus": 0.5}, "trainer": {"gpus": 1}})
    with pytest.raises(PlanError, match=r"resources.sampler.gpus = 0.5: a plan counts whole GPUs; set it to 1"):
        groups_of(config, planner().work)
