"""When requests are written: at once where there are few, in one go where there are many."""

import asyncio

from penstock.gateway.upstream.outbox import Outbox


class Ready:
    """A connection whose request is ready."""

    def __init__(self, sent: list["Ready"]) -> None:
        self._sent = sent

    def send(self) -> None:
        self._sent.append(self)


async def test_few_are_written_at_once_and_many_at_the_end_of_the_turn() -> None:
    outbox, sent = Outbox(asyncio.get_running_loop()), list[Ready]()
    ready = [Ready(sent) for _ in range(7)]
    for connection in ready:  # of different pools: what counts is all calls together
        outbox.add(connection)
        outbox.calls += 1
    assert sent == ready[:4]
    await asyncio.sleep(0)
    assert sent == ready
    outbox.add(ready[0])
    await asyncio.sleep(0)
    assert sent == [*ready, ready[0]]
