"""The trainer's state in a checkpoint: every rank writes its shares, any number of ranks reads them.

    trainer/
      state.json                      shapes, Adam's step, the objectives' statistics
      rank-00000-000.safetensors      of rank 0, sub group 0 of ZeRO-3: "fp32/<parameter>", "exp_avg/...", ...
      rank-00000-rng.safetensors      the states of its random number generators

A share is a flat piece without ZeRO's padding: of n ranks, rank r holds elements [r p, (r + 1) p) of a parameter, with
p = ceil(numel / n). So another number of ranks reads just the pieces that it needs, and nothing is converted first, as
DeepSpeed's universal checkpoints have to be. Frozen parameters are not written: they are those of the model that
training started from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from actors.files import FileSum

FOLDER = "trainer"
WEIGHTS, MOMENTS = "fp32", ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class State:
    """``state.json``: what all ranks have in common."""

    step: int
    """Optimizer steps of the run that are in the weights."""
    ranks: int
    adam_step: int
    """Steps that Adam has taken: a step without anything to train on takes none."""
    stats: list[dict[str, float]]
    """What outlives a step of each objective's statistics (KTO's and BCO's running means)."""
    model: str
    """Directory of the model that training started from: frozen parameters are read from there."""
    scores: bool
    """Whether it is a reward model."""
    shapes: dict[str, list[int]]
    """Of every trained parameter, by its Hugging Face name."""

    def write(self, directory: Path) -> None:
        (directory / FOLDER / "state.json").write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, directory: Path) -> State:
        return cls(**json.loads((directory / FOLDER / "state.json").read_text()))


def share(numel: int, rank: int, ranks: int) -> tuple[int, int]:
    """[start, end) of the elements of a parameter that ``rank`` of ``ranks`` holds."""
    size = math.ceil(numel / ranks)
    return min(rank * size, numel), min((rank + 1) * size, numel)


def save_shares(directory: Path, optimizer: Any, names: Mapping[int, str], rank: int, ranks: int) -> list[FileSum]:
    """Write this rank's shares of a ZeRO-3 ``optimizer``; ``names`` are those of parameters by ``id``.

    Returns what was written. Raises OSError or SafetensorError where the disk refuses.
    """
    folder = directory / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for index, group in enumerate(optimizer.fp16_groups):
        with _resident(optimizer, index, changed=False):
            flat = optimizer.fp32_partitioned_groups_flat[index]
            state = optimizer.state.get(flat, {})
            sources = {WEIGHTS: flat.detach(), **{kind: state[kind] for kind in MOMENTS if kind in state}}
            pieces = {}
            for parameter, offset in _offsets(group):
                start, end = share(parameter.ds_numel, rank, ranks)
                if end > start:
                    for kind, source in sources.items():
                        pieces[f"{kind}/{names[id(parameter)]}"] = source.narrow(0, offset, end - start)
            written.append(folder / f"rank-{rank:05d}-{index:03d}.safetensors")
            save_file(pieces, written[-1])
    generators = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        generators["cuda"] = torch.cuda.get_rng_state()
    written.append(folder / f"rank-{rank:05d}-rng.safetensors")
    save_file(generators, written[-1])
    return [FileSum.of(path, directory) for path in written]


def load_shares(directory: Path, optimizer: Any, names: Mapping[int, str], rank: int, ranks: int) -> State:
    """Give a fresh ZeRO-3 ``optimizer`` the state that some number of ranks wrote into ``directory``.

    Raises ValueError naming a parameter that the checkpoint does not have, or has in another shape.
    """
    stored = Shares(directory)
    _refuse_others(stored, optimizer, names)
    optimizer.checkpoint_event_prologue()  # small parameters that every rank keeps whole are cut up, too
    with torch.no_grad():
        for index, group in enumerate(optimizer.fp16_groups):
            with _resident(optimizer, index, changed=True):
                flat = optimizer.fp32_partitioned_groups_flat[index].data
                targets = {WEIGHTS: flat}
                if stored.state.adam_step:
                    state = optimizer.state[optimizer.fp32_partitioned_groups_flat[index]]
                    state["step"] = stored.state.adam_step
                    targets |= {kind: state.setdefault(kind, torch.zeros_like(flat)) for kind in MOMENTS}
                for parameter, offset in _offsets(group):
                    start, end = share(parameter.ds_numel, rank, ranks)
                    for kind, target in targets.items():
                        stored.read(kind, names[id(parameter)], start, target.narrow(0, offset, end - start))
                optimizer._reassign_or_swap_out_partitioned_parameters(index)  # as after an optimizer step
    optimizer.checkpoint_event_epilogue()
    stored.restore_generators(rank)
    return stored.state


def adam_step(optimizer: Any) -> int:
    """Steps that Adam has taken."""
    states = (optimizer.state.get(flat, {}) for flat in optimizer.fp32_partitioned_groups_flat)
    return max((int(s["step"]) for s in states if "step" in s), default=0)


class Shares:
    """What a checkpoint holds of the trainer. Only what is asked for is read."""

    def __init__(self, directory: Path) -> None:
        self.state, self._folder = State.read(directory), directory / FOLDER

    @cached_property
    def _pieces(self) -> dict[tuple[str, int], Any]:
        """The open file of every (key, rank)."""
        found: dict[tuple[str, int], Any] = {}
        for path in sorted(self._folder.glob("rank-*-[0-9]*.safetensors")):
            rank = int(path.name.split("-")[1])
            file: Any = safe_open(path, framework="pt")
            found |= {(key, rank): file for key in file.keys()}  # noqa: SIM118, it is no dict
        return found

    def read(self, kind: str, name: str, start: int, out: Tensor) -> None:
        """Elements [start, start + len(out)) of a parameter's weights or moments, whoever holds them."""
        ranks, numel = self.state.ranks, math.prod(self.state.shapes[name])
        end = start + len(out)
        for rank in range(ranks):
            first, last = share(numel, rank, ranks)
            low, high = max(first, start), min(last, end)
            if low < high:
                piece = self._pieces[f"{kind}/{name}", rank].get_slice(f"{kind}/{name}")[low - first : high - first]
                out[low - start : high - start].copy_(piece)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every trained parameter by its Hugging Face name, whole and in fp32."""
        for name, shape in self.state.shapes.items():
            whole = torch.empty(math.prod(shape), dtype=torch.float32)
            self.read(WEIGHTS, name, 0, whole)
            yield name, whole.reshape(shape)

    def restore_generators(self, rank: int) -> None:
        """Go on with the random numbers of ``rank``; one that there was not before keeps its own."""
        path = self._folder / f"rank-{rank:05d}-rng.safetensors"
        if path.exists():
            with safe_open(path, framework="pt") as file:
                torch.set_rng_state(file.get_tensor("cpu"))
                if torch.cuda.is_available() and "cuda" in file.keys():  # noqa: SIM118
                    torch.cuda.set_rng_state(file.get_tensor("cuda"))


def _refuse_others(stored: Shares, optimizer: Any, names: Mapping[int, str]) -> None:
    wanted = {names[id(p)]: list(p.ds_shape) for group in optimizer.fp16_groups for p in group}
    if wanted != stored.state.shapes:
        name = next(n for n in {**wanted, **stored.state.shapes} if wanted.get(n) != stored.state.shapes.get(n))
        raise ValueError(
            f"the checkpoint has parameter {name} in shape {stored.state.shapes.get(name, 'absent')}, the model in "
            f"shape {wanted.get(name, 'absent')}: it is of another model, or of other adapters"
        )


def _offsets(group: list[Any]) -> Iterator[tuple[Any, int]]:
    """The parameters of a sub group, and where each one's padded share lies in its flat tensors."""
    offset = 0
    for parameter in group:
        yield parameter, offset
        offset += parameter.partition_numel()


@contextmanager
def _resident(optimizer: Any, index: int, *, changed: bool) -> Iterator[None]:
    """A sub group whose state waits on NVMe is in memory within the block, and goes back with what was changed."""
    if not optimizer._swappable_optimizer_subgroup(index):
        yield
        return
    optimizer._optimizer_states_and_gradient_swap_in(index)
    try:
        yield
    finally:
        if changed:
            optimizer._optimizer_states_and_gradient_swap_out(index)
        else:
            optimizer._release_swap_buffers(index)
