"""One OpenAI-compatible endpoint: asked politely, retried patiently, never beyond the budget."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2
import openai
from pydantic import ValidationError

from actors.judges.completions import Completion, Dialect, chat_messages, most_output, read_answer
from actors.judges.errors import JudgeError, JudgeUnauthorised
from actors.judges.metering import Budget, Pace, Sleep, Usage
from actors.judges.questions import Question, Questionnaire
from actors.judges.replies import Reply, Unanswered
from configs.judges import HttpJudge
from preference.types import content_id

LONGEST_PAUSE = 120.0
"""Seconds; an endpoint that asks for more than this is not waited for."""
_FIRST_PAUSE, _GROWTH = 0.5, 2.0
_AGAIN = (408, 409, 429)
_MESSAGE_TOKENS = 64  # that a chat template may put around a message


class Endpoint:
    """Questions to one model at one endpoint. The key is in the client and in no message or record."""

    def __init__(
        self, judge: HttpJudge, questions: Questionnaire, key: str, spent: float = 0.0, *, sleep: Sleep = asyncio.sleep
    ) -> None:
        """``spent`` is what earlier attempts of the run have cost. Raises JudgeError on ambiguous answers."""
        self._judge, self._key, self._sleep = judge, key, sleep
        self._labels, self._rationale = questions.labels, questions.rationale
        for label in self._labels:
            if longer := [other for other in self._labels if other != label and other.startswith(label)]:
                raise JudgeError(
                    f"judge.template: an answer that begins with {label!r} may be {label!r} or {longer[0]!r}, which an "
                    f"endpoint's tokens do not tell apart: choose other verdicts"
                )
        self._definition = questions.definition(judge.url, judge.model)
        # Retries are ours: each of them has to pass the rate limit, the budget and the deadline.
        self._client = openai.AsyncOpenAI(base_url=judge.url, api_key=key or "none", max_retries=0)
        self._slots = asyncio.Semaphore(judge.concurrency)
        self._pace = Pace(judge.requests_per_minute, sleep)
        self._budget = Budget(judge.budget, spent)
        self._dialect = Dialect()
        self._usage = Usage(cost=spent)
        self._stopped: JudgeError | None = None

    @property
    def usage(self) -> Usage:
        return replace(self._usage, cost=self._budget.spent)

    async def ask(self, question: Question) -> Reply:
        """The model's answer, or why there is none. Raises JudgeError where no question can be answered any more."""
        started, cost, failures = time.monotonic(), 0.0, list[_Failed]()
        for attempt in range(self._judge.retries + 1):
            if attempt:
                await self._pause(attempt, failures[-1])
            async with self._slots:
                if self._stopped is not None:
                    raise self._stopped
                try:
                    completion, paid = await self._attempt(question)
                except JudgeError as error:
                    self._stopped = error
                    raise
                except _Failed as failed:
                    failures.append(failed)
                    cost += failed.cost
                    if failed.final:
                        break
                    continue
            reply = read_answer(completion, self._labels, self._rationale)
            return replace(reply, seconds=time.monotonic() - started, cost=cost + paid)
        tried = f" ({len(failures)} attempts)" if len(failures) > 1 else ""
        return Unanswered(f"{self._judge.url}: {failures[-1]}{tried}", time.monotonic() - started, cost)

    async def _attempt(self, question: Question) -> tuple[Completion, float]:
        """A completion and its cost. Raises _Failed, which says whether to try again, or JudgeError."""
        messages = chat_messages(question)
        # A token is a byte at least; so this is more than it can cost.
        most_input = sum(len(m["content"].encode()) + _MESSAGE_TOKENS for m in messages)
        most = self._price(most_input, most_output(self._rationale))
        await self._budget.reserve(most)
        cost = most  # what happened to a request that is broken off is unknown: it may be billed
        try:
            await self._pace.wait()
            completion = await self._understood(content_id(self._definition, question.id), messages)
            if completion.usage is not None:
                tokens_in, tokens_out = completion.usage.prompt_tokens, completion.usage.completion_tokens
                cost = self._price(tokens_in, tokens_out)
                self._usage = replace(
                    self._usage,
                    input_tokens=self._usage.input_tokens + tokens_in,
                    output_tokens=self._usage.output_tokens + tokens_out,
                )
            return completion, cost
        except _Failed as failed:
            cost = most if failed.maybe_billed else 0.0
            failed.cost = cost
            raise
        except JudgeError:
            cost = 0.0
            raise
        finally:
            await self._budget.settle(most, cost)

    async def _understood(self, key: str, messages: list[dict[str, str]]) -> Completion:
        """Send in the endpoint's dialect, learning it from refusals."""
        while True:
            dialect = self._dialect
            try:
                return await self._send(key, messages, dialect)
            except _Misunderstood as refusal:
                adapted = dialect.adapted(str(refusal))
                if adapted is None:
                    raise _Failed(f"answered {refusal.status}: {refusal}", final=True) from None
                if self._dialect == dialect:  # else another request has found out more by now
                    self._dialect = adapted

    async def _send(self, key: str, messages: list[dict[str, str]], dialect: Dialect) -> Completion:
        self._usage = replace(self._usage, requests=self._usage.requests + 1)
        try:
            async with asyncio.timeout(self._judge.timeout_s):
                raw = await self._client.chat.completions.with_raw_response.create(
                    model=self._judge.model,
                    messages=messages,  # type: ignore[arg-type]
                    timeout=self._judge.timeout_s,
                    # The same question has the same key, so an endpoint that knows the header bills it once.
                    extra_headers={"Idempotency-Key": key},
                    **dialect.options(most_output(self._rationale)),
                )
            return Completion.model_validate_json(raw.content)
        except (TimeoutError, openai.APITimeoutError):
            raise _Failed(
                f"no answer within judge.timeout_s = {self._judge.timeout_s:g} s", maybe_billed=True
            ) from None
        except openai.APIStatusError as error:
            raise self._refusal(error) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            reached = not isinstance(cause, httpx2.ConnectError)
            raise _Failed(f"connection failed: {self._shown(repr(cause))}", maybe_billed=reached) from None
        except (ValidationError, openai.OpenAIError, UnicodeDecodeError) as error:
            what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise _Failed(f"answered no chat completion: {self._shown(what)}", maybe_billed=True) from None

    def _refusal(self, error: openai.APIStatusError) -> Exception:
        """What a status other than 200 means."""
        status, message = (
            error.status_code,
            self._shown(error.message.removeprefix(f"Error code: {error.status_code} - ")),
        )
        if status in (401, 402, 403) or error.code == "insufficient_quota":
            source = self._judge.api_key_env or self._judge.api_key_file
            where = f"the key in {source}" if source else "judge.api_key_env or judge.api_key_file, none is set"
            return JudgeUnauthorised(f"judge.url {self._judge.url} answered {status}: {message}; check {where}")
        if status == 404:
            return JudgeError(
                f"judge.url {self._judge.url} answered 404 for judge.model {self._judge.model}: {message}; check both"
            )
        if status in _AGAIN or status >= 500:
            after = _retry_after(error.response.headers.get("retry-after", ""))
            if after > LONGEST_PAUSE:
                return _Failed(f"answered {status} and asks to wait {after:.0f} s: {message}", final=True)
            return _Failed(f"answered {status}: {message}", after=after)
        return _Misunderstood(status, message)

    async def _pause(self, attempt: int, failed: _Failed) -> None:
        self._usage = replace(self._usage, retries=self._usage.retries + 1)
        if failed.after:
            self._pace.hold(failed.after)  # for every request: they would meet the same
        grown = min(_FIRST_PAUSE * _GROWTH ** (attempt - 1), LONGEST_PAUSE)
        # At least as long as asked for, and jittered, so that requests that failed together do not come back together.
        await self._sleep(failed.after + grown * random.uniform(0.5, 1.0))

    def _price(self, tokens_in: int, tokens_out: int) -> float:
        return (tokens_in * self._judge.price_in + tokens_out * self._judge.price_out) / 1e6

    def _shown(self, message: str) -> str:
        """A message of the endpoint's, fit for a log: without the key, which some repeat, and not endless."""
        return (message.replace(self._key, "***") if self._key else message)[:500]


class _Failed(Exception):
    """An attempt that brought no completion."""

    def __init__(self, message: str, *, after: float = 0.0, final: bool = False, maybe_billed: bool = False) -> None:
        super().__init__(message)
        self.after = after
        """Seconds that the endpoint asks to wait."""
        self.final = final
        self.maybe_billed = maybe_billed
        self.cost = 0.0


class _Misunderstood(Exception):
    """The endpoint refuses the request as it is written."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def _retry_after(header: str) -> float:
    """Seconds of a Retry-After header (RFC 9110, 10.2.3: a number or a date); 0 where there is none."""
    if header.strip().isdecimal():
        return float(header)
    try:
        return max((parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return 0.0
