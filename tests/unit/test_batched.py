"""What waits for an actor goes to it together; an error reaches everyone who asked."""

import asyncio

from ray.exceptions import ActorDiedError

import actors.pool
from actors.faults import Faults, StageFailed
from actors.judges.batched import Batched
from actors.pool import Crew
from configs.schema import Deadlines, Recovery


class Asked:
    """Stands for actors: remembers what each was given, and answers when it is told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int]]] = []
        self.pending: list[asyncio.Future[list[int]]] = []

    def submit(self, actor, questions):
        self.calls.append((actor, questions))
        self.pending.append(asyncio.get_running_loop().create_future())
        return self.pending[-1]

    def answer(self, call):
        self.pending[call].set_result([10 * q for q in self.calls[call][1]])


def crew(*names, faults=None):
    """Actors by name; the next one of a place is ``name'``."""
    present = dict(enumerate(names))

    def start(index):
        name = present[index]
        present[index] = name + "'"
        return name

    async def ready(index, actor):
        pass

    return Crew("judge", len(names), start, ready, Deadlines(), faults or Faults(Recovery()))


async def until(condition):
    while not condition():
        await asyncio.sleep(0)


def test_what_waits_for_an_actor_goes_to_it_together():
    async def scenario():
        asked = Asked()
        pool = Batched(crew("a", "b"), asked.submit)
        first = [asyncio.ensure_future(pool.ask(i)) for i in range(5)]
        await until(lambda: len(asked.calls) == 2)
        assert asked.calls == [("a", [0, 1, 2]), ("b", [3, 4])]  # an even share of what was asked at once
        later = [asyncio.ensure_future(pool.ask(i)) for i in range(5, 9)]
        asked.answer(1)
        await until(lambda: len(asked.calls) == 3)
        assert asked.calls[2] == ("b", [5, 6, 7, 8])
        asked.answer(2)
        asked.answer(0)
        assert await asyncio.gather(*first, *later) == [10 * i for i in range(9)]

    asyncio.run(scenario())


def test_what_a_lost_actor_had_in_hand_is_asked_again_first(monkeypatch):
    monkeypatch.setattr(actors.pool.ray, "kill", lambda actor, no_restart: None)

    async def scenario():
        asked, faults = Asked(), Faults(Recovery())
        pool = Batched(crew("a", "b", faults=faults), asked.submit)
        first = [asyncio.ensure_future(pool.ask(i)) for i in range(4)]
        await until(lambda: len(asked.calls) == 2)
        later = asyncio.ensure_future(pool.ask(4))
        await asyncio.sleep(0)
        asked.pending[0].set_exception(ActorDiedError())
        await until(lambda: len(asked.calls) == 3)
        assert asked.calls[2] == ("a'", [0, 1, 4])
        for call in (1, 2):
            asked.answer(call)
        assert await asyncio.gather(*first, later) == [0, 10, 20, 30, 40]
        assert faults.counts == {"judge": 1}

    asyncio.run(scenario())


def test_an_error_reaches_everyone_who_asked_and_the_pool_goes_on():
    async def scenario():
        asked = Asked()
        pool = Batched(crew("a"), asked.submit)
        first = [asyncio.ensure_future(pool.ask(i)) for i in range(2)]
        await until(lambda: asked.pending)
        asked.pending[0].set_exception(StageFailed("gone"))
        assert all(isinstance(e, StageFailed) for e in await asyncio.gather(*first, return_exceptions=True))
        again = asyncio.ensure_future(pool.ask(2))
        await until(lambda: len(asked.pending) == 2)
        asked.answer(1)
        assert await again == 20

    asyncio.run(scenario())
