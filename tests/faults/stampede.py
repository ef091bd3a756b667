"""Many subscriptions that all come back in the same moment.

    python stampede.py HOST:PORT,HOST:PORT STREAMS MESSAGES SECONDS

As crowd.py, but each stream is a subscription, and one that is lost is opened at once at the next
server, with its cursor. The object says besides how many were lost.
"""

import asyncio
import itertools
import json
import sys
from pathlib import Path

import grpc

from chatsvc.pb import chat_pb2, chat_pb2_grpc

sys.path.insert(0, str(Path(__file__).parents[1]))

from crowd import OPTIONS, Tally, verdict


class Subscriber:
    """One subscription, at one server after the other."""

    def __init__(self, user: str, messages: int) -> None:
        self.tally = Tally()
        self.registered = asyncio.Event()
        self.losses = 0
        self._user = chat_pb2.User(id=user)
        self._messages = messages
        self._cursor = b""

    async def run(self, addresses: list[str]) -> None:
        """Ends when all messages are there."""
        for address in itertools.cycle(addresses):
            try:
                async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
                    await self._follow(channel)
                return
            except grpc.RpcError:
                self.losses += 1

    async def _follow(self, channel: grpc.aio.Channel) -> None:
        stub = chat_pb2_grpc.ChatStub(channel)
        request = chat_pb2.SubscribeRequest(user=self._user, cursor=self._cursor)
        async for delivery in stub.Subscribe(iter([request])):
            self._cursor = delivery.cursor
            self.registered.set()
            for message in delivery.messages:
                self.tally.take(message.content)
            if len(self.tally.numbers) >= self._messages:
                return


async def stampede(
    addresses: list[str], streams: int, messages: int, seconds: float
) -> dict[str, object]:
    subscribers = [Subscriber(f"crowd-{index}", messages) for index in range(streams)]
    tasks = [asyncio.create_task(each.run(addresses)) for each in subscribers]
    async with asyncio.timeout(seconds):
        for each in subscribers:
            await each.registered.wait()
    print("connected", flush=True)
    _, late = await asyncio.wait(tasks, timeout=seconds)
    for task in late:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    losses = sum(each.losses > 0 for each in subscribers)
    return {"lost": losses, **verdict([each.tally for each in subscribers], messages)}


if __name__ == "__main__":
    servers, count, expected, limit = sys.argv[1:]
    result = stampede(servers.split(","), int(count), int(expected), float(limit))
    print(json.dumps(asyncio.run(result)))
