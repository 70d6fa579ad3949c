"""Remote calls, crews whose lost actors are replaced, and pools: with futures in the place of Ray's."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import ActorDiedError, RayTaskError

import actors.pool
from actors.faults import ActorLost, Faults, StageFailed
from actors.pool import ActorPool, Crew, remote_call
from configs.schema import Deadlines, Recovery


class Actor:
    """Answers what it is asked with its number; dies at its ``lives``-th call."""

    def __init__(self, index, lives):
        self.index, self.left, self.done = index, lives, []

    def work(self, item):
        self.left -= 1
        loop = asyncio.get_running_loop()
        answer = loop.create_future()
        if self.left < 0:
            loop.call_soon(answer.set_exception, ActorDiedError())
        else:
            self.done.append(item)
            loop.call_soon(answer.set_result, (self.index, item))
        return answer


class World:
    def __init__(self, lives, size=2, retries=1000, window_s=3600.0, ready=None):
        """``lives``: calls of each actor in the order in which they are started; the last goes on for ever."""
        self.lives, self.started, self.killed, self.told = list(lives), [], [], []
        self.ready = ready
        recovery = Recovery(retries=retries, window_s=window_s)
        self.faults = Faults(recovery, self.told.append)
        self.crew = Crew("stage", size, self.start, self.get_ready, Deadlines(), self.faults)

    def start(self, index):
        lives = self.lives.pop(0) if self.lives else 10**9
        self.started.append(Actor(index, lives))
        return self.started[-1]

    async def get_ready(self, index, actor):
        if self.ready is not None:
            await self.ready(len(self.started) - 1)


@pytest.fixture(autouse=True)
def killed(monkeypatch):
    found = []
    monkeypatch.setattr(actors.pool.ray, "kill", lambda actor, no_restart: found.append(actor))
    return found


def test_a_cancellation_that_arrives_with_the_result_is_not_swallowed():
    async def scenario():
        answer = asyncio.get_running_loop().create_future()
        call = asyncio.create_task(remote_call(answer, who="stage", seconds=60))
        await asyncio.sleep(0)
        answer.set_result(1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (ActorDiedError(), ActorLost, "stage 3: the actor died"),
        (RayTaskError("work", "Traceback ...", ValueError("no")), StageFailed, "stage 3: "),
    ],
)
def test_what_an_actor_raises_is_no_loss(error, kind, words):
    async def scenario():
        answer = asyncio.get_running_loop().create_future()
        answer.set_exception(error)
        await remote_call(answer, who="stage 3", seconds=60)

    with pytest.raises(StageFailed, match=words) as raised:
        asyncio.run(scenario())
    assert type(raised.value) is kind


def test_an_actor_that_does_not_answer_is_lost():
    async def scenario():
        await remote_call(asyncio.get_running_loop().create_future(), who="stage 3 (load)", seconds=0.01)

    with pytest.raises(ActorLost, match=r"stage 3 \(load\): no answer within 0 s"):
        asyncio.run(scenario())


@given(st.lists(st.integers(0, 6), max_size=12), st.integers(1, 4), st.integers(0, 30))
def test_every_call_is_answered_once_however_many_actors_die(lives, size, calls):
    async def scenario():
        world = World(lives, size)
        pool = ActorPool(world.crew)
        answers = await asyncio.gather(*(pool.call("work", lambda actor, i=i: actor.work(i)) for i in range(calls)))
        return world, answers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(actors.pool.ray, "kill", lambda actor, no_restart: None)
        world, answers = asyncio.run(scenario())
    assert [item for _, item in answers] == list(range(calls))
    assert Counter(i for a in world.started for i in a.done) == Counter(range(calls))
    assert [f.number for f in world.told] == list(range(1, len(world.started) - size + 1))


def test_a_loss_is_noticed_once_by_all_who_wait(killed):
    async def scenario():
        world = World([0], size=1)
        await world.crew.ready()
        calls = [world.crew.call(0, "work", lambda a, i=i: a.work(i)) for i in range(3)]
        lost = await asyncio.gather(*calls, return_exceptions=True)
        return world, lost, await world.crew.call(0, "work", lambda a: a.work("again"))

    world, lost, answer = asyncio.run(scenario())
    assert all(isinstance(e, ActorLost) for e in lost)
    assert answer == (0, "again")
    assert len(world.started) == 2
    assert killed == [world.started[0]]
    assert world.faults.counts == {"stage": 1}


def test_what_cannot_start_is_tried_again_within_the_budget():
    async def never(count):
        raise ActorLost(f"start {count}")

    async def scenario():
        world = World([], size=1, retries=3, ready=never)
        with pytest.raises(
            StageFailed, match=r"start 3; the stage stage has used up its 3 retries \(recovery.retries\)"
        ):
            await world.crew.ready()
        return world

    assert len(asyncio.run(scenario()).started) == 4


def test_old_losses_do_not_count(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("actors.faults.time.monotonic", lambda: now[0])
    faults = Faults(Recovery(retries=2, window_s=10.0))
    for at in (0.0, 5.0, 11.0, 16.0):
        now[0] = at
        faults.survive("stage", ActorLost("gone"))
    now[0] = 20.0
    faults.survive("other stage", ActorLost("gone"))
    with pytest.raises(StageFailed, match="gone; the stage stage has used up"):
        faults.survive("stage", ActorLost("gone"))
    assert faults.counts == {"stage": 4, "other stage": 1}
