"""Pairs -> packed, prefix-shared batches.

A prompt and its responses share one stretch of a row, ``[prompt | response 1 | response 2]``: the prompt is computed
once, responses do not see each other, positions restart after the prompt. Several such stretches may share a row.
Only lengths decide what is padding; no token id is special.

A ``cell`` is what one rank computes in one micro-step. Reference actors score the very cells that the trainer will
train, so shapes, kernels and rounding agree and policy == reference gives a loss of exactly ln 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from preference.types import Pair, ScoredPair

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
class PackedRows:
    """R rows of T positions; N predicted tokens, listed example by example, response by response."""

    input_ids: Ints  # [R, T]
    position_ids: Ints  # [R, T], restarting after the prompt for every response
    group: Ints  # [R, T], number of the example within its row, -1 for padding
    branch: Ints  # [R, T], 0 in the prompt, k in response k
    source: Ints  # [N], flat position whose hidden state predicts the token
    target: Ints  # [N], the token predicted
    lengths: Ints  # [S], tokens of each response, S responses in order; sum = N

    @property
    def tokens(self) -> int:
        """Positions that are not padding."""
        return int((self.group >= 0).sum())

    @property
    def size(self) -> int:
        return int(self.input_ids.size)


def pack_rows(examples: Sequence[Example], layout: Sequence[Sequence[int]]) -> PackedRows:
    """Lay out ``examples[i] for i in layout[r]`` in row r. Every index appears once; N follows that order."""
    width = max(sum(examples[i].tokens for i in row) for row in layout)
    shape = (len(layout), width)
    input_ids, position_ids, branch = (np.zeros(shape, np.int64) for _ in range(3))
    group = np.full(shape, -1, np.int64)
    source: list[int] = []
    target: list[int] = []
    lengths: list[int] = []
    for r, row in enumerate(layout):
        at = 0
        for g, index in enumerate(row):
            example = examples[index]
            n = len(example.prompt)
            input_ids[r, at : at + n] = example.prompt
            position_ids[r, at : at + n] = np.arange(n)
            group[r, at : at + example.tokens] = g
            last_of_prompt = r * width + at + n - 1
            at += n
            for b, response in enumerate(example.responses, start=1):
                fed = len(response) - 1
                input_ids[r, at : at + fed] = response[:-1]
                position_ids[r, at : at + fed] = n + np.arange(fed)
                branch[r, at : at + fed] = b
                source += [last_of_prompt, *range(r * width + at, r * width + at + fed)]
                target += response
                lengths.append(len(response))
                at += fed
    return PackedRows(
        input_ids, position_ids, group, branch, *(np.array(x, np.int64) for x in (source, target, lengths))
    )


def plan_cells(tokens: Sequence[int], ranks: int, budget: int) -> list[list[list[list[int]]]]:
    """Which example goes into which row of which cell: ``plan[micro][rank]`` is a list of rows of example numbers.

    ``tokens[i]`` is example i's length; a cell holds at most ``budget`` positions, padding included. Rows are filled
    longest first up to the longest example, rows are dealt to cells evenly, and every rank gets the same number of
    micro-steps: a cell may be empty (``[]``), the caller fills it with weight zero. Deterministic in its arguments.
    Raises ValueError if one example exceeds the budget.
    """
    if not tokens:
        return []
    width = max(tokens)
    if width > budget:
        raise ValueError(
            f"an example of {width} tokens does not fit batching.micro_batch_tokens = {budget}: raise it to {width}"
        )
    rows: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(tokens)), key=lambda i: (-tokens[i], i)):
        slot = next((r for r, room in enumerate(free) if room >= tokens[index]), None)
        if slot is None:
            rows.append([])
            free.append(width)
            slot = len(rows) - 1
        rows[slot].append(index)
        free[slot] -= tokens[index]
    per_cell = budget // width
    micros = -(-len(rows) // (per_cell * ranks))
    # Longest rows first, dealt one to each rank in turn: within a micro-step ranks differ by at most one row.
    plan: list[list[list[list[int]]]] = []
    share = -(-len(rows) // micros)
    for m in range(micros):
        chunk = rows[m * share : (m + 1) * share]
        plan.append([chunk[rank::ranks] for rank in range(ranks)])
    return plan


@dataclass(frozen=True, slots=True)
class PairCell:
    """What one rank trains in one micro-step. Responses 2p and 2p + 1 of ``rows`` are pair p's chosen and rejected."""

    rows: PackedRows
    pairs: tuple[int, ...]  # numbers of the pairs in the batch, in the order of ``rows``; filler repeats a pair
    weights: Floats  # [P]: 1, or 0 for a filler that only keeps ranks in step
    sampler: Floats  # [N] log-probs the sampler reported for the same tokens
    reference: Floats  # [N] log-probs of the reference


@dataclass(frozen=True, slots=True)
class PairBatch:
    """One optimizer step: ``cells[micro][rank]``; every rank has a cell in every micro-step."""

    cells: tuple[tuple[PairCell, ...], ...]
    pairs: int

    def rank(self, rank: int) -> tuple[PairCell, ...]:
        return tuple(micro[rank] for micro in self.cells)

    @property
    def tokens(self) -> int:
        return sum(c.rows.tokens for micro in self.cells for c in micro if c.weights.any())

    @property
    def padding(self) -> float:
        """Share of computed positions that train nothing."""
        return 1 - self.tokens / sum(c.rows.size for micro in self.cells for c in micro)


@dataclass(frozen=True, slots=True)
class CellPlan:
    """Packed cells of a set of examples, and which example stands where."""

    cells: tuple[tuple[PackedRows, ...], ...]  # [micro][rank]
    members: tuple[tuple[tuple[int, ...], ...], ...]  # [micro][rank][k]: number of the k-th example of the cell
    filler: tuple[tuple[bool, ...], ...]  # [micro][rank]

    def real(self) -> list[tuple[int, int]]:
        """(micro, rank) of the cells that are not filler, in order."""
        return [(m, r) for m, row in enumerate(self.filler) for r, filler in enumerate(row) if not filler]

    def unpack(self, values: Sequence[Floats]) -> list[tuple[Floats, ...]]:
        """Per-token values [N] of every real cell -> for each example, one array a response."""
        found: dict[int, tuple[Floats, ...]] = {}
        for (m, r), tokens in zip(self.real(), values, strict=True):
            responses = iter(np.split(tokens, np.cumsum(self.cells[m][r].lengths)[:-1]))
            each = len(self.cells[m][r].lengths) // len(self.members[m][r])
            for number in self.members[m][r]:
                found[number] = tuple(next(responses) for _ in range(each))
        return [found[i] for i in range(len(found))]


def pair_example(pair: Pair) -> Example:
    return Example(pair.prompt.token_ids, (pair.chosen.token_ids, pair.rejected.token_ids))


def plan(examples: Sequence[Example], ranks: int, budget: int) -> CellPlan:
    """Pack ``examples`` (all with equally many responses) for ``ranks`` workers, at most ``budget`` positions a cell.

    Empty cells hold a copy of the shortest example as filler, so that ranks stay in step.
    """
    layouts = plan_cells([e.tokens for e in examples], ranks, budget)
    shortest = min(range(len(examples)), key=lambda i: examples[i].tokens, default=0)
    filled = [[cell or [[shortest]] for cell in micro] for micro in layouts]
    return CellPlan(
        cells=tuple(tuple(pack_rows(examples, rows) for rows in micro) for micro in filled),
        members=tuple(tuple(tuple(i for row in rows for i in row) for rows in micro) for micro in filled),
        filler=tuple(tuple(not cell for cell in micro) for micro in layouts),
    )


def collate(scored: Sequence[ScoredPair], ranks: int, budget: int) -> PairBatch:
    """Scored pairs -> the batch of one optimizer step. The layout depends on token counts alone."""
    layout = plan([pair_example(s.pair) for s in scored], ranks, budget)

    def cell(rows: PackedRows, pairs: tuple[int, ...], filler: bool) -> PairCell:
        members = [scored[i] for i in pairs]
        sampler = [x for s in members for x in (*s.pair.chosen.logprobs, *s.pair.rejected.logprobs)]
        reference = np.concatenate([a for s in members for a in (s.chosen_ref, s.rejected_ref)])
        weights = np.full(len(pairs), 0.0 if filler else 1.0, np.float32)
        return PairCell(rows, pairs, weights, np.array(sampler, np.float32), reference)

    return PairBatch(
        tuple(
            tuple(cell(*args) for args in zip(*micro, strict=True))
            for micro in zip(layout.cells, layout.members, layout.filler, strict=True)
        ),
        len(scored),
    )
