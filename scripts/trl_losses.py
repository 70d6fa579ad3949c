"""Run by ``trl_vectors.py`` in an environment of TRL: inputs on stdin, losses and gradients by TRL's code on stdout.

Trainers are made without ``__init__`` and given the attributes that their loss reads; models are stand-ins whose
log-probs are the inputs. The number is TRL's in every case. Gradients are of the sum of the losses by the policy's
log-probs, token by token. Where TRL averages likelihoods over the tokens of a batch it gets one pair at a time.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

ACCELERATOR = SimpleNamespace(
    device=torch.device("cpu"), use_distributed=False, gather=lambda x: x, gather_for_metrics=lambda x: x
)
GIVEN = json.loads(sys.stdin.read())
PAIRS = range(len(GIVEN["chosen"]))
SIDES = ("chosen", "rejected")
Leaves = dict[str, list[Tensor]]


def make(path: str, **attributes: Any) -> Any:
    """An object of the class at ``path`` with these attributes and nothing else."""
    module, name = path.rsplit(".", 1)
    cls = getattr(importlib.import_module(module), name)
    instance = object.__new__(cls)
    instance.accelerator = ACCELERATOR
    for key, value in attributes.items():
        setattr(instance, key, value)
    return instance


def given(side: str, name: str, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.tensor(response[name], dtype=dtype) for response in GIVEN[side]]


def sums(tokens: list[Tensor], which: Any = PAIRS) -> Tensor:
    return torch.stack([tokens[i].sum() for i in which])


def case(function: str, loss: Callable[[Leaves], Tensor], dtype: torch.dtype = torch.float64, **settings: Any) -> Any:
    """``loss`` of fresh leaves -> the record of the case. One value is the batch's mean, several are the items'."""
    leaves = {side: [t.requires_grad_() for t in given(side, "policy", dtype)] for side in SIDES}
    losses = loss(leaves).reshape(-1)
    flat = leaves["chosen"] + leaves["rejected"]
    found = torch.autograd.grad(losses.sum(), flat, allow_unused=True, materialize_grads=True)
    by_side = zip(SIDES, (found[: len(PAIRS)], found[len(PAIRS) :]), strict=True)
    gradients = {side: [rounded(g) for g in tokens] for side, tokens in by_side}
    return {"function": function, "settings": settings, "losses": rounded(losses), "gradients": gradients}


def rounded(values: Tensor) -> list[float]:
    return [float(f"{v:.9g}") for v in values.tolist()]


def padded(tokens: list[Tensor], fill: float = 0.0) -> Tensor:
    return pad_sequence(tokens, batch_first=True, padding_value=fill)


class Model:
    """Stand-in with a fused head: its outputs are these log-probs. A prompt of one token comes before each response."""

    training = True
    is_gradient_checkpointing = False

    def __init__(self, *outputs: SimpleNamespace) -> None:
        self.outputs = list(outputs)

    def __call__(self, **kwargs: Any) -> SimpleNamespace:
        return self.outputs.pop(0)


def fused(tokens: list[Tensor], collision: list[Tensor] | None = None) -> SimpleNamespace:
    logps = padded(tokens)
    idle = torch.zeros_like(logps)
    squares = idle if collision is None else padded(collision)
    return SimpleNamespace(log_probs=logps, log_sum_sq_probs=squares, entropy=idle, mean_logits=idle, is_top1=idle > 0)


def ids(tokens: list[Tensor], prefix: str = "") -> dict[str, Tensor]:
    """input_ids, attention_mask, completion_mask of responses after their one-token prompts."""
    mask = padded([torch.ones(len(t) + 1, dtype=torch.long) for t in tokens], 0)
    completion = mask.clone()
    completion[:, 0] = 0
    return {f"{prefix}input_ids": mask, f"{prefix}attention_mask": mask, f"{prefix}completion_mask": completion}


METRICS = {"_total_train_tokens": 0, "_tp_size": 1}


def dpo_recent(dtype: torch.dtype = torch.float64, whole: bool = False, **settings: Any) -> Any:
    """DPOTrainer._compute_loss of 1.16."""
    attributes = {
        "loss_types": ["sigmoid"], "loss_weights": None, "beta": 0.1, "label_smoothing": 0.0, "ld_alpha": None,
        "use_weighting": False, "f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": 0.5,
    } | settings  # fmt: skip
    attributes["loss_weights"] = attributes["loss_weights"] or [1.0] * len(attributes["loss_types"])

    def of(leaves: Leaves, which: Any) -> Tensor:
        def both(source: Any) -> list[Tensor]:
            return [source(side)[i] for side in SIDES for i in which]

        own = both(lambda s: leaves[s])
        policy = Model(fused(own, both(lambda s: given(s, "collision", dtype))))
        reference = Model(fused(both(lambda s: given(s, "reference", dtype))))
        trainer = make(
            "trl.trainer.dpo_trainer.DPOTrainer",
            **attributes, **METRICS, model=policy, ref_model=reference, precompute_ref_logps=False,
            aux_loss_enabled=False, _metrics=defaultdict(lambda: defaultdict(list)),
            args=SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=0.05),
        )  # fmt: skip
        return trainer._compute_loss(policy, ids(own), return_outputs=False)

    if whole:
        return case("DPOTrainer._compute_loss", lambda x: of(x, PAIRS), dtype, **settings)
    return case("DPOTrainer._compute_loss", lambda x: torch.stack([of(x, [i]) for i in PAIRS]), dtype, **settings)


def kto(**settings: Any) -> Any:
    """KTOTrainer._compute_loss of 1.16, the chosen responses labelled desirable, the rejected ones not."""

    def of(leaves: Leaves) -> Tensor:
        own = [t for side in SIDES for t in leaves[side]]
        others = given("mismatched", "policy")
        policy = Model(fused(others), fused(own))
        reference = [t for side in SIDES for t in given(side, "reference")]
        trainer = make(
            "trl.trainer.kto_trainer.KTOTrainer",
            **settings, **METRICS, model=policy, loss_type="kto", calculate_KL=True, precompute_ref_logps=False,
            ref_model=Model(fused(given("mismatched", "reference")), fused(reference)), aux_loss_enabled=False,
            _metrics=defaultdict(lambda: defaultdict(list)), args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        )  # fmt: skip
        label = torch.tensor([True] * len(PAIRS) + [False] * len(PAIRS))
        return trainer._compute_loss(policy, ids(own) | ids(others, "KL_") | {"label": label}, return_outputs=False)

    return case("KTOTrainer._compute_loss", of, **settings)


def with_logits(trainer: str, **settings: Any) -> Any:
    """get_batch_loss_metrics of 1.16's experimental CPO and ORPO trainers, one pair at a time."""
    attributes = {"is_encoder_decoder": False, "aux_loss_enabled": False, "pad_token_id": 0, "padding_value": 0}

    def logits(tokens: list[Tensor]) -> Tensor:
        """[2, T, 3] with the response's token, 1, as likely as told and the rest split evenly."""
        rows = []
        for t in tokens:
            rest = torch.log(-torch.expm1(t) / 2)
            rows.append(torch.cat([torch.stack([rest, t, rest], dim=-1), torch.zeros(1, 3, dtype=t.dtype)]))
        return pad_sequence(rows, batch_first=True)

    def of(leaves: Leaves, i: int) -> Tensor:
        batch: dict[str, Tensor] = {}
        for side in SIDES:
            one = ids([leaves[side][i]])
            batch[f"{side}_input_ids"], batch[f"{side}_attention_mask"] = one["input_ids"], one["attention_mask"]
            batch[f"{side}_labels"] = one["input_ids"].masked_fill(one["completion_mask"] == 0, -100)
        both = logits([leaves[side][i] for side in SIDES])
        loss, _ = make(trainer, **attributes, **settings).get_batch_loss_metrics(
            lambda *args, **kwargs: SimpleNamespace(logits=both), batch
        )
        return loss

    function = f"{trainer.rsplit('.', 1)[1]}.get_batch_loss_metrics"
    return case(function, lambda x: torch.stack([of(x, i) for i in PAIRS]), **settings)


def dpo_former(dtype: torch.dtype = torch.float64, batches: Any = (PAIRS,), **settings: Any) -> Any:
    """DPOTrainer.dpo_loss of 0.24; with several ``batches`` they are steps, one after the other."""
    from trl.trainer.dpo_config import FDivergenceType
    from trl.trainer.utils import RunningMoments

    kind = FDivergenceType(settings.get("f_divergence_type", "reverse_kl"))
    attributes = {"beta": 0.1, "label_smoothing": 0.0, "f_divergence_params": None} | settings
    trainer = make("trl.trainer.dpo_trainer.DPOTrainer", reference_free=False, running=RunningMoments(ACCELERATOR),
                   **attributes | {"f_divergence_type": kind})  # fmt: skip

    def of(leaves: Leaves, which: Any) -> Tensor:
        own = [sums(leaves[side], which) for side in SIDES]
        reference = [sums(given(side, "reference", dtype), which) for side in SIDES]
        return trainer.dpo_loss(*own, *reference, settings.get("loss_type", "sigmoid"))[0]

    return case("DPOTrainer.dpo_loss", lambda x: torch.cat([of(x, b) for b in batches]), dtype, **settings)


def bco_former(batches: Any, **settings: Any) -> Any:
    """BCOTrainer.bco_loss of 0.24, a batch a step."""
    from trl.trainer.utils import RunningMoments

    trainer = make("trl.trainer.bco_trainer.BCOTrainer", running=RunningMoments(ACCELERATOR), **settings,
                   embedding_func=None, embedding_tokenizer=None)  # fmt: skip

    def of(leaves: Leaves, which: Any) -> Tensor:
        own = [sums(leaves[side], which) for side in SIDES]
        reference = [sums(given(side, "reference"), which) for side in SIDES]
        losses = trainer.bco_loss(*own, *reference, None, None)[0]
        return losses[: len(which)] + losses[len(which) :]

    return case("BCOTrainer.bco_loss", lambda x: torch.cat([of(x, b) for b in batches]), **settings)


def own_and_other(i: int) -> tuple[str, str]:
    """The side the policy wrote and the side the reference did."""
    return ("rejected", "chosen") if GIVEN["from_reference"][i] > 0 else ("chosen", "rejected")


def xpo_former(beta: float, alpha: float) -> Any:
    trainer = make("trl.trainer.xpo_trainer.XPOTrainer", _beta=beta, _alpha=alpha,
                   args=SimpleNamespace(loss_type="sigmoid"))  # fmt: skip

    def of(leaves: Leaves, i: int) -> Tensor:
        own, other = own_and_other(i)
        rows = [leaves[own], leaves[other], given(other, "reference"), given(own, "reference")]
        return trainer._compute_losses(*(r[i][None] for r in rows), torch.tensor([own == "chosen"]))[0]

    loss = lambda x: torch.stack([of(x, i) for i in PAIRS])  # noqa: E731
    return case("XPOTrainer._compute_losses", loss, beta=beta, alpha=alpha)


def nash_md_former(beta: float) -> Any:
    trainer = make("trl.trainer.nash_md_trainer.NashMDTrainer", _beta=beta)

    def of(leaves: Leaves, i: int) -> Tensor:
        own, _ = own_and_other(i)
        wins = GIVEN["probability"][i] if own == "chosen" else 1 - GIVEN["probability"][i]
        reference = given(own, "reference")[i][None]
        return trainer._compute_losses(leaves[own][i][None], reference, torch.tensor([wins], dtype=torch.float64))[0]

    return case("NashMDTrainer._compute_losses", lambda x: torch.stack([of(x, i) for i in PAIRS]), beta=beta)


def release_0_24() -> dict[str, Any]:
    steps = (range(3), range(3, 6))
    return {
        "cdpo": dpo_former(label_smoothing=0.2),
        "ipo_summed": dpo_former(loss_type="ipo"),
        "bco": bco_former(steps, beta=0.3),
        "bco_pair": dpo_former(batches=steps, loss_type="bco_pair", beta=0.3),
        "f_dpo_alpha_of_the_paper": dpo_former(
            f_divergence_type="alpha_divergence", f_divergence_params={"alpha_divergence_coef": 0.3}
        ),
        "xpo": xpo_former(beta=0.1, alpha=0.2),
        "nash_md": nash_md_former(beta=0.3),
    }


def release_1_16() -> dict[str, Any]:
    cpo = "trl.experimental.cpo.cpo_trainer.CPOTrainer"
    orpo = "trl.experimental.orpo.orpo_trainer.ORPOTrainer"
    plain = {"alpha": 0.0, "label_smoothing": 0.0}
    return {
        "dpo": dpo_recent(beta=0.3),
        "robust": dpo_recent(loss_types=["robust"], label_smoothing=0.2),
        "hinge": dpo_recent(loss_types=["hinge"]),
        "ipo": dpo_recent(loss_types=["ipo"]),
        "exo": dpo_recent(loss_types=["exo_pair"], label_smoothing=0.1),
        "nca": dpo_recent(loss_types=["nca_pair"]),
        "sppo_hard": dpo_recent(loss_types=["sppo_hard"]),
        "aot": dpo_recent(whole=True, loss_types=["aot"]),
        "aot_unpaired": dpo_recent(whole=True, loss_types=["aot_unpaired"]),
        "apo_zero": dpo_recent(loss_types=["apo_zero"]),
        "apo_down": dpo_recent(loss_types=["apo_down"]),
        "discopop": dpo_recent(loss_types=["discopop"]),
        "length_normalised": dpo_recent(loss_types=["sigmoid_norm"], beta=5.0),
        "rpo": dpo_recent(loss_types=["sigmoid", "sft"], loss_weights=[1.0, 0.7]),
        "sft": dpo_recent(whole=True, loss_types=["sft"]),
        "wpo": dpo_recent(use_weighting=True),
        "ld_dpo": dpo_recent(ld_alpha=0.3),
        "f_dpo_forward_kl": dpo_recent(f_divergence_type="forward_kl"),
        "f_dpo_js": dpo_recent(f_divergence_type="js_divergence"),
        # TRL's exponent is capped by dtype, fp64 not among them.
        "f_dpo_alpha": dpo_recent(torch.float32, f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.7),
        "kto": kto(beta=0.3, desirable_weight=1.5, undesirable_weight=0.5),
        "cpo": with_logits(cpo, loss_type="sigmoid", beta=0.1, cpo_alpha=0.5, **plain),
        "cpo_hinge": with_logits(cpo, loss_type="hinge", beta=1.0, cpo_alpha=0.1, **plain),
        "simpo": with_logits(cpo, loss_type="simpo", beta=2.0, simpo_gamma=0.8, cpo_alpha=0.0, **plain),
        "orpo": with_logits(orpo, beta=0.2),
    }


if __name__ == "__main__":
    release = sys.argv[1]
    cases = {"0.24.0": release_0_24, "1.16.0": release_1_16}[release]()
    print(json.dumps({name: {"trl": release, **record} for name, record in cases.items()}))
