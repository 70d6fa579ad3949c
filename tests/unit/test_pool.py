"""Remote calls: what is cancelled stays cancelled."""

import asyncio

import pytest


def test_a_cancellation_that_arrives_with_the_result_is_not_swallowed() -> None:
    from actors.pool import remote_call

    async def scenario() -> None:
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        call = asyncio.create_task(remote_call(answer, who="stage", seconds=60))
        await asyncio.sleep(0)
        answer.set_result(1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(scenario())
