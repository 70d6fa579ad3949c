"""Bounded staleness: never older than allowed, never stuck, always refilled, in whatever order things happen."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from preference.admission import Admission, AdmissionRules, Stage
from preference.admission_rules import AdmissionError
from preference.types import Fate
from preference.waiting import WaitClock


def admit_all(admission):
    return [admission.admit() for _ in range(admission.admissible())]


@st.composite
def all_rules(draw, steps=None):
    batch, staleness = draw(st.integers(1, 5)), draw(st.integers(0, 4))
    order = draw(st.sampled_from(["admitted", "in_time", "finished"]))
    spare = draw(st.integers(0, 3)) if order == "finished" else 0
    least = batch + (1 if staleness else 0)
    queue = draw(st.none() | st.integers(least, 30))
    replaced = draw(st.none() | st.integers(0, 6))
    return AdmissionRules(batch, staleness, order, spare, queue, steps, replaced)


class Anything(RuleBasedStateMachine):
    """Any interleaving of what a loop may do; a model that only counts beside it."""

    @initialize(rules=all_rules(), done=st.integers(0, 3))
    def start(self, rules, done):
        self.rules, self.admission = rules, Admission(rules, done)
        self.flight, self.held = {}, {}  # ticket -> version
        self.served = self.taken = done
        self.late = False
        self.empty_from = None

    def pick(self, data_index):
        tickets = sorted(self.flight)
        return tickets[data_index % len(tickets)]

    def forget(self, tickets):
        for ticket in tickets:
            assert self.flight.pop(ticket, None) is not None or self.held.pop(ticket, None) is not None

    @rule(count=st.integers(1, 8))
    def admit(self, count):
        for _ in range(min(count, self.admission.admissible())):
            self.flight[self.admission.admit()] = self.served

    @precondition(lambda self: self.flight)
    @rule(which=st.integers(0, 99), stage=st.sampled_from(Stage))
    def moves_on(self, which, stage):
        self.admission.entered(self.pick(which), stage)

    @precondition(lambda self: self.flight)
    @rule(which=st.integers(0, 99), newer=st.booleans())
    def finishes(self, which, newer):
        ticket = self.pick(which)
        version = self.flight.pop(ticket)
        if newer:  # it waited in the engine's queue: the stamped version is that of its first token
            version = self.served
        assert self.admission.finished(ticket, version if newer else None)
        self.held[ticket] = version

    @precondition(lambda self: self.flight)
    @rule(which=st.integers(0, 99))
    def is_sampled_anew(self, which):
        ticket = self.pick(which)
        self.admission.restarted(ticket)
        self.flight[ticket] = self.served

    @precondition(lambda self: self.flight)
    @rule(which=st.integers(0, 99), fate=st.sampled_from([Fate.JUDGE_FAILED, Fate.TIED]))
    def is_lost(self, which, fate):
        ticket = self.pick(which)
        del self.flight[ticket]
        before = self.admission.fates[fate]
        self.admission.lost(ticket, fate)
        assert self.admission.fates[fate] == before + 1

    @rule(age=st.integers(0, 6))
    def arrives_late(self, age):
        version = max(0, self.taken - age)
        ticket = self.admission.restored(version)
        assert (ticket is None) == (self.taken - version > self.rules.max_staleness)
        if ticket is not None:
            self.held[ticket] = version
            self.late = True

    @rule()
    def trainer_takes(self):
        batch = self.admission.take()
        if batch is None:
            assert self.admission.trainer_waits_for() is not None
            return
        self.taken += 1
        assert batch.step == self.taken
        versions = [self.held.pop(t) for t in batch.tickets]
        assert batch.ages == tuple(self.taken - 1 - v for v in versions)
        assert all(0 <= age <= self.rules.max_staleness for age in batch.ages)
        assert len(batch.tickets) == self.rules.batch or self.rules.max_replaced is not None
        self.forget(batch.stale)
        if self.rules.order != "finished" and not self.late:
            assert batch.stale == ()

    @precondition(lambda self: self.served < self.taken)
    @rule(data=st.data())
    def samplers_serve(self, data):
        self.served = data.draw(st.integers(self.served + 1, self.taken))
        self.admission.now_served(self.served)

    @invariant()
    def capacity_is_what_is_left(self):
        if not hasattr(self, "rules"):
            return
        a, r = self.admission, self.rules
        assert a.in_flight == len(self.flight)
        empty = a.ready - len(self.held)
        assert empty == 0 or r.max_replaced is not None
        last = self.served + 1 + r.max_staleness
        room = (last - self.taken) * r.batch + r.spare if last > self.taken else 0
        if r.queue is not None:
            room = min(room, r.queue)
        assert a.admissible() == max(0, room - len(self.flight) - a.ready)
        assert sum(a.in_stage.values()) == len(self.flight)
        least = self.taken - r.max_staleness
        assert all(v >= least for v in [*self.flight.values(), *self.held.values()])

    def teardown(self):
        """From wherever this got, a fair schedule takes three more steps."""
        if not hasattr(self, "rules"):
            return
        for _ in range(3):
            self.step_is_taken()

    def step_is_taken(self):
        for _ in range(3 + len(self.flight) + len(self.held)):
            if (batch := self.admission.take()) is not None:
                assert all(age <= self.rules.max_staleness for age in batch.ages)
                for ticket in batch.stale:
                    self.flight.pop(ticket, None)
                return
            if self.admission.served < self.admission.taken:
                self.admission.now_served(self.admission.taken)
            for ticket in list(self.flight):
                self.admission.finished(ticket)
            self.flight = dict.fromkeys(admit_all(self.admission), 0)
        raise AssertionError(f"stuck: {self.admission.describe()}")


Anything.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnything = Anything.TestCase


def run_timed(rules, seed, *, fails=0.0, beside=False, tail=1.5):
    """A loop in simulated time: heavy-tailed stages, failures, one trainer."""
    draw = random.Random(seed)
    admission = Admission(rules)
    now, training, number, events, batches = 0.0, False, 0, [], []
    running = set()  # prompts being sampled
    overlap = 0  # prompts sampled while the trainer works

    def at(seconds, what, argument):
        nonlocal number
        number += 1
        events.append((now + seconds, number, what, argument))

    def fill():
        for ticket in admit_all(admission):
            running.add(ticket)
            at(draw.paretovariate(tail), "sampled", ticket)

    def take():
        nonlocal training
        if not training and (batch := admission.take()):
            batches.append(batch)
            training = True
            running.difference_update(batch.stale)
            at(draw.uniform(0.5, 3), "trained", batch.step)

    fill()
    while len(batches) < rules.steps:
        assert events, f"stuck: {admission.describe()}"
        events.sort(reverse=True)
        now, _, what, argument = events.pop()
        if what == "sampled":
            running.discard(argument)
            if draw.random() < fails:
                admission.lost(argument, Fate.TIED)
            else:
                admission.entered(argument, Stage.JUDGE)
                at(draw.expovariate(5), "judged", argument)
        elif what == "judged":
            admission.finished(argument)
        elif what == "trained":
            training = not beside
            at(0.2, "served", argument)
        else:
            admission.now_served(argument)
            training = training and beside
        overlap += bool(running) and training
        fill()
        assert admission.admissible() == 0
        take()
    return admission, batches, overlap


@settings(deadline=None, max_examples=60)
@given(all_rules(steps=12), st.integers(0, 10**6), st.sampled_from([0.0, 0.4]), st.booleans())
def test_in_time_it_is_never_too_old_and_never_stuck(rules, seed, fails, beside):
    admission, batches, _ = run_timed(rules, seed, fails=fails, beside=beside)
    assert [b.step for b in batches] == list(range(1, 13))
    assert max(admission.ages) <= rules.max_staleness
    if rules.order != "finished":
        assert admission.fates[Fate.STALE] == 0
    if rules.max_replaced is None:
        assert sum(admission.ages.values()) == 12 * rules.batch


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(0, 10**6), st.booleans())
def test_without_staleness_sampling_and_training_alternate(batch, seed, beside):
    _, batches, overlap = run_timed(AdmissionRules(batch, 0, steps=8), seed, beside=beside)
    assert overlap == 0
    assert all(b.ages == (0,) * batch for b in batches)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(0, 4), st.integers(0, 10**6))
def test_in_the_order_of_admission_timing_does_not_shape_batches(batch, staleness, seed):
    _, batches, _ = run_timed(AdmissionRules(batch, staleness, steps=6), seed, tail=0.6)
    assert [t for b in batches for t in b.tickets] == list(range(1, 6 * batch + 1))


def test_stragglers_are_dropped_counted_and_replaced_where_nothing_waits_for_them():
    rules = AdmissionRules(8, 1, "finished", spare=4, steps=60)
    admission, batches, _ = run_timed(rules, 1, tail=0.5)
    assert admission.fates[Fate.STALE] == sum(len(b.stale) for b in batches) > 10
    assert sum(admission.ages.values()) == 60 * 8
    assert set(admission.ages) == {0, 1}
    waits = AdmissionRules(8, 1, "in_time", steps=60)
    assert run_timed(waits, 1, tail=0.5)[0].fates[Fate.STALE] == 0


def test_the_arithmetic_of_two_steps_by_hand():
    a = Admission(AdmissionRules(batch=4, max_staleness=1))
    assert a.admissible() == 8  # (0 + 1 + 1 - 0) x 4
    tickets = admit_all(a)
    assert (a.admissible(), a.sampler_waits_for()) == (0, "trainer")
    for ticket in tickets[:3]:
        a.finished(ticket)
    assert a.take() is None
    a.lost(tickets[7], Fate.JUDGE_FAILED)
    assert a.admissible() == 1  # its place is open again
    a.finished(tickets[3])
    assert a.take().tickets == tuple(tickets[:4])
    assert a.admissible() == 1  # (0 + 1 + 1 - 1) x 4 - 3 in flight: training opened no place yet
    a.now_served(1)
    assert a.admissible() == 5  # (1 + 1 + 1 - 1) x 4 - 3
    newer = admit_all(a)
    for ticket in (*tickets[4:7], *newer):
        a.finished(ticket)
    second = a.take()
    assert second.tickets == (*tickets[4:7], newer[0])
    assert second.ages == (1, 1, 1, 0)


def test_a_batch_in_time_waits_exactly_for_those_that_would_grow_too_old():
    a = Admission(AdmissionRules(batch=2, max_staleness=1, order="in_time"))
    one, two, three, four = admit_all(a)
    for ticket in (three, four):
        a.finished(ticket)
    assert a.take().tickets == (three, four)  # one and two still have step 2
    a.now_served(1)
    five, six = admit_all(a)
    for ticket in (five, six):
        a.finished(ticket)
    assert a.take() is None  # step 2 is the last for one and two
    assert a.trainer_waits_for() is Stage.SAMPLE
    a.finished(one)
    assert a.take() is None
    a.finished(two)
    assert a.take().tickets == (one, two)


def test_a_run_samples_nothing_for_steps_that_it_does_not_have():
    a = Admission(AdmissionRules(batch=3, max_staleness=4, steps=2))
    assert a.admissible() == 6
    for step in (1, 2):
        for ticket in admit_all(a):
            a.finished(ticket)
        assert a.take().step == step
        a.now_served(step)
    assert a.admissible() == 0
    assert a.take() is None


def test_what_an_earlier_attempt_left_is_trained_first_and_takes_up_places():
    a = Admission(AdmissionRules(batch=2, max_staleness=1), done=5)
    assert a.restored(3) is None  # two versions behind
    kept = [a.restored(4), a.restored(5)]
    assert a.admissible() == 2
    fresh = admit_all(a)
    for ticket in fresh:
        a.finished(ticket)
    batch = a.take()
    assert (batch.step, list(batch.tickets), batch.ages) == (6, kept, (1, 0))
    assert a.fates == Counter({Fate.STALE: 1})


def test_a_policy_that_only_ties_trains_short_batches():
    a = Admission(AdmissionRules(batch=2, max_staleness=0, max_replaced=5))
    for _ in range(5):
        a.lost(admit_all(a)[0] if a.in_flight == 0 else next(iter(a._flight)), Fate.TIED)
    assert a.take() is None
    admit_all(a)
    for ticket in list(a._flight):
        a.lost(ticket, Fate.TIED)
    batch = a.take()
    assert batch is not None
    assert len(batch.tickets) < 2
    assert a.fates[Fate.TIED] == 7


def test_the_trainer_names_the_stage_that_holds_it_up():
    a = Admission(AdmissionRules(batch=4, max_staleness=1, order="in_time"))
    assert a.trainer_waits_for() == "prompts"
    tickets = admit_all(a)
    assert a.trainer_waits_for() is Stage.SAMPLE
    for ticket in tickets[:6]:
        a.entered(ticket, Stage.JUDGE)
    for ticket in tickets[:3]:
        a.entered(ticket, Stage.REFERENCE)
    assert a.trainer_waits_for() is Stage.REFERENCE  # three of the four nearest
    a.finished(tickets[0])
    a.finished(tickets[1])
    a.finished(tickets[2])
    assert a.trainer_waits_for() is Stage.JUDGE
    a.finished(tickets[3])
    assert a.trainer_waits_for() is None


def test_a_queue_bounds_what_is_outstanding():
    a = Admission(AdmissionRules(batch=2, max_staleness=3, queue=5))
    assert len(admit_all(a)) == 5
    assert a.sampler_waits_for() == "queue"
    assert a.rules.reach == 2  # of 3: five places are three batches at most


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"batch": 0}, "batch = 0: give 1 or more"),
        ({"max_staleness": -1}, "max_staleness = -1: give 0 or more"),
        (
            {"queue": 15},
            r"queue = 15 prompts can never hold a batch of 16: 1 places are missing; raise the queue to 16",
        ),
        (
            {"max_staleness": 2, "queue": 16},
            r"more than 16 prompts outstanding; raise the queue to 48 \(\(2 \+ 1\) x 16\)",
        ),
        ({"max_staleness": 1, "spare": 4}, r"\(1 \+ 1\) x 16 \+ 4 prompts do not fit into 2 steps of 16"),
    ],
)
def test_what_cannot_make_progress_is_refused_with_its_arithmetic(rules, message):
    with pytest.raises(AdmissionError, match=message):
        AdmissionRules(**{"batch": 16, "max_staleness": 0, **rules})


def test_nothing_is_admitted_beyond_what_is_admissible():
    a = Admission(AdmissionRules(batch=1, max_staleness=0))
    a.admit()
    with pytest.raises(RuntimeError, match=r"\(0 \+ 1 \+ 0 - 0\) x 1 \+ 0 places, 1 in flight, 0 ready"):
        a.admit()
    with pytest.raises(ValueError, match="version 1: 0 is served and 0 is the last step taken"):
        a.now_served(1)


def test_what_was_dropped_stays_dropped():
    a = Admission(AdmissionRules(batch=1, max_staleness=0, order="finished", spare=1))
    slow, fast = admit_all(a)
    a.finished(fast)
    batch = a.take()
    assert batch.stale == (slow,)
    assert not a.finished(slow)
    a.lost(slow, Fate.JUDGE_FAILED)
    assert a.fates == Counter({Fate.STALE: 1})


def test_shares_of_waiting():
    clock = WaitClock(10.0)
    clock.note(10.0, "sample")
    clock.note(13.0, None)
    clock.note(16.0, "reference")
    assert clock.shares(20.0) == {"sample": 0.3, "reference": 0.4}


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_whole_steps_are_admitted_as_the_loop_prepares_them(ahead):
    """With batches of one unit a unit is a step: before step s is learned, everything up to s + ahead is under way."""
    steps = 6
    a = Admission(AdmissionRules(batch=1, max_staleness=ahead, steps=steps))
    submitted = 0
    for step in range(1, steps + 1):
        submitted += len(a.admit_all())
        assert submitted == min(step + ahead, steps)
        for ticket in range(1, submitted + 1):
            a.finished(ticket)
        batch = a.take()
        assert (batch.tickets, batch.ages) == ((step,), (min(ahead, step - 1),))
        a.now_served(step)
