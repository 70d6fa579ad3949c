"""Text -> token ids, once, through the model's chat template: prompt and response are joined on ids.

template(prompt, generation prompt)  =  P
template(prompt + response)          =  P R tail        anything else is a template mismatch
kept                                 =  P R             R ends with its end-of-turn token, as if it was sampled
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipelines.data.records import Context, Graded, Parsed, Preference
from pipelines.data.report import Change, Reason, Unfit
from pipelines.data.rules import DataError, DataRules
from pipelines.prompts import load_tokenizer
from preference.types import Item, Labelled, Message, Pair, Prompt, Written, content_id


class Encoder:
    """A tokenizer under the rules of one load. ``notes`` says what is odd about tokenizer and model."""

    def __init__(self, tokenizer: Any, vocab_size: int, eos_ids: Iterable[int], rules: DataRules) -> None:
        """``eos_ids``: ids at which the model stops sampling, besides the tokenizer's EOS."""
        self.rules, self.vocab_size = rules, vocab_size
        self.chat = rules.template == "chat" and bool(tokenizer.chat_template)
        self._tokenizer = tokenizer
        stops = set(eos_ids) | ({tokenizer.eos_token_id} - {None})
        if not stops:
            raise DataError("neither the tokenizer nor the model has an EOS token: set eos_token in its configuration")
        self._eos = int(tokenizer.eos_token_id if tokenizer.eos_token_id is not None else min(stops))
        self._closing = closing = _closing(tokenizer) if self.chat else []
        turn_end = closing[0] if closing else None
        self._ends = frozenset(stops if turn_end is None else stops | {turn_end})
        self._template_ends = sum(t in self._ends for t in closing)
        self.notes = tuple(_oddities(tokenizer, vocab_size, stops, turn_end))

    def item(self, parsed: Parsed) -> tuple[Item, tuple[Change, ...]]:
        """A trainable item and what was changed to make it one; raises Unfit."""
        context = parsed.context
        texts = (parsed.chosen, parsed.rejected) if isinstance(parsed, Preference) else (parsed.response,)
        if not all(t.strip() for t in texts):
            raise Unfit(Reason.EMPTY_RESPONSE)
        changes: set[Change] = set()
        messages = (Message("user", context.prompt),) if isinstance(context.prompt, str) else context.prompt
        if self.chat:
            prompt, responses = self._through_template(context, messages, texts, changes)
        else:
            prompt, responses = self._as_it_stands(context, texts, changes)
        self._check_vocabulary(prompt, *responses)
        if len(responses) == 2 and responses[0] == responses[1]:
            raise Unfit(Reason.IDENTICAL)
        prompt, responses = fit(prompt, responses, self.rules, self._tokenizer.bos_token_id, changes)
        item = _assemble(parsed, messages, prompt, responses)
        return item, tuple(c for c in Change if c in changes)

    def _through_template(
        self, context: Context, messages: tuple[Message, ...], texts: Sequence[str], changes: set[Change]
    ) -> tuple[list[int], list[list[int]]]:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        tools = json.loads(context.tools) if context.tools else None
        prompt = self._render(turns, tools, answered=False)
        responses = []
        for text in texts:
            full = self._render([*turns, {"role": "assistant", "content": text}], tools, answered=True)
            if full[: len(prompt)] != prompt:
                raise Unfit(Reason.TEMPLATE_MISMATCH)
            responses.append(self._end_once(full[len(prompt) :], changes))
        return prompt, responses

    def _render(self, turns: list[dict[str, str]], tools: Any, answered: bool) -> list[int]:
        try:
            ids = self._tokenizer.apply_chat_template(
                turns, tools=tools, add_generation_prompt=not answered, return_dict=False
            )
        except Exception as error:  # templates raise what they like: roles that do not alternate, no system turn ...
            raise Unfit(Reason.TEMPLATE_REFUSED, str(error)) from None
        return list(ids)

    def _as_it_stands(
        self, context: Context, texts: Sequence[str], changes: set[Change]
    ) -> tuple[list[int], list[list[int]]]:
        if not isinstance(context.prompt, str):
            raise ValueError(
                "the record is a conversation, but there is no chat template to render it: use a model with one, "
                "template=chat, or give prompt and responses as text"
            )
        prompt = list(self._tokenizer.encode(context.prompt))
        responses = []
        for text in texts:
            ids = list(self._tokenizer.encode(text, add_special_tokens=False))
            responses.append(self._end_once([*ids, self._eos], changes))
        return prompt, responses

    def _end_once(self, ids: list[int], changes: set[Change]) -> list[int]:
        """``ids`` up to and including the first end-of-turn token, where sampling would have stopped."""
        first = next((i for i, t in enumerate(ids) if t in self._ends), None)
        if first is None:
            match self.rules.missing_eos:
                case "drop":
                    raise Unfit(Reason.MISSING_EOS)
                case "keep":
                    changes.add(Change.EOS_MISSING)
                    return ids
                case "append":
                    changes.add(Change.EOS_APPENDED)
                    return [*ids, self._eos]
        tail = [t for t in ids[first + 1 :] if t not in self._ends]
        if tail and self._tokenizer.decode(tail, skip_special_tokens=True).strip():
            raise Unfit(Reason.EOS_INSIDE)
        if first == 0:
            raise Unfit(Reason.EMPTY_RESPONSE)
        # Some templates end the turn and then the conversation: both are theirs, whatever comes on top is not.
        if len(ids) - first - len(tail) > max(self._template_ends, 1):
            changes.add(Change.DOUBLE_EOS)
        return ids[: first + 1]

    def response_ids(self, prompt: Prompt, text: str) -> tuple[int, ...]:
        """Ids of a response that follow the prompt's own; raises Unfit where the template does not join them."""
        changes: set[Change] = set()
        rendered, (ids,) = self._through_template(Context("", prompt.messages), prompt.messages, [text], changes)
        if tuple(rendered) != prompt.token_ids:
            raise Unfit(Reason.TEMPLATE_MISMATCH)
        self._check_vocabulary(ids)
        return tuple(ids)

    def text(self, ids: Sequence[int]) -> str:
        """What ids of a response say, without control tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def closed(self, response: Sequence[int]) -> tuple[int, ...]:
        """A response's ids up to where the template ends a whole conversation: the end of the turn and what follows."""
        body = response[:-1] if response[-1] in self._ends else response
        return (*body, *self._closing)

    def _check_vocabulary(self, *parts: Sequence[int]) -> None:
        beyond = sorted({t for ids in parts for t in ids if t >= self.vocab_size})
        if beyond:
            raise Unfit(Reason.OUT_OF_VOCABULARY, f"ids {beyond[:3]} >= {self.vocab_size}")


@lru_cache(maxsize=2)
def model_encoder(model_path: str, rules: DataRules) -> Encoder:
    """The encoder of a model directory; raises DataError where its configuration lacks what is needed."""
    model = Path(model_path)
    try:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        generation = model / "generation_config.json"
        generating = json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else {}
        tokenizer = load_tokenizer(model_path)
    except (OSError, ValueError) as error:
        raise DataError(f"{model}: no usable model configuration or tokenizer: {error}") from None
    vocabulary = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    if not isinstance(vocabulary, int):
        raise DataError(f"{model / 'config.json'} has no vocab_size")
    stops = generating.get("eos_token_id", config.get("eos_token_id"))
    eos_ids = [] if stops is None else [int(stops)] if isinstance(stops, int) else [int(s) for s in stops]
    return Encoder(tokenizer, vocabulary, eos_ids, rules)


def fit(
    prompt: list[int], responses: list[list[int]], rules: DataRules, bos: int | None, changes: set[Change]
) -> tuple[list[int], list[list[int]]]:
    """Prompt and responses within the rules' limits, cut only as the rules allow; raises Unfit.

    A prompt that loses its start keeps its ``bos``, which models attend to more than to anything else.
    """
    longest = max(len(r) for r in responses)
    if rules.truncation == "cut_prompt_start":
        room = min(rules.max_prompt_tokens, rules.max_prompt_tokens + rules.max_response_tokens - longest)
        if len(prompt) > room:
            head = prompt[:1] if prompt[0] == bos else []
            if room <= len(head):
                raise Unfit(Reason.RESPONSE_TOO_LONG, f"{longest} tokens leave no room for the prompt")
            prompt = head + prompt[len(prompt) - room + len(head) :]
            changes.add(Change.PROMPT_CUT)
    else:
        if rules.truncation == "keep_start" and longest > rules.max_response_tokens:
            responses = [r[: rules.max_response_tokens] for r in responses]
            changes.add(Change.RESPONSE_CUT)
            if len(responses) == 2 and responses[0] == responses[1]:
                raise Unfit(Reason.IDENTICAL, "after cutting")
        check_limits(len(prompt), [len(r) for r in responses], rules)
    check_budget(len(prompt), [len(r) for r in responses], rules)
    return prompt, responses


def check_limits(prompt: int, responses: Sequence[int], rules: DataRules) -> None:
    """Lengths in tokens against the limits of prompt and response; raises Unfit."""
    if prompt > rules.max_prompt_tokens:
        raise Unfit(Reason.PROMPT_TOO_LONG, f"{prompt} tokens")
    if max(responses) > rules.max_response_tokens:
        raise Unfit(Reason.RESPONSE_TOO_LONG, f"{max(responses)} tokens")


def check_budget(prompt: int, responses: Sequence[int], rules: DataRules) -> None:
    """Lengths in tokens against the limit of an item; raises Unfit."""
    total = prompt + sum(responses)
    if rules.max_item_tokens and total > rules.max_item_tokens:
        raise Unfit(Reason.ITEM_TOO_LONG, f"{total} tokens")


def _assemble(parsed: Parsed, messages: tuple[Message, ...], prompt: list[int], responses: list[list[int]]) -> Item:
    """Equal conversations get equal prompt ids, so that items of one prompt can be told."""
    context = parsed.context
    turns = [(m.role, m.content) for m in messages]
    name = content_id("prompt", turns, context.tools)
    asked = Prompt(name, messages, tuple(prompt), context.meta)

    def written(ids: list[int], text: str) -> Written:
        return Written(content_id("written", name, ids), name, tuple(ids), text)

    if isinstance(parsed, Preference):
        chosen, rejected = written(responses[0], parsed.chosen), written(responses[1], parsed.rejected)
        own = context.id or content_id("pair", chosen.id, rejected.id)
        return Pair(own, asked, chosen, rejected, parsed.margin, parsed.probability, parsed.tied)
    return _labelled(parsed, asked, written(responses[0], parsed.response))


def _labelled(parsed: Graded, prompt: Prompt, response: Written) -> Labelled:
    own = parsed.context.id or content_id("labelled", response.id, parsed.desirable)
    return Labelled(own, prompt, response, parsed.desirable)


def _closing(tokenizer: Any) -> list[int]:
    """Ids from the special token that ends the assistant's turn in the template to the last; none where it has none."""
    turns = [{"role": "user", "content": "a"}]
    try:
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        full = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": "b"}], return_dict=False)
    except Exception:  # a template that wants more than one user turn: its stop ids have to do
        return []
    special = set(tokenizer.all_special_ids)
    special |= {int(i) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    response = list(full[len(prompt) :]) if full[: len(prompt)] == prompt else []
    for i, token in enumerate(response):
        if i > 0 and token in special and not tokenizer.decode(response[i:], skip_special_tokens=True).strip():
            return response[i:]
    return []


def _oddities(tokenizer: Any, vocab_size: int, stops: set[int], turn_end: int | None) -> Iterable[str]:
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocab_size:
        yield (
            f"the tokenizer has ids up to {largest}, the model's vocabulary ends at {vocab_size - 1}: "
            f"records with ids beyond it are left out"
        )
    if turn_end is not None and turn_end not in stops:
        end = tokenizer.convert_ids_to_tokens(turn_end)
        yield (
            f"the chat template ends a turn with {end} (id {turn_end}), at which the model does not stop sampling "
            f"(stop ids {sorted(stops)}): add it to eos_token_id in generation_config.json"
        )
