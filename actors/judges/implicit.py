"""Implicit-reward judge: beta x (log pi - log pi_ref) of two checkpoints, by the code of trainer and reference.

Source: Rafailov et al., "Direct Preference Optimization", arXiv 2305.18290, eq. 5: the reward that a DPO-trained policy
is optimal for, up to a term of the prompt alone, which no comparison of its responses depends on.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.faults import Faults
from actors.imports import lean_imports
from actors.judges.errors import JudgeError
from actors.judges.identity import model_identity
from actors.judges.rating import RatingActor, RatingPool, Value
from actors.zero import check_architecture
from configs.judges import ImplicitJudge
from configs.schema import Deadlines, Group, Model
from preference.batching import Example, plan
from preference.logprobs import LogProbModel, model_inputs
from preference.types import CandidateGroup, Prompt, Response, content_id

_CHUNK = 256  # completion positions projected onto the vocabulary at a time


class ImplicitReward:
    """A trained model and the one it was trained from."""

    def __init__(self, judge: ImplicitJudge, device: torch.device | str = "cpu") -> None:
        """Raises JudgeError naming the field, what was found and the fix where the two cannot be compared."""
        with lean_imports():
            from transformers import AutoModelForCausalLM

        self._judge, self._device = judge, torch.device(device)
        self._models = []
        vocabularies = []
        for field, path in (("model", judge.model), ("reference", judge.reference)):
            try:
                vocabularies.append(_vocabulary(Path(path)))
                check_architecture(Model(path=path), _CHUNK)
                lm = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, judge.dtype), use_safetensors=True)
            except (OSError, ValueError, RuntimeError) as error:
                raise JudgeError(f"judge.{field} = {path} cannot be used: {error}") from error
            self._models.append(LogProbModel(lm.to(self._device).eval().requires_grad_(False), _CHUNK))
        if vocabularies[0] != vocabularies[1]:
            raise JudgeError(
                f"judge.reference = {judge.reference} has another vocabulary than judge.model = {judge.model}, so that "
                f"log-probs of the same tokens cannot be compared: give the model that training started from"
            )

    def rewards(self, examples: Sequence[Example]) -> list[tuple[float, ...]]:
        """One reward a response of every example; each example fits ``judge.batch_tokens``."""
        found: dict[int, tuple[float, ...]] = {}
        alike: dict[int, list[int]] = defaultdict(list)  # packing wants as many responses in every example
        for i, e in enumerate(examples):
            alike[len(e.responses)].append(i)
        for numbers in alike.values():
            for cell in plan([examples[i] for i in numbers], 1, self._judge.batch_tokens).real:
                with torch.no_grad():
                    inputs = model_inputs(cell.packed, self._device)
                    policy, reference = (model(**inputs)[0].float().cpu().numpy() for model in self._models)
                ratios = cell.packed.split(policy - reference)
                found |= {numbers[i]: tuple(map(self._reward, r)) for i, r in zip(cell.members, ratios, strict=True)}
        return [found[i] for i in range(len(examples))]

    def _reward(self, ratios: Any) -> float:
        """Of one response's log-ratios, a token each."""
        total = float(np.sum(ratios, dtype=np.float64))
        return self._judge.beta * (total / len(ratios) if self._judge.length_normalised else total)


def _vocabulary(model: Path) -> tuple[int | None, str]:
    """Which id means what, as far as files tell; two models that agree in it can score the same ids."""
    size = json.loads((model / "config.json").read_text(encoding="utf-8")).get("vocab_size")
    if not (model / "tokenizer.json").is_file():
        return size, ""
    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    return size, content_id(tokenizer["model"].get("vocab"), [t["content"] for t in tokenizer.get("added_tokens", [])])


class Tokens:
    """Responses as token ids of the judge's tokenizer: those that were sampled, where they are its own."""

    def __init__(self, model: str) -> None:
        with lean_imports():
            from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(model)
        generation = Path(model) / "generation_config.json"
        settings = json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else {}
        stops = settings.get("eos_token_id", [])
        self._stops = {self._tokenizer.eos_token_id, *(stops if isinstance(stops, list) else [stops])}

    def prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """The prompt's ids under the judge's chat template; as they are where it has none."""
        if not self._tokenizer.chat_template:
            return prompt.token_ids
        turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
        return tuple(self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))

    def response(self, prompt: Prompt, prompt_ids: tuple[int, ...], response: Response) -> tuple[int, ...]:
        """The response's ids; raises ValueError where it cannot follow the prompt."""
        ids = response.token_ids
        own = prompt.token_ids == prompt_ids and max(ids, default=0) < len(self._tokenizer)
        if own and self._tokenizer.decode(list(ids), skip_special_tokens=True).strip() == response.text.strip():
            return ids
        return self._encoded(prompt, prompt_ids, response)

    def _encoded(self, prompt: Prompt, prompt_ids: tuple[int, ...], response: Response) -> tuple[int, ...]:
        """Up to the end of the turn, or without it where the response was cut off."""
        if not self._tokenizer.chat_template:
            ids = (*self._tokenizer.encode(response.text, add_special_tokens=False), self._tokenizer.eos_token_id)
        else:
            turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
            turns.append({"role": "assistant", "content": response.text})
            whole = tuple(self._tokenizer.apply_chat_template(turns, return_dict=False))
            if whole[: len(prompt_ids)] != prompt_ids:
                raise ValueError("the chat template does not render the answer behind its generation prompt")
            ids = whole[len(prompt_ids) :]
        end = next((i for i, t in enumerate(ids) if t in self._stops), len(ids))
        return ids[: end + 1] if response.finished else ids[:end]


@dataclass(frozen=True, slots=True)
class _Ready:
    """A response that can be scored: where its result belongs, and its ids."""

    group: int
    place: int
    ids: tuple[int, ...]


class ImplicitActor(RatingActor[ImplicitJudge]):
    """One copy of both models."""

    def _load(self, device: torch.device) -> str:
        judge = self._judge
        self._reward = ImplicitReward(judge, device)
        self._tokens = Tokens(judge.model)
        models = [model_identity(path) for path in (judge.model, judge.reference)]
        return content_id("implicit", *models, judge.dtype, judge.beta, judge.length_normalised)

    def _values(self, groups: Sequence[CandidateGroup]) -> list[list[Value]]:
        values: list[list[Value]] = []
        examples: list[Example] = []
        owners: list[Sequence[_Ready]] = []
        for number, group in enumerate(groups):
            prompt_ids, encoded = self._encoded(group)
            values.append([e if isinstance(e, str) else "" for e in encoded])
            ready = [_Ready(number, i, ids) for i, ids in enumerate(encoded) if not isinstance(ids, str)]
            for members in self._together(prompt_ids, ready):
                owners.append(members)
                examples.append(Example(prompt_ids, tuple(m.ids for m in members)))
        for members, rewards in zip(owners, self._reward.rewards(examples), strict=True):
            for member, reward in zip(members, rewards, strict=True):
                values[member.group][member.place] = reward
        return values

    def _encoded(self, group: CandidateGroup) -> tuple[tuple[int, ...], list[tuple[int, ...] | str]]:
        """The prompt's ids and each candidate's, or why it has none."""
        try:
            prompt_ids = self._tokens.prompt(group.prompt)
        except Exception as error:  # templates raise what they like
            return (), [f"the chat template refuses the prompt: {error}"] * len(group.candidates)
        return prompt_ids, [self._ids(group.prompt, prompt_ids, c) for c in group.candidates]

    def _ids(self, prompt: Prompt, prompt_ids: tuple[int, ...], response: Response) -> tuple[int, ...] | str:
        try:
            ids = self._tokens.response(prompt, prompt_ids, response)
        except Exception as error:  # templates raise what they like
            return f"the chat template refuses the conversation: {error}"
        if not ids:
            return "the response is empty"
        size, room = Example(prompt_ids, (ids,)).tokens, self._judge.batch_tokens
        return ids if size <= room else f"{size} tokens are more than judge.batch_tokens = {room}: raise it"

    def _together(self, prompt_ids: tuple[int, ...], ready: Sequence[_Ready]) -> list[Sequence[_Ready]]:
        """All in one row behind their prompt; each in a row of its own where that is too long."""
        if ready and Example(prompt_ids, tuple(r.ids for r in ready)).tokens <= self._judge.batch_tokens:
            return [ready]
        return [[r] for r in ready]


class ImplicitPool(RatingPool):
    """A ``Rater``."""

    def __init__(
        self, judge: ImplicitJudge, group: Group, deadlines: Deadlines, log_dir: Path, name: str, faults: Faults
    ) -> None:
        super().__init__(ImplicitActor, judge, group, deadlines, log_dir, name, faults)
