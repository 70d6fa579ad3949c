"""Items -> packed, prefix-shared batches.

A prompt and its responses share one stretch of a row, ``[prompt | response 1 | response 2]``: the prompt is computed
once, responses do not see each other, positions restart after the prompt (``preference.attention``). Stretches stand
end to end, so nothing is padded and no token id is special.

A ``cell`` is what one rank computes in one micro-step. Reference actors score the very cells that the trainer will
train, so shapes, kernels and rounding agree and policy == reference gives a DPO loss of exactly ln 2.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from preference.types import POLICY, REFERENCE, Candidate, Item, Pair, Response, Scored

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of a prompt and of the responses that share it."""

    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.prompt or not self.responses or not all(self.responses):
            raise ValueError(
                f"a packed example needs a prompt and non-empty responses; got a prompt of {len(self.prompt)} tokens "
                f"and responses of {[len(r) for r in self.responses]} tokens"
            )

    @property
    def tokens(self) -> int:
        """Positions it takes in a row. A response's last token is predicted but never fed."""
        return len(self.prompt) + sum(len(r) - 1 for r in self.responses)


@dataclass(frozen=True, slots=True)
class Packed:
    """E examples end to end in T positions; N predicted tokens, example by example, response by response."""

    input_ids: Ints  # [T]
    position_ids: Ints  # [T], restarting after the prompt for every response
    prompts: tuple[int, ...]  # tokens of each example's prompt
    lengths: Ints  # [S], tokens of each response, S responses in order; sum = N. Fed positions are one fewer.
    source: Ints  # [N], position whose hidden state predicts the token
    target: Ints  # [N], the token predicted

    @property
    def tokens(self) -> int:
        return len(self.input_ids)

    @property
    def responses_each(self) -> int:
        return len(self.lengths) // len(self.prompts)

    def split(self, values: Floats) -> list[tuple[Floats, ...]]:
        """Per-token values [N] -> for each example, one array a response."""
        responses = iter(np.split(values, np.cumsum(self.lengths)[:-1]))
        return [tuple(next(responses) for _ in range(self.responses_each)) for _ in self.prompts]


def pack(examples: Sequence[Example]) -> Packed:
    """Lay ``examples`` (all with equally many responses) end to end."""
    input_ids: list[int] = []
    position_ids: list[int] = []
    source: list[int] = []
    target: list[int] = []
    for e in examples:
        n = len(e.prompt)
        input_ids += e.prompt
        position_ids += range(n)
        last_of_prompt = len(input_ids) - 1
        for response in e.responses:
            at, fed = len(input_ids), len(response) - 1
            input_ids += response[:-1]
            position_ids += range(n, n + fed)
            source += [last_of_prompt, *range(at, at + fed)]
            target += response
    lengths = [len(r) for e in examples for r in e.responses]
    ids, positions, sizes, sources, targets = (
        np.array(x, np.int64) for x in (input_ids, position_ids, lengths, source, target)
    )
    return Packed(ids, positions, tuple(len(e.prompt) for e in examples), sizes, sources, targets)


def plan_cells(tokens: Sequence[int], ranks: int, budget: int) -> list[list[list[int]]]:
    """Which example goes into which cell: ``plan[micro][rank]`` lists example numbers.

    ``tokens[i]`` is example i's length; a cell holds at most ``budget`` positions. There are as few micro-steps as the
    budget allows; longest first into the emptiest cell, and cells of like size into one micro-step, so that ranks
    hardly wait for each other. Every rank gets the same number of micro-steps: a cell may be empty (``[]``), the
    caller fills it with weight zero. Deterministic in its arguments. Raises ValueError if one example exceeds the
    budget.
    """
    if not tokens:
        return []
    if max(tokens) > budget:
        raise ValueError(
            f"an example of {max(tokens)} tokens does not fit batching.micro_batch_tokens = {budget}: "
            f"raise it to {max(tokens)}"
        )
    longest_first = sorted(range(len(tokens)), key=lambda i: (-tokens[i], i))
    micros = -(-sum(tokens) // (ranks * budget))
    while True:
        cells: list[list[int]] = [[] for _ in range(micros * ranks)]
        loads = [(0, c) for c in range(len(cells))]
        for index in longest_first:
            load, cell = heapq.heappop(loads)
            cells[cell].append(index)
            heapq.heappush(loads, (load + tokens[index], cell))
        if max(load for load, _ in loads) <= budget:
            break
        micros += 1
    order = [cell for _, cell in sorted(loads, key=lambda x: (-x[0], x[1]))]
    return [[sorted(cells[c]) for c in order[m * ranks : (m + 1) * ranks]] for m in range(micros)]


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """A packed cell and the numbers of its examples, in order."""

    packed: Packed
    members: tuple[int, ...]
    filler: bool  # repeats an example, to keep ranks in step


@dataclass(frozen=True, slots=True)
class CellPlan:
    """Packed cells of a set of examples: ``cells[micro][rank]``."""

    cells: tuple[tuple[PlannedCell, ...], ...]

    @property
    def real(self) -> list[PlannedCell]:
        """The cells that are not filler, in order."""
        return [cell for micro in self.cells for cell in micro if not cell.filler]


def plan(examples: Sequence[Example], ranks: int, budget: int) -> CellPlan:
    """Pack ``examples`` (all with equally many responses) for ``ranks`` workers, at most ``budget`` positions a cell.

    Empty cells hold a copy of the shortest example as filler, so that ranks stay in step.
    """
    layouts = plan_cells([e.tokens for e in examples], ranks, budget)
    shortest = min(range(len(examples)), key=lambda i: examples[i].tokens, default=0)
    filled = [[cell or [shortest] for cell in micro] for micro in layouts]
    return CellPlan(
        tuple(
            tuple(PlannedCell(pack([examples[i] for i in members]), tuple(members), not cell) for cell, members in row)
            for row in (zip(layout, micro, strict=True) for layout, micro in zip(layouts, filled, strict=True))
        )
    )


@dataclass(frozen=True, slots=True)
class Cell:
    """What one rank trains in one micro-step: E items, all pairs (chosen, rejected) or all single responses."""

    packed: Packed
    items: Ints  # [E] numbers of the items in the batch; a filler repeats an item
    weights: Floats  # [E]: 1, or 0 for a filler that only keeps ranks in step
    desirable: NDArray[np.bool_]  # [S] a pair's chosen, or a single response that is wanted
    probability: Floats  # [E] the judge's P(chosen is better)
    tied: NDArray[np.bool_]  # [E] the judge saw no winner
    from_reference: Ints  # [E] +1 the reference wrote the chosen response, -1 the rejected one, 0 neither or both
    sampler: Floats  # [N] log-probs the sampler reported for the same tokens; nan where the policy did not
    reference: Floats  # [N] log-probs of the reference; nan without one


@dataclass(frozen=True, slots=True)
class Mismatched:
    """Prompts with responses to other prompts, of one rank and micro-step: what KTO estimates its z from."""

    packed: Packed
    weights: Floats  # [E]
    reference: Floats  # [N]


@dataclass(frozen=True, slots=True)
class Batch:
    """One optimizer step: ``cells[micro][rank]``; every rank has a cell in every micro-step."""

    cells: tuple[tuple[Cell, ...], ...]
    mismatched: tuple[tuple[Mismatched, ...], ...]  # empty for objectives that do not ask for them
    items: int

    def rank(self, rank: int) -> RankBatch:
        return RankBatch(tuple(m[rank] for m in self.cells), tuple(m[rank] for m in self.mismatched))

    @property
    def tokens(self) -> int:
        return sum(c.packed.tokens for micro in self.cells for c in micro if c.weights.any())

    @property
    def waiting(self) -> float:
        """Share of the ranks' time spent waiting for the longest cell of each micro-step, if time goes with tokens."""
        longest = sum(len(micro) * max(c.packed.tokens for c in micro) for micro in self.cells)
        return 1 - self.tokens / longest

    @property
    def size(self) -> StepSize:
        """Items, and tokens of desirable responses: what token-wise objectives are normalised by."""
        real = [c for micro in self.cells for c in micro if c.weights.any()]
        return StepSize(self.items, sum(int(c.packed.lengths[c.desirable].sum()) for c in real))


@dataclass(frozen=True, slots=True)
class StepSize:
    """What the sums of a step are divided by."""

    items: int
    desirable_tokens: int


@dataclass(frozen=True, slots=True)
class RankBatch:
    """One rank's share of a batch, micro-step by micro-step."""

    cells: tuple[Cell, ...]
    mismatched: tuple[Mismatched, ...]


def example(item: Item) -> Example:
    return Example(item.prompt.token_ids, tuple(r.token_ids for r in item.responses))


def mismatched_examples(items: Sequence[Item]) -> list[Example]:
    """Each item's prompt with the responses to a later item that has another prompt; empty if there is but one.

    Never a prompt's own response: that would pull the estimate of KL towards the learned preferences. Several
    items of a prompt get different others: each the one that is as many items on as prompts have at most.
    """
    found = []
    most = max(Counter(item.prompt.token_ids for item in items).values(), default=1)
    for i, item in enumerate(items):
        others = (items[(i + most + k) % len(items)] for k in range(len(items)))
        other = next((o for o in others if o.prompt.token_ids != item.prompt.token_ids), None)
        if other is not None:
            found.append(Example(item.prompt.token_ids, example(other).responses))
    return found


def collate(scored: Sequence[Scored], ranks: int, budget: int, mismatched: Sequence[tuple[Floats, ...]] = ()) -> Batch:
    """Scored items (all pairs or all labelled) -> the batch of one optimizer step. Token counts decide the layout.

    ``mismatched``: reference log-probs of ``mismatched_examples`` of the same items, where the objective wants them.
    """
    layout = plan([example(s.item) for s in scored], ranks, budget)
    others = (
        plan(mismatched_examples([s.item for s in scored]), ranks, budget) if mismatched else plan([], ranks, budget)
    )

    def other(cell: PlannedCell) -> Mismatched:
        reference = np.concatenate([a for i in cell.members for a in mismatched[i]])
        return Mismatched(cell.packed, _weights(cell), reference)

    return Batch(
        tuple(tuple(_cell(cell, [scored[i] for i in cell.members]) for cell in micro) for micro in layout.cells),
        tuple(tuple(other(cell) for cell in micro) for micro in others.cells),
        len(scored),
    )


def _weights(cell: PlannedCell) -> Floats:
    return np.full(len(cell.members), 0.0 if cell.filler else 1.0, np.float32)


def _cell(planned: PlannedCell, scored: Sequence[Scored]) -> Cell:
    items = [s.item for s in scored]
    responses = [r for item in items for r in item.responses]
    sampler = [_sampler_logps(r) for r in responses]
    return Cell(
        packed=planned.packed,
        items=np.array(planned.members, np.int64),
        weights=_weights(planned),
        desirable=np.array([d for item in items for d in _desirable(item)], np.bool_),
        probability=np.array([i.probability if isinstance(i, Pair) else 1.0 for i in items], np.float32),
        tied=np.array([isinstance(i, Pair) and i.tied for i in items], np.bool_),
        from_reference=np.array([_from_reference(i) for i in items], np.int64),
        sampler=np.array([x for logps in sampler for x in logps], np.float32),
        reference=np.concatenate([a for s in scored for a in s.reference]),
    )


def _sampler_logps(response: Response) -> tuple[float, ...]:
    """An opponent's are of other weights than those that are trained: there is nothing to compare them with."""
    if isinstance(response, Candidate) and response.player == POLICY:
        return response.logprobs
    return (float("nan"),) * len(response.token_ids)


def _desirable(item: Item) -> tuple[bool, ...]:
    return (True, False) if isinstance(item, Pair) else (item.desirable,)


def _from_reference(item: Item) -> int:
    written = [r.player == REFERENCE for r in item.responses]
    return 0 if len(written) < 2 else int(written[0]) - int(written[1])
