"""Calls to a server as the wire has them, without what `ChatClient` does for its user."""

from typing import Any

import grpc

from chatsvc.pb import chat_pb2, chat_pb2_grpc

WAIT = 60


class Chat:
    """Calls to a server, on a connection of their own."""

    def __init__(self, address: str, **options: int) -> None:
        settings = [("grpc.use_local_subchannel_pool", 1)]
        settings += [(f"grpc.{name}", value) for name, value in options.items()]
        self._channel = grpc.insecure_channel(address, options=settings)
        self._stub: Any = chat_pb2_grpc.ChatStub(self._channel)
        self._broadcast: Any = chat_pb2_grpc.BroadcastStub(self._channel)

    def __enter__(self) -> "Chat":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._channel.close()

    def subscribe(self, cursor: bytes = b"") -> Any:
        """A stream of Deliveries of the lobby."""
        request = chat_pb2.SubscribeRequest(user=chat_pb2.User(id="ann"), cursor=cursor)
        return self._stub.Subscribe(iter([request]), timeout=2 * WAIT)

    def publish(self, first: int, last: int) -> None:
        """Sends numbers and waits until all are stored."""
        requests = (
            chat_pb2.PublishRequest(
                messages=[
                    chat_pb2.Message(id="bob", content=str(number))
                    for number in range(at, min(at + 500, last))
                ]
            )
            for at in range(first, last, 500)
        )
        results = list(self._stub.Publish(requests, timeout=WAIT))
        outcomes = [each.status for result in results for each in result.outcomes]
        assert outcomes == (last - first) * [chat_pb2.Outcome.COMMITTED]

    def send(self, content: str, message_id: str, *, room: str = "", timeout: float = WAIT) -> None:
        """Sends a message once. Raises grpc.RpcError."""
        message = chat_pb2.Message(id="bob", content=content, message_id=message_id, room=room)
        self._broadcast.BroadcastMessage(message, timeout=timeout)

    def refusal(
        self, content: str, message_id: str, *, room: str = "", timeout: float = WAIT
    ) -> grpc.RpcError:
        """Sends a message once and returns why that failed."""
        try:
            self.send(content, message_id, room=room, timeout=timeout)
        except grpc.RpcError as error:
            return error
        raise AssertionError("the message was taken")


def caught_up(stream: Any) -> tuple[list[int], list[Any], bytes]:
    """What was missed, the gaps before it, and the cursor behind it."""
    contents: list[int] = []
    gaps: list[Any] = []
    for delivery in stream:
        gaps += delivery.gaps
        contents += [int(each.content) for each in delivery.messages]
        if delivery.caught_up:
            return contents, gaps, delivery.cursor
    raise AssertionError("the stream ended")


def contents_until(stream: Any, last: str) -> list[str]:
    """The contents of the messages from now on, up to one."""
    contents: list[str] = []
    for delivery in stream:
        contents += [each.content for each in delivery.messages]
        if last in contents:
            return contents
    raise AssertionError("the stream ended")
