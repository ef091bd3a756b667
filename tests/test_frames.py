from hypothesis import given
from hypothesis import strategies as st

from chatsvc import frames
from chatsvc.model import ChatMessage
from chatsvc.pb import chat_pb2

TEXT = st.text(st.characters(codec="utf-8"))


@given(st.builds(ChatMessage, TEXT, TEXT, TEXT, TEXT, TEXT))
def test_a_frame_has_what_clients_see(message: ChatMessage) -> None:
    """Sender, content, room and id go on the wire; the sender's clock does not."""
    sent = chat_pb2.Message.FromString(frames.encode(message, 0))
    assert (sent.id, sent.content) == (message.user, message.content)
    assert (sent.room, sent.message_id) == (message.room, message.message_id)


def test_the_timestamp_is_the_records() -> None:
    """Milliseconds of Unix time become seconds and nanoseconds."""
    sent = chat_pb2.Message.FromString(frames.encode(ChatMessage("a", "b", ""), 1_700_000_000_123))
    assert (sent.timestamp.seconds, sent.timestamp.nanos) == (1_700_000_000, 123_000_000)


@given(st.integers(-(2**63), 2**63 - 1))
def test_any_time_of_kafka_can_be_encoded(appended_ms: int) -> None:
    """A record with whatever time a writer gave it never raises."""
    sent = chat_pb2.Message.FromString(frames.encode(ChatMessage("a", "b", ""), appended_ms))
    assert sent.timestamp.seconds * 1_000 + sent.timestamp.nanos // 1_000_000 == appended_ms


def test_a_batch_knows_its_size() -> None:
    """A batch counts the bytes of its messages and keeps their order."""
    assert frames.batch([b"abc", b"", b"de"], 1.5) == ((b"abc", b"", b"de"), 5, 1.5)


def test_close_is_the_answer_to_a_broadcast() -> None:
    """CLOSE parses as the message Close."""
    assert chat_pb2.Close.FromString(frames.CLOSE) == chat_pb2.Close()
