"""Human judge: people decide, through the web page, while the run goes on.

    submit(step) ──> store <── labels ── page <── people        collect(step) ──> answers ──> consumed(step)

The store outlives the run; it is not an actor's. Everything is idempotent by item: a resumed run submits and collects
again, and an answer counts as taken over only when the run says that its ledger has it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from configs.judges import HumanJudge
from configs.schema import Deadlines
from pipelines.annotate.items import AnnotationItem, Choice, Shown, Task
from pipelines.annotate.reading import read_gold
from pipelines.annotate.serving import ServerProcess, address, is_tls, listen, make_links
from pipelines.annotate.store import STORE_NAME, Decided, Given, Store, sqlite_url
from preference.types import (
    CandidateGroup,
    JudgeFailure,
    JudgeInfo,
    Judgement,
    Match,
    Outcome,
    Prompt,
    Rating,
    Response,
    Verdict,
    Vote,
    content_id,
)

_OUTCOMES = {
    Choice.FIRST: Outcome.FIRST,
    Choice.SECOND: Outcome.SECOND,
    Choice.TIE: Outcome.TIE,
    Choice.BOTH_BAD: Outcome.TIE,
}


@dataclass(frozen=True, slots=True)
class HumanAnswer:
    """What people decided about one item of ``step``."""

    id: str
    """The item's; what ``consumed`` takes."""
    step: int
    """The step that it was submitted for: an earlier one where the answer came late."""
    judgement: Judgement
    """A Verdict (mode pairs), a Rating: the share of thumbs up (mode labels), or a JudgeFailure: nobody could judge."""
    written: tuple[str, ...] = ()
    """Better responses that people wrote, as text."""
    both_bad: bool = False
    strength: float | None = None
    """How much better, 1 slightly to 3 much; mean of those who said."""
    labels: tuple[Given, ...] = ()
    """Whose answers it rests on, for feedback on the judgement's trace."""


def match_item(match: Match) -> AnnotationItem:
    """The question that a match is to people."""
    return _item(match.prompt, match.first, match.second)


def response_item(prompt: Prompt, response: Response) -> AnnotationItem:
    return _item(prompt, response)


def _item(prompt: Prompt, *responses: Response) -> AnnotationItem:
    return AnnotationItem(prompt.messages, tuple(Shown(r.id, r.text) for r in responses))


class HumanPool:
    """People as the judge of a run. It needs no actor: what waits is the run itself, what serves is a process."""

    name = "human"

    def __init__(
        self,
        judge: HumanJudge,
        run_dir: Path,
        deadlines: Deadlines,
        log_dir: Path,
        name: str,
        announce: Callable[[str], None],
        poll_s: float = 1.0,
    ) -> None:
        """Open the store and start the page's server, which ``ready`` waits for; raises AnnotationError.

        ``announce`` is told everybody's link, once: it must not end up in a log. ``poll_s``: how often the store is
        asked while waiting.
        """
        self._judge, self._deadlines, self._announce, self._poll_s = judge, deadlines, announce, poll_s
        task, gold = Task.of(judge), read_gold(judge)
        self._store = Store(judge.store or sqlite_url(run_dir / STORE_NAME))
        self._store.configure(task, run_dir.name, expecting=True)
        self._secret = self._store.state().secret
        self._store.add_gold(gold)
        self._store.add_people(judge.annotators, "annotator")
        self._store.add_people(judge.reviewers, "reviewer")
        self._asked: dict[int, tuple[str, ...]] = {}
        self._collecting: set[int] = set()
        self._delivered: dict[str, int] = {}  # late answers, and which step of this process got them
        self._server: ServerProcess | None = None
        if judge.serve:
            bound = listen(judge.host, judge.port)
            self._address = address(bound, judge.public_url)
            log_file = log_dir / f"{name}-server.log"
            self._server = ServerProcess(self._store.url, bound, log_file, is_tls(judge.public_url))
            self._server.keep_running()

    async def ready(self) -> None:
        if self._server is None:
            return
        await self._server.ready(self._deadlines.start_s)
        names = tuple(dict.fromkeys([*self._judge.annotators, *self._judge.reviewers]))
        links = await asyncio.to_thread(make_links, self._store, self._address, names)
        self._announce(
            "\n".join(["people judge here, each by their own link:", *(f"  {n}: {url}" for n, url in links)])
        )

    async def submit(self, step: int, matches: Sequence[Match]) -> None:
        """Ask people about these matches; what was submitted before is not asked again."""
        await self._submit(step, [match_item(m) for m in matches])

    async def submit_responses(self, step: int, groups: Sequence[CandidateGroup]) -> None:
        """The same in mode labels: about every candidate by itself."""
        await self._submit(step, [response_item(g.prompt, c) for g in groups for c in g.candidates])

    async def _submit(self, step: int, items: Sequence[AnnotationItem]) -> None:
        if step < 1:
            raise ValueError(f"steps are counted from 1, got {step}")
        known = self._asked.get(step, ())
        self._asked[step] = tuple(dict.fromkeys([*known, *(i.id for i in items)]))
        await asyncio.to_thread(self._store.add, items, step)

    async def collect(self, step: int) -> list[HumanAnswer]:
        """Wait for the quorum or the deadline; then what is decided and not consumed, of this step and earlier ones.

        Of what was submitted for ``step`` everything that is decided is returned, consumed or not, so that a step that
        is prepared again finds its answers. Two steps that wait at once never get the same late answer.
        """
        self._collecting.add(step)
        try:
            await self._wait(step)
            asked = set(self._asked.get(step, ()))
            found = {d.id: d for d in await asyncio.to_thread(self._store.decided, sorted(asked))}
            for late in await asyncio.to_thread(self._store.unconsumed, step):
                elsewhere = late.step != step and late.step in self._collecting
                if not elsewhere and self._delivered.setdefault(late.id, step) == step:
                    found[late.id] = late
        finally:
            self._collecting.discard(step)
        return [self._answer(d) for d in sorted(found.values(), key=lambda d: (d.step, d.id))]

    async def consumed(self, step: int, ids: Sequence[str]) -> None:
        """``step``'s ledger has these answers: they are not returned as late ones again, nor can they be undone."""
        await asyncio.to_thread(self._store.consume, step, ids)

    def close(self) -> None:
        """Stop the server. People find the page again under ``rondo annotate``."""
        if self._server is not None:
            self._server.close()
        self._store.finish()
        self._store.close()

    async def _wait(self, step: int) -> None:
        asked = self._asked.get(step, ())
        need = math.ceil(self._judge.quorum * len(asked))
        started = time.monotonic()
        while await asyncio.to_thread(self._store.count_decided, asked) < need:
            waited = time.monotonic() - started
            deadline = self._judge.deadline_s
            if deadline is not None and waited >= deadline and await self._any(step):
                return
            if self._server is not None:
                self._server.keep_running()
            await asyncio.sleep(self._poll_s)

    async def _any(self, step: int) -> bool:
        """A batch of nothing would train nothing: past the deadline, the first answer is still waited for."""
        if await asyncio.to_thread(self._store.count_decided, self._asked[step]):
            return True
        late = await asyncio.to_thread(self._store.unconsumed, step)
        return any(x.id not in self._delivered and x.step not in self._collecting for x in late)

    def _answer(self, decided: Decided) -> HumanAnswer:
        outcome, labels = decided.decision.outcome, decided.labels
        votes = tuple(Vote(self._pseudonym(g.annotator), g.choice.value, g.strength, g.seconds) for g in labels)
        seconds = sum(g.seconds for g in labels)
        reasons = "\n".join(dict.fromkeys(g.rationale for g in labels if g.rationale))
        ids = tuple(r.id for r in decided.item.responses)
        info = JudgeInfo(self.name, labels[-1].guidelines)  # which may have changed since, if the run was resumed
        judgement: Judgement
        if outcome is Choice.CANNOT_JUDGE:
            error = f"none of {len(labels)} people could judge" + (f": {reasons}" if reasons else "")
            judgement = JudgeFailure(ids, Outcome.ABSTAIN, error, info, seconds, votes=votes)
        elif len(ids) == 1:
            judgement = Rating(ids[0], decided.decision.probability, info, reasons, seconds, votes=votes)
        else:
            result = _OUTCOMES[outcome]
            # Divided votes that are a tie by the rules are one in the verdict's probability, too.
            probability = 0.5 if result is Outcome.TIE else decided.decision.probability
            judgement = Verdict(ids[0], ids[1], result, probability, info, False, reasons, seconds, votes=votes)
        strengths = [g.strength for g in labels if g.strength is not None]
        return HumanAnswer(
            decided.id,
            decided.step,
            judgement,
            tuple(dict.fromkeys(g.written for g in labels if g.written)),
            outcome is Choice.BOTH_BAD,
            fmean(strengths) if strengths else None,
            labels,
        )

    def _pseudonym(self, name: str) -> str:
        """What stands for a person outside of the store, whose secret is needed to make it of a name."""
        return f"annotator-{content_id(self._secret, name)[:8]}" if name else ""
