"""Many streams in one process, for tests with more clients than a test can have threads.

    python crowd.py HOST:PORT STREAMS MESSAGES SECONDS

Opens STREAMS streams, each on a connection of its own, prints "connected", and ends when every
stream has received MESSAGES messages that begin with "<number> <unix time> ", at the latest after
SECONDS. Prints one JSON object: how many streams were complete, lost, had a duplicate or a number
out of order, and the quantiles of the latency in milliseconds.
"""

import asyncio
import json
import sys
import time

import grpc

from chatsvc.pb import chat_pb2, chat_pb2_grpc

OPTIONS = [("grpc.use_local_subchannel_pool", 1)]


class Tally:
    """What one stream has received."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.latencies: list[float] = []

    def take(self, content: str) -> None:
        number, sent_at, *_ = content.split(" ")
        self.numbers.append(int(number))
        self.latencies.append((time.time() - float(sent_at)) * 1_000)


async def listen(
    address: str, user: str, messages: int, tally: Tally, registered: asyncio.Semaphore
) -> None:
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        stub = chat_pb2_grpc.BroadcastStub(channel)
        call = stub.CreateStream(chat_pb2.Connect(user=chat_pb2.User(id=user), active=True))
        await call.initial_metadata()
        registered.release()
        async for message in call:
            tally.take(message.content)
            if len(tally.numbers) >= messages:
                return


async def crowd(address: str, streams: int, messages: int, seconds: float) -> dict[str, object]:
    tallies = [Tally() for _ in range(streams)]
    registered = asyncio.Semaphore(0)
    began = time.monotonic()
    tasks = [
        asyncio.create_task(listen(address, f"crowd-{index}", messages, tally, registered))
        for index, tally in enumerate(tallies)
    ]
    for _ in range(streams):
        await asyncio.wait_for(registered.acquire(), seconds)
    print("connected", flush=True)
    connect_seconds = time.monotonic() - began
    _, late = await asyncio.wait(tasks, timeout=seconds)
    for task in late:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return {"connect_seconds": connect_seconds, **verdict(tallies, messages)}


def verdict(tallies: list[Tally], messages: int) -> dict[str, object]:
    latencies = sorted(latency for tally in tallies for latency in tally.latencies)
    return {
        "complete": sum(len(tally.numbers) == messages for tally in tallies),
        "twice": sum(len(set(tally.numbers)) != len(tally.numbers) for tally in tallies),
        "disorder": sum(tally.numbers != sorted(tally.numbers) for tally in tallies),
        "latency_ms": {
            quantile: round(latencies[int(share * (len(latencies) - 1))], 1)
            for quantile, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
            if latencies
        },
    }


if __name__ == "__main__":
    target, count, expected, limit = sys.argv[1:]
    print(json.dumps(asyncio.run(crowd(target, int(count), int(expected), float(limit)))))
