import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatsvc import frames
from chatsvc.model import ChatMessage
from chatsvc.pb import chat_pb2

TEXT = st.text(st.characters(codec="utf-8"))
MESSAGES = st.builds(ChatMessage, TEXT, TEXT, TEXT)


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


@given(st.lists(st.builds(ChatMessage, TEXT, TEXT, TEXT)))
def test_a_batch_is_a_delivery(messages: list[ChatMessage]) -> None:
    """A batch has its messages one by one and, in the same order, as one Delivery of its size."""
    encoded = [frames.encode(message, 0) for message in messages]
    batch = frames.batch(encoded, 1.5)
    assert (batch.messages, batch.fanned_out_at) == (tuple(encoded), 1.5)
    assert batch.size == len(batch.delivery)
    delivery = chat_pb2.Delivery.FromString(batch.delivery)
    assert list(delivery.messages) == [chat_pb2.Message.FromString(each) for each in encoded]


@pytest.mark.parametrize("length", [0, 1, 100, 127, 128, 16_000, 16_383, 16_384, 64_000])
def test_a_message_of_any_length_is_delivered(length: int) -> None:
    """Lengths around those where their encoding grows by a byte come back."""
    message = frames.encode(ChatMessage("ann", "x" * length, ""), 0)
    delivery = chat_pb2.Delivery.FromString(frames.batch([message], 0.0).delivery)
    assert [each.content for each in delivery.messages] == ["x" * length]


@given(st.lists(st.lists(TEXT, max_size=3), min_size=1, max_size=3))
def test_joined_batches_go_on(batches: list[list[str]]) -> None:
    """Batches that are joined parse as one Delivery with all messages in order and the cursor of
    the last, which is there once."""
    made = [
        frames.batch(
            [frames.encode(ChatMessage("ann", text, ""), 0) for text in texts],
            0.0,
            frames.cursor(bytes([number])),
        )
        for number, texts in enumerate(batches)
    ]
    joined = chat_pb2.Delivery.FromString(frames.join(made))
    assert [each.content for each in joined.messages] == [
        each for texts in batches for each in texts
    ]
    assert joined.cursor == bytes([len(batches) - 1])


def test_close_is_the_answer_to_a_broadcast() -> None:
    """CLOSE parses as the message Close."""
    assert chat_pb2.Close.FromString(frames.CLOSE) == chat_pb2.Close()
