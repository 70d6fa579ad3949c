"""Decisions, leases, gold items and counters, whatever people do in whatever order."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import threading
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import insert, select

from pipelines.annotate.assignment import Leased, next_item, progress, recognise
from pipelines.annotate.commit import GroupCommit
from pipelines.annotate.items import AnnotationError, Answer, Choice, Task, choice_of, decide, disagree, verdict_of
from pipelines.annotate.labelling import Refused, label, skip, undo
from pipelines.annotate.limits import RateLimit
from pipelines.annotate.people import Secret, new_code, open_session
from pipelines.annotate.store import Gold, Store, sqlite_url
from pipelines.annotate.tables import items, labels, leases, people, tasks
from tests.unit.annotating import Clock, Site, item, store

F, S, T, B, C = Choice.FIRST, Choice.SECOND, Choice.TIE, Choice.BOTH_BAD, Choice.CANNOT_JUDGE


# -- decisions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "outcome", "share"),
    [
        ([F], F, 1.0),
        ([S], S, 0.0),
        ([F, F, S], F, 2 / 3),
        ([F, S], T, 0.5),
        ([F, T], T, 0.75),  # no majority
        ([F, F, T, T], T, 0.75),
        ([F, C], F, 1.0),
        ([C, C], C, 0.5),
        ([B, B, T], B, 0.5),
        ([B, T], T, 0.5),
        ([F, S, B], B, 0.5),
        ([Choice.UP, Choice.DOWN, Choice.UP], Choice.UP, 2 / 3),
        ([Choice.UP, Choice.DOWN], T, 0.5),
    ],
)
def test_decisions(answers, outcome, share) -> None:
    decided = decide(answers)
    assert decided.outcome is outcome
    assert decided.probability == pytest.approx(share)


choices = st.lists(st.sampled_from([F, S, T, B, C]), min_size=1, max_size=7)


@given(choices)
def test_a_decision_does_not_depend_on_which_response_is_first(answers) -> None:
    other = {F: S, S: F}
    mirrored = decide([other.get(a, a) for a in answers])
    decided = decide(answers)
    assert mirrored.outcome is other.get(decided.outcome, decided.outcome)
    assert mirrored.probability == pytest.approx(1 - decided.probability)


@given(choices)
def test_who_agrees_decides_that(answers) -> None:
    if not disagree(answers) and set(answers) != {C}:
        said = [a for a in answers if a is not C]
        assert decide(answers).outcome in said


@given(st.sampled_from([F, S, T, B, C]), st.booleans())
def test_verdicts_by_side_and_back(choice, swapped) -> None:
    verdict = verdict_of(choice, "pairs", swapped)
    assert choice_of(verdict, "pairs", swapped) is choice
    assert choice_of(verdict_of(F, "pairs", True), "pairs", True) is F
    assert verdict_of(F, "pairs", True) == "right"


# -- gold items and the qualification round --------------------------------------------------------------------------


def with_gold(directory: Path, count: int, **rules) -> Site:
    site = Site(store(directory, 3, **rules))
    site.store.add_gold([Gold(item(100 + i), Choice.FIRST) for i in range(count)])
    return site


def test_who_qualifies_goes_on_to_the_items(tmp_path) -> None:
    site = with_gold(tmp_path, 5, qualification=4, qualification_accuracy=0.75)
    ann = site.visitor("ann")
    for choice in "aaba":
        ann.choose(choice)
    assert {ann.choose("a") for _ in range(3)} == {item(i).id for i in range(3)}
    assert ann.post("next")["reason"] == "done"


def test_who_does_not_qualify_gets_no_more(tmp_path) -> None:
    site = with_gold(tmp_path, 5, qualification=2, qualification_accuracy=1.0)
    ann = site.visitor("ann")
    ann.choose("a")
    last = ann.choose("b")
    assert ann.post("next")["reason"] == "disqualified"
    assert "qualification" in ann.post("undo", 409)["error"]
    assert "qualification" in ann.post("label", 409, item=item(0).id, verdict="tie")["error"]
    assert ann.post("label", item=last, verdict=sideways(site, last, "b"))["kept"]  # the same again is no new label
    assert site.store.counts().decided == 0


def sideways(site: Site, id: str, winner: str) -> str:
    person = site.store.read(lambda db: db.execute(select(people.c.id)).scalar_one())
    return verdict_of({"a": F, "b": S}[winner], "pairs", site.store.state().swapped(id, person))


def test_before_the_round_is_over_labels_of_other_items_do_not_count(tmp_path) -> None:
    site = with_gold(tmp_path, 2, qualification=2)
    ann = site.visitor("ann")
    assert ann.post("label", 409, item=item(0).id, verdict="tie")["kept"] is False
    assert site.store.counts().open == 3


def test_gold_items_are_mixed_in_and_nobody_can_tell(tmp_path) -> None:
    site = with_gold(tmp_path, 4, gold_share=0.999)
    ann, rev = site.visitor("ann"), site.visitor("rev", "reviewer")
    shown = ann.post("next")["item"]
    assert shown["id"] in {item(100 + i).id for i in range(4)}
    plain = site.visitor("bob")
    ann.choose("b")
    assert ann.post("next")["progress"]["mine"] == 1
    assert set(shown) == set(plain.post("next")["item"])
    found = rev.get("agreement")["annotators"][0]["gold"]
    assert (found["hits"], found["n"]) == (0, 1)


def test_several_people_may_hold_one_gold_item(tmp_path) -> None:
    site = with_gold(tmp_path, 1, qualification=1)
    ann, bob = site.visitor("ann"), site.visitor("bob")
    assert ann.next() == bob.next() == item(100).id


# -- whatever people do ----------------------------------------------------------------------------------------------


class Crowd(RuleBasedStateMachine):
    """Three people on a small store, with time going by; a model of who has labelled what beside it."""

    OVERLAP = 2

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="rondo-test-")
        self.store = store(Path(self.directory.name), 4, overlap=self.OVERLAP, lease_s=10.0)
        self.store.add_people(["rev"], "reviewer")
        self.now, self.step = 1000.0, 0
        self.given: dict[tuple[int, str], Choice] = {}
        self.last: dict[int, list[str]] = {i: [] for i in range(3)}
        self.consumed: set[str] = set()
        self.sessions: list[Secret] = []
        for name in ("ann", "bob", "cat"):
            self.store.add_people([name], "annotator")
            code = self.store.write(lambda db, name=name: new_code(db, name, self.now))
            session = self.store.write(lambda db, code=code: open_session(db, code, self.now))
            assert session is not None
            self.sessions.append(session)

    def act(self, who: int, what) -> object:
        def work(db):
            known = recognise(db, self.sessions[who], self.now)
            assert known is not None
            return what(db, *known)

        return self.store.write(work)

    @rule(who=st.integers(0, 2))
    def take(self, who: int) -> None:
        found = self.act(who, lambda db, p, s: next_item(db, p, s, self.now))
        if isinstance(found, Leased):
            assert (who, found.id) not in self.given

    @rule(who=st.integers(0, 2), number=st.integers(0, 3), choice=st.sampled_from([F, S, T, C]))
    def say(self, who: int, number: int, choice: Choice) -> None:
        """Of any item, held or not, labelled or not."""
        id = item(number).id
        try:
            self.act(who, lambda db, p, s: label(db, p, s, id, Answer(choice), 1.0, self.now))
        except Refused:
            return
        assert self.given.setdefault((who, id), choice) is choice
        if id not in self.last[who]:
            self.last[who].append(id)

    @rule(who=st.integers(0, 2))
    def take_back(self, who: int) -> None:
        try:
            found = self.act(who, lambda db, p, s: undo(db, p, s, self.now))
        except Refused:
            assert not self.last[who] or self.last[who][-1] in self.consumed
            return
        assert isinstance(found, Leased)
        assert found.id == self.last[who].pop()
        del self.given[who, found.id]

    @rule(who=st.integers(0, 2), number=st.integers(0, 3))
    def pass_over(self, who: int, number: int) -> None:
        self.act(who, lambda db, p, s: skip(db, p, item(number).id))

    @rule(seconds=st.integers(1, 12))
    def time_goes_by(self, seconds: int) -> None:
        self.now += seconds

    @precondition(lambda self: self.step < 3)
    @rule()
    def consume(self) -> None:
        self.step += 1
        decided = [d.id for d in self.store.unconsumed(1)]
        assert not set(decided) & self.consumed
        self.store.consume(self.step, decided)
        self.consumed |= set(decided)

    @invariant()
    def counters_say_what_the_labels_say(self) -> None:
        def check(db) -> None:
            standing = db.execute(select(labels).where(labels.c.undone.is_(None))).all()
            assert len(standing) == len(self.given)
            by_item = Counter(r.item for r in standing)
            held = Counter(db.execute(select(leases.c.item)).scalars())
            rows = db.execute(select(items)).all()
            for r in rows:
                assert r.labels == by_item[r.id]
                assert r.slots == self.OVERLAP - r.labels - held[r.id]
                answers = [c for (_, id), c in self.given.items() if id == r.id]
                if r.id in self.consumed:
                    assert r.state == "decided"
                elif len(answers) < self.OVERLAP:
                    assert (r.state, r.outcome) == ("open", None)
                elif disagree(answers):
                    assert r.state == "conflict"
                else:
                    assert (r.state, r.outcome) == ("decided", decide(answers).outcome)
            task = db.execute(select(tasks)).one()
            assert (task.total, task.open) == (len(rows), sum(r.state == "open" for r in rows))
            for person in db.execute(select(people).where(people.c.role == "annotator")):
                assert person.labels == sum(r.person == person.id for r in standing)
                assert person.seconds == sum(r.seconds for r in standing if r.person == person.id)

        self.store.read(check)

    @invariant()
    def what_remains_is_what_one_has_not_labelled(self) -> None:
        for who in range(3):
            known = self.store.read(lambda db, who=who: recognise(db, self.sessions[who], self.now))
            if known is None:
                continue  # the session is over
            person, state = known
            made = self.store.read(lambda db, p=person, s=state: progress(db, p, s))
            counts = Counter(id for _, id in self.given)
            open_items = {item(i).id for i in range(4) if counts[item(i).id] < self.OVERLAP}
            assert made.remaining == len({i for i in open_items if (who, i) not in self.given} - self.consumed)

    def teardown(self) -> None:
        self.store.close()
        self.directory.cleanup()


TestCrowd = Crowd.TestCase
TestCrowd.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (1, 3), (3, 2)])
def test_another_overlap_holds_for_items_that_nothing_has_learned_from(tmp_path, before, after) -> None:
    site = Site(store(tmp_path, 3, overlap=before))
    for name in ("ann", "bob", "cat")[:before]:
        visitor = site.visitor(name)
        visitor.label("tie")
        visitor.label("tie")
    site.store.consume(1, [item(0).id])
    site.store.configure(Task("pairs", "g", gold_share=0.0, overlap=after), "test", expecting=False)
    states = site.store.read(lambda db: db.execute(select(items.c.state).order_by(items.c.seq)).scalars().all())
    assert states == ["decided", "decided" if before >= after else "open", "open"]
    assert site.store.state().open == states.count("open")
    dan = site.visitor("dan")
    offered = [dan.label() for _ in range(states.count("open"))]
    assert item(0).id not in offered
    assert dan.post("next")["item"] is None


def test_adding_an_item_twice_is_adding_it_once(tmp_path) -> None:
    made = store(tmp_path, 3)
    assert made.add([item(0), item(5), item(5)], step=2) == 1
    assert (made.counts().items, made.counts(1).items, made.counts(2).items) == (4, 3, 1)
    with pytest.raises(AnnotationError, match="mode is pairs"):
        made.add([item(0, "labels")])
    made.close()


def test_many_items_at_once(tmp_path) -> None:
    made = store(tmp_path, 0)
    many = [item(i) for i in range(1500)]
    assert made.add(many, step=1) == 1500
    assert made.add(many, step=2) == 0
    assert made.count_decided([i.id for i in many]) == 0
    made.close()


# -- durability ------------------------------------------------------------------------------------------------------


def test_a_commit_is_on_the_disk(tmp_path) -> None:
    """Write-ahead log, and a sync with every commit."""
    made = store(tmp_path, 1)
    pragmas = {name: made.write(lambda db, n=name: db.exec_driver_sql(f"PRAGMA {n}").scalar()) for name in
               ("journal_mode", "synchronous", "foreign_keys", "secure_delete")}  # fmt: skip
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "secure_delete": 1}
    made.close()


def test_jobs_are_committed_together_and_a_broken_one_alone_fails(tmp_path) -> None:
    made = store(tmp_path, 0)
    transactions = 0
    write = made.write

    def counting(work):
        nonlocal transactions
        transactions += 1
        return write(work)

    made.write = counting  # type: ignore[method-assign]
    blocked, go = threading.Event(), threading.Event()

    def first(db):
        blocked.set()
        go.wait(30)

    def adding(number: int):
        def work(db) -> int:
            db.execute(insert(people).values(name=f"p{number}", role="annotator"))
            if number == 3:
                raise Refused(409, "no")  # before it writes, by contract; here after, to see that the others stand
            if number == 5:
                raise sqlite3.OperationalError("broken")
            return number

        return work

    async def run() -> list[object]:
        commit = GroupCommit(made)
        holding = asyncio.create_task(commit.submit(first))
        await asyncio.to_thread(blocked.wait)  # the writer is busy: what comes now waits together
        waiting = [asyncio.create_task(commit.submit(adding(n))) for n in range(10)]
        await asyncio.sleep(0)
        go.set()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        await holding
        await asyncio.to_thread(commit.close)
        return found

    found = asyncio.run(run())
    assert [f for f in found if isinstance(f, int)] == [0, 1, 2, 4, 6, 7, 8, 9]
    assert isinstance(found[3], Refused)
    assert isinstance(found[5], sqlite3.OperationalError)
    names = made.read(lambda db: db.execute(select(people.c.name)).scalars().all())
    assert {"p0", "p9"} <= set(names)
    assert "p5" not in names
    assert transactions == 1 + 1 + 10  # the first, all together in vain, each by itself
    made.close()


def test_a_store_that_is_no_database_is_refused(tmp_path) -> None:
    (tmp_path / "x.db").write_text("this is no database, but long enough to be read as the header of one" * 10)
    with pytest.raises(AnnotationError, match="not a database"):
        Store(sqlite_url(tmp_path / "x.db"))
    with pytest.raises(AnnotationError, match="memory"):
        Store("sqlite://")
    with pytest.raises(AnnotationError, match="no database URL"):
        Store("nonsense")
    with pytest.raises(AnnotationError) as caught:
        Store("postgresql+psycopg://user:secret@127.0.0.1:1/x")
    assert "secret" not in str(caught.value)


# -- rate limits -----------------------------------------------------------------------------------------------------


def test_a_bucket_refills() -> None:
    clock = Clock()
    limit = RateLimit(per_second=2, burst=3, clock=clock)
    assert [limit.allows("a") for _ in range(4)] == [True, True, True, False]
    assert limit.allows("b")
    clock.now += 1
    assert [limit.allows("a") for _ in range(3)] == [True, True, False]
    clock.now -= 100  # a clock that is set back takes nothing away
    assert not limit.allows("a")
    clock.now += 1000
    assert [limit.allows("a") for _ in range(4)] == [True, True, True, False]


def test_buckets_are_bounded() -> None:
    limit = RateLimit(per_second=1, burst=1, clock=Clock(), keys=2)
    assert limit.allows("a")
    assert not limit.allows("a")
    limit.allows("b")
    limit.allows("c")
    assert limit.allows("a")  # forgotten
