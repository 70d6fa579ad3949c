"""Responses that do not come in the policy's tokens: another model's with its own tokenizer, a data set's, by text.

prompt ──its own chat template──> another model ──> text ──the policy's template──> Written | unusable, and why
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.data.encode import Encoder, model_encoder
from pipelines.data.report import Unfit
from pipelines.data.rules import DataRules
from pipelines.prompts import PromptError, PromptSet, load_tokenizer, parse_line
from preference.types import Candidate, Prompt, Response, Written, content_id

RESPONSE = "response"  # field of a prompt's record


class Unusable(ValueError):
    """A response that cannot stand in a group; the message says why."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Most tokens of what stands in a group: longer ones would not fit where the configuration made sure of it."""

    response: int  # sampling.max_tokens
    context: int  # sampling.max_model_len


class Translator:
    """Between another model and the policy."""

    def __init__(self, name: str, theirs: Any, ours: Encoder, limits: Limits, *, same: bool) -> None:
        """``theirs``: the other model's tokenizer; ``same``: it has the policy's tokens and template."""
        self._name, self._theirs, self._ours, self._limits, self._same = name, theirs, ours, limits, same

    def prompt(self, prompt: Prompt) -> Prompt:
        """The prompt in the other model's tokens. Raises Unusable where it refuses the conversation or is too short."""
        if self._same:
            return prompt
        turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
        try:
            ids = self._theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        except Exception as error:  # templates raise what they like
            raise Unusable(f"its chat template refuses the prompt: {error}") from None
        if len(ids) + self._limits.response > self._limits.context:
            raise Unusable(f"the prompt has {len(ids)} of its tokens: no room within sampling.max_model_len")
        return replace(prompt, token_ids=tuple(ids))

    def response(self, prompt: Prompt, candidate: Candidate) -> Response:
        """What it answered, for the policy to learn from: as sampled where it can be, else by its text."""
        if self._same:
            if max(candidate.token_ids) >= self._ours.vocab_size:
                raise Unusable(f"it sampled a token that the policy has not: {max(candidate.token_ids)}")
            return replace(candidate, player=self._name)
        ids = encoded(self._ours, prompt, candidate.text)
        if candidate.finished and len(ids) <= self._limits.response:
            return Written(candidate.id, prompt.id, ids, candidate.text, self._name)
        ids = ids[:-1][: self._limits.response]  # cut off where the policy's own would be, and no end of a turn
        if not ids:
            raise Unusable("nothing of the response is left in the policy's tokens")
        return Written(candidate.id, prompt.id, ids, self._ours.text(ids), self._name, finished=False)


def encoded(encoder: Encoder, prompt: Prompt, text: str) -> tuple[int, ...]:
    """Ids of a response under the policy's template, its end of turn included. Raises Unusable."""
    if not text.strip():
        raise Unusable("the response is empty")
    try:
        return encoder.response_ids(prompt, text)
    except Unfit as error:
        raise Unusable(str(error)) from None


def translator(name: str, path: str, policy: str, limits: Limits) -> Translator:
    """For the model in ``path``, beside the policy's in ``policy``."""
    ours, theirs = load_tokenizer(policy), load_tokenizer(path)
    return Translator(name, theirs, model_encoder(policy, DataRules()), limits, same=same_tokens(ours, theirs))


def same_tokens(one: Any, other: Any) -> bool:
    """Whether two tokenizers make the same ids of every conversation."""
    return _identity(one) == _identity(other)


def _identity(tokenizer: Any) -> tuple[object, ...]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return text, tokenizer.chat_template, tokenizer.eos_token_id


# -- the data's own --------------------------------------------------------------------------------------------------


def check_responses(path: str | Path) -> None:
    """Raise PromptError, with file and line, where a prompt has no response of its own."""
    with Path(path).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    _response(parse_line(line)[2])
                except ValueError as error:
                    raise PromptError(f"{path}:{number}: {error}; opponents name player: data") from None


def _response(meta: str) -> str:
    text = json.loads(meta).get(RESPONSE)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f'field "{RESPONSE}" is missing or not a text')
    return text


def data_responses(
    prompts: PromptSet, path: str, encoder: Encoder, limits: Limits, *, stop: bool, say: Callable[[str], None]
) -> tuple[PromptSet, dict[str, Written]]:
    """The prompts that have a usable response of their own, and these by prompt id.

    The others are counted and left out, or with ``stop`` (``prompts.too_long``) raise PromptError, as do none at all.
    """
    found: dict[str, Written] = {}
    left_out: list[str] = []
    for prompt in prompts.prompts.values():
        text = _response(prompt.meta)
        try:
            ids = encoded(encoder, prompt, text)
            if len(ids) > limits.response:
                raise Unusable(f"{len(ids)} tokens, more than sampling.max_tokens = {limits.response}")
        except Unusable as error:
            left_out.append(f"{prompt.id} ({error})")
        else:
            found[prompt.id] = Written(content_id("written", prompt.id, ids), prompt.id, ids, text)
    if left_out and (stop or not found):
        raise PromptError(
            f"{path}: {len(left_out)} responses of the data cannot be used: {'; '.join(left_out[:3])}; raise "
            f"sampling.max_tokens or shorten them"
        )
    if left_out:
        say(f"{len(left_out)} prompts are left out, whose own response cannot be used: {'; '.join(left_out[:3])}")
    return PromptSet({i: prompts.prompts[i] for i in found}, prompts.too_long + tuple(left_out)), found
