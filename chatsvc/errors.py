"""Every error that chatsvc raises and every reason for which it closes a stream.

Constructors take what went wrong as values; `str()` makes the sentence a person reads. The
servicer maps these to status codes, the command line to exit codes, both in one place each.
"""

import enum


class CloseReason(enum.Enum):
    """Why the server ended a stream; the value is the metric's label."""

    LEFT = "left"
    """The client went away or cancelled."""
    SLOW = "slow"
    """The client's outbox overflowed, or one send took longer than the send timeout."""
    SHUTDOWN = "shutdown"
    """The server is stopping."""
    GONE = "gone"
    """The client has let two of its heartbeats pass."""
    MOVED = "moved"
    """The client was asked to go elsewhere and has not, or could not be asked."""


class ChatError(Exception):
    """Base of all errors of this package."""


class InvalidRequest(ChatError):
    """A request breaks a rule of the wire contract."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field = field
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}"


class InvalidRecord(ChatError):
    """A Kafka record is not one of ours; `reason` is short and has no content (a metric label)."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"not a chat record: {self.reason}"


class InvalidConfig(ChatError):
    """An option has a value that it must not have."""

    def __init__(self, option: str, problem: str) -> None:
        super().__init__(option, problem)
        self.option = option
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.option}: {self.problem}"


class ServerFull(ChatError):
    """The server has as many streams as it takes."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"server is full ({self.limit} connections); try another one or later"


class ServerBusy(ChatError):
    """The producer's queue is full; nothing of the message was written."""

    def __str__(self) -> str:
        return "too many messages wait for Kafka; nothing was written, send again later"


class ServerStopping(ChatError):
    """The server takes no more work because it is stopping; nothing was written."""

    def __str__(self) -> str:
        return "server is shutting down; connect to another one"


class FeedLost(ChatError):
    """The server cannot read on in the topic; `cause` is why."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause

    def __str__(self) -> str:
        return f"this server cannot read on in Kafka ({self.cause}); connect to another one"


class ArchiveUnavailable(ChatError):
    """Kafka did not answer a question about older messages in time."""

    def __str__(self) -> str:
        return "Kafka does not answer; ask again later"


class TopicReplaced(ChatError):
    """The topic was deleted, and made again: positions and cursors in the old one say nothing."""

    def __init__(self, topic: str) -> None:
        super().__init__(topic)
        self.topic = topic

    def __str__(self) -> str:
        return (
            f"topic {self.topic} was deleted and made again while the server ran; "
            "start the server again"
        )


class PublishFailed(ChatError):
    """Kafka did not confirm a message.

    `maybe_written` tells whether it may be in the log all the same; either way the same
    message_id may be sent again.
    """

    def __init__(self, cause: str, *, maybe_written: bool) -> None:
        super().__init__(cause, maybe_written)
        self.cause = cause
        self.maybe_written = maybe_written

    def __str__(self) -> str:
        state = "it may have been written" if self.maybe_written else "it was not written"
        return (
            f"Failed to send message to Kafka: {self.cause}; {state}, "
            "send it again with the same message_id"
        )


class MessageTooLarge(ChatError):
    """Kafka refuses a message for its size; sending it again does not help."""

    def __str__(self) -> str:
        return "message is larger than Kafka takes"


class KafkaUnreachable(ChatError):
    """No broker answered in time."""

    def __init__(self, brokers: tuple[str, ...], cause: str) -> None:
        super().__init__(brokers, cause)
        self.brokers = brokers
        self.cause = cause

    def __str__(self) -> str:
        return (
            f"Cannot reach Kafka at {','.join(self.brokers)}: {self.cause}. "
            "Start it (make kafka-up) or name other brokers with --brokers"
        )


class TopicFailed(ChatError):
    """A topic could not be created, read or changed."""

    def __init__(self, topic: str, cause: str) -> None:
        super().__init__(topic, cause)
        self.topic = topic
        self.cause = cause

    def __str__(self) -> str:
        return f"topic {self.topic}: {self.cause}"


class PortTaken(ChatError):
    """The address is in use or may not be bound."""

    def __init__(self, option: str, address: str, cause: str) -> None:
        super().__init__(option, address, cause)
        self.option = option
        self.address = address
        self.cause = cause

    def __str__(self) -> str:
        return (
            f"Cannot listen on {self.address}: {self.cause}. "
            f"Stop what uses it or choose another with {self.option} (0 takes a free one)"
        )


class WorkerFailed(ChatError):
    """A worker process did not start; `cause` is its own error, or how it ended."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause

    def __str__(self) -> str:
        return self.cause


class BenchFailed(ChatError):
    """A measurement could not be made; `cause` is why, in one line."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause

    def __str__(self) -> str:
        return self.cause


class BrokerLost(ChatError):
    """The process of the embedded broker is gone, and with it every message."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause

    def __str__(self) -> str:
        return f"The embedded broker {self.cause}; its messages are gone. Start the server again"


class ConnectionFailed(ChatError):
    """A client could not connect to any of its servers."""

    def __init__(self, cause: str, servers: tuple[str, ...]) -> None:
        super().__init__(cause, servers)
        self.cause = cause
        self.servers = servers

    def __str__(self) -> str:
        return f"Failed to connect to server: {self.cause} ({', '.join(self.servers)})"


class SendFailed(ChatError):
    """A client's message was refused for good, or was not confirmed in time; `maybe_written` tells
    whether it may be in the log all the same."""

    def __init__(self, cause: str, *, maybe_written: bool = False) -> None:
        super().__init__(cause, maybe_written)
        self.cause = cause
        self.maybe_written = maybe_written

    def __str__(self) -> str:
        return f"Failed to send message: {self.cause}"


class ClientClosed(ChatError):
    """The client was closed while, or before, it was used."""

    def __str__(self) -> str:
        return "client is closed"
