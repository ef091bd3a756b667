"""A sender's order, while Kafka is away for longer than outcomes are waited for."""

import pytest

from chatsvc.client import ChatClient, Received

from brokers import Brokers
from conftest import StartServer
from waiting import eventually

WAIT = 90
SECONDS = 8.0  # longer than librdkafka waits for an answer from a broker


@pytest.mark.kafka
def test_a_stream_stays_in_order_over_a_long_outage(
    brokers: Brokers, start_server: StartServer, topic_options: list[str]
) -> None:
    """What was told to be unknown is sent again, while what follows it is under way: nobody sees
    any of it twice, or out of order."""
    _, listening = start_server(
        brokers=tuple(brokers.addresses),
        topic=topic_options[1],
        connections_topic=topic_options[3],
        publish_timeout=SECONDS,
    )
    address = f"127.0.0.1:{listening.port}"
    with ChatClient("ann", [address]) as ann, ChatClient("bob", [address], remembered_ids=0) as bob:
        ann.connect()
        bob.connect()
        ann.send("first", timeout=WAIT)
        for index in range(3):
            brokers.pause(index)
        outcomes: list[object] = []

        def post(first: int, last: int) -> None:
            for number in range(first, last):
                ann.post(str(number), on_outcome=lambda message_id, error: outcomes.append(error))

        assert ann.receive(WAIT) is not None  # its own first message
        post(0, 500)
        assert ann.receive(0.7 * SECONDS) is None
        post(500, 1_000)
        # Of the first half all is given up then, of the second half nothing.
        assert ann.receive(0.7 * SECONDS) is None
        for index in range(3):
            brokers.resume(index)
        received: list[str] = []
        while len(received) < 1_001:
            event = bob.receive(WAIT)
            if isinstance(event, Received):
                received.append(event.content)
        assert received == ["first", *map(str, range(1_000))]
        assert eventually(lambda: len(outcomes) == 1_000, WAIT)
    assert outcomes == 1_000 * [None]
