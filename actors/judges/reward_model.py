"""Reward-model judge: a Hugging Face sequence classifier with one output scores whole conversations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from actors.faults import Faults
from actors.imports import lean_imports
from actors.judges.errors import JudgeError
from actors.judges.identity import model_identity
from actors.judges.rating import RatingActor, RatingPool, Value
from configs.judges import RewardModelJudge
from configs.schema import Deadlines, Group
from preference.reward_model import read_length
from preference.types import CandidateGroup, Prompt, Response, content_id


def batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Numbers of rows that go through the model together, longest first: rows x longest is at most ``budget``.

    A row that is longer than the budget goes alone.
    """
    found: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if found and (len(found[-1]) + 1) * lengths[found[-1][0]] <= budget:
            found[-1].append(i)
        else:
            found.append([i])
    return found


class Classifier:
    """A sequence classifier with one output, its tokenizer and chat template."""

    def __init__(self, judge: RewardModelJudge, device: torch.device | str = "cpu") -> None:
        """Raises JudgeError naming the field, what was found and the fix where the model cannot score responses."""
        with lean_imports():
            from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

        self._judge, self._device = judge, torch.device(device)
        path = judge.model
        try:
            settings = AutoConfig.from_pretrained(path)
            _refuse_unfit(judge, settings)
            self._tokenizer = AutoTokenizer.from_pretrained(path)
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                path, dtype=getattr(torch, judge.dtype), use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError) as error:
            raise JudgeError(f"judge.model = {judge.model} cannot be loaded: {error}") from error
        if missing := sorted(loading["missing_keys"]):
            raise JudgeError(f"judge.model = {judge.model} lacks weights ({', '.join(missing[:3])}): copy it anew")
        if not self._tokenizer.chat_template:
            raise JudgeError(
                f"judge.model = {judge.model} has no chat template, and scores depend on one: put the template it was "
                f"trained with into its directory as chat_template.jinja"
            )
        self._model: Any = model.to(self._device).eval().requires_grad_(False)
        # Decoders are read at one position of many; encoders pool by themselves, masks being all they need.
        self._reads = hasattr(model, "score")
        self._pad: int | None = settings.get_text_config().pad_token_id

    def encode(self, prompt: Prompt, text: str) -> list[int]:
        """The conversation with its answer under the model's own chat template, as far as the model reads it."""
        turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
        turns.append({"role": "assistant", "content": text})
        ids = list(self._tokenizer.apply_chat_template(turns, return_dict=False))
        return ids[: read_length(ids, self._pad)] if self._reads else ids

    def scores(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Each row's score: what the model gives for it alone, whatever it is batched with."""
        found = [math.nan] * len(rows)
        for batch in batches([len(row) for row in rows], self._judge.batch_tokens):
            for i, score in zip(batch, self._forward([rows[i] for i in batch]), strict=True):
                found[i] = score
        return found

    def _forward(self, rows: Sequence[Sequence[int]]) -> list[float]:
        lengths = torch.tensor([len(row) for row in rows])
        width = int(lengths.max())
        # Padded behind: under a causal mask no real token sees it, and what is masked is told by lengths, not by ids.
        filler = self._pad or 0
        ids = torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows], device=self._device)
        mask = (torch.arange(width) < lengths[:, None]).long().to(self._device)
        with torch.no_grad():
            if self._reads:
                hidden = self._model.base_model(ids, attention_mask=mask, use_cache=False).last_hidden_state
                ends = (torch.arange(len(rows)), lengths - 1)
                scores = self._model.score(hidden[ends])[:, 0]
            else:
                scores = self._model(ids, attention_mask=mask).logits[:, 0]
        values: list[float] = scores.float().tolist()
        return values


def _refuse_unfit(judge: RewardModelJudge, settings: Any) -> None:
    architecture = (settings.architectures or ["model of unknown architecture"])[0]
    if not architecture.endswith("ForSequenceClassification"):
        raise JudgeError(
            f"judge.model = {judge.model} is a {architecture}, which has no trained score: train a reward model from "
            f"it with `rondo reward-model`, or take kind=implicit for a model that DPO trained"
        )
    if settings.num_labels != 1:
        raise JudgeError(
            f"judge.model = {judge.model} has num_labels = {settings.num_labels} outputs, and which of them is better "
            f"is not known: take a reward model with num_labels = 1, or wrap this one in a rule (kind=rule)"
        )
    longest = getattr(settings.get_text_config(), "max_position_embeddings", None)
    if longest and judge.max_tokens > longest:
        raise JudgeError(
            f"judge.max_tokens = {judge.max_tokens} is more than judge.model = {judge.model} reads "
            f"(max_position_embeddings = {longest}): set judge.max_tokens={longest}"
        )


class RewardModelActor(RatingActor[RewardModelJudge]):
    """One copy of the model."""

    def _load(self, device: torch.device) -> str:
        self._classifier = Classifier(self._judge, device)
        return content_id("reward_model", model_identity(self._judge.model), self._judge.dtype)

    def _values(self, groups: Sequence[CandidateGroup]) -> list[list[Value]]:
        rows = [[self._row(group.prompt, response) for response in group.candidates] for group in groups]
        scores = iter(self._classifier.scores([row for found in rows for row in found if not isinstance(row, str)]))
        return [[row if isinstance(row, str) else next(scores) for row in found] for found in rows]

    def _row(self, prompt: Prompt, response: Response) -> list[int] | str:
        """The ids to score, or why there are none."""
        try:
            ids = self._classifier.encode(prompt, response.text)
        except Exception as error:  # templates raise what they like: roles that do not alternate, no system turn ...
            return f"the chat template refuses the conversation: {error}"
        longest = self._judge.max_tokens
        if len(ids) > longest:
            return f"{len(ids)} tokens are more than judge.max_tokens = {longest}: raise it, or shorten the responses"
        return ids or "nothing but padding under the chat template"


class RewardModelPool(RatingPool):
    """A ``Rater``."""

    def __init__(
        self, judge: RewardModelJudge, group: Group, deadlines: Deadlines, log_dir: Path, name: str, faults: Faults
    ) -> None:
        super().__init__(RewardModelActor, judge, group, deadlines, log_dir, name, faults)
