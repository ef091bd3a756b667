import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatsvc.errors import InvalidRequest
from chatsvc.pb import chat_pb2
from chatsvc.requests import CROWDED_SECONDS, Malformed, Parser, RequestWatch, wrong_type

TIMEOUT = 5.0
CONNECT = Parser(chat_pb2.Connect)
MESSAGE = Parser(chat_pb2.Message)


def field(number: int, raw: bytes) -> bytes:
    """A length-delimited field on the wire."""
    assert len(raw) < 128
    return bytes([number << 3 | 2, len(raw)]) + raw


def test_a_message_is_parsed() -> None:
    """A request that is well-formed comes back as a message."""
    sent = chat_pb2.Message(id="ann", content="hi")
    assert MESSAGE.parsed(MESSAGE(sent.SerializeToString())) == sent


@pytest.mark.parametrize(
    ("parser", "raw", "at_fault"),
    [
        (MESSAGE, field(1, b"\xff"), "id"),
        (MESSAGE, field(1, b"ann") + field(2, b"\xed\xa0\x80"), "content"),
        (MESSAGE, field(5, b"\x80"), "message_id"),
        (CONNECT, field(1, field(1, b"\xff")), "user.id"),
        (CONNECT, field(1, field(1, b"ann") + field(2, b"\xff")), "user.name"),
        (MESSAGE, b"\x08\x05" + field(2, b"\xff"), "content"),
        (MESSAGE, b"\x0a", "request"),
        (MESSAGE, b"\xff" * 20, "request"),
        (MESSAGE, field(3, b"\xff"), "request"),
    ],
)
def test_the_field_at_fault_is_named(parser: Parser[Any], raw: bytes, at_fault: str) -> None:
    """Bytes that do not parse are an InvalidRequest that names the text field which is not UTF-8,
    or else the request."""
    request = parser(raw)
    assert isinstance(request, Malformed)
    with pytest.raises(InvalidRequest) as raised:
        parser.parsed(request)
    assert raised.value.field == at_fault


@given(st.binary(), st.sampled_from([CONNECT, MESSAGE]))
def test_a_parser_never_raises(raw: bytes, parser: Parser[Any]) -> None:
    """Whatever bytes come, the parser returns a message or what is wrong with it."""
    request = parser(raw)
    assert isinstance(request, (Malformed, chat_pb2.Connect, chat_pb2.Message))


@given(st.sampled_from([1, 2, 5]), st.binary(max_size=60), st.binary(max_size=60))
def test_text_that_is_not_utf8_is_refused(number: int, text: bytes, before: bytes) -> None:
    """A text field is parsed if and only if it is UTF-8, whatever unknown field stands before."""
    try:
        text.decode()
    except UnicodeDecodeError:
        expected: type = Malformed
    else:
        expected = chat_pb2.Message
    assert type(MESSAGE(field(9, before) + field(number, text))) is expected


def test_a_field_of_another_type_is_seen() -> None:
    """Protobuf leaves a field out that was sent as a number; that is told from one not sent."""
    number_as_id = b"\x08\x05"
    request = MESSAGE.parsed(MESSAGE(number_as_id + field(2, b"hi")))
    assert request.id == ""
    assert wrong_type(request, 1)
    assert not wrong_type(request, 2)


class CancelledCall:
    """A call's context; counts how often it was cancelled."""

    def __init__(self) -> None:
        self.cancels = 0

    def cancel(self) -> None:
        self.cancels += 1


class SilentClient:
    """Requests that do not come until they are let."""

    def __init__(self) -> None:
        self.waiting = threading.Event()
        self.released = threading.Event()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.waiting.set()
        assert self.released.wait(60)
        return "request"


class Silence:
    """Calls that wait in threads for requests which do not come."""

    def __init__(self, watch: RequestWatch, calls: int) -> None:
        self.clients = [SilentClient() for _ in range(calls)]
        self.contexts = [CancelledCall() for _ in range(calls)]
        self.answers: list[str] = []
        self._threads = [
            threading.Thread(target=lambda each=each: self.answers.append(watch.first(*each)))
            for each in zip(self.clients, self.contexts, strict=True)
        ]

    def __enter__(self) -> "Silence":
        for thread in self._threads:
            thread.start()
        assert all(client.waiting.wait(20) for client in self.clients)
        return self

    def __exit__(self, *error: object) -> None:
        for client in self.clients:
            client.released.set()
        for thread in self._threads:
            thread.join(20)


def make_watch(threads: int) -> tuple[RequestWatch, list[bool]]:
    """A watch, and a list that grows whenever the watchdog is woken."""
    wakes: list[bool] = []
    return RequestWatch(threads, TIMEOUT, lambda: wakes.append(True)), wakes


def test_the_first_request_is_returned() -> None:
    """A request that comes is returned, and nothing is left to watch."""
    watch, wakes = make_watch(4)
    assert watch.first(iter(["hello", "again"]), CancelledCall()) == "hello"  # type: ignore[arg-type]
    assert wakes == [True]
    assert not watch.check(time.monotonic() + 100)


def test_a_call_without_a_request_is_invalid() -> None:
    """A client that ends without a request is told that it is missing."""
    watch, _ = make_watch(4)
    with pytest.raises(InvalidRequest, match="request: is missing"):
        watch.first(iter([]), CancelledCall())  # type: ignore[arg-type]
    assert not watch.check(time.monotonic())


def test_a_silent_call_is_cancelled_after_the_timeout() -> None:
    """A call whose request does not come is left alone until the timeout and then cancelled."""
    watch, wakes = make_watch(4)
    with Silence(watch, 1) as silence:
        assert wakes == [True]
        assert watch.check(time.monotonic() + TIMEOUT / 2)
        assert silence.contexts[0].cancels == 0
        assert watch.check(time.monotonic() + TIMEOUT + 0.1)
        assert silence.contexts[0].cancels == 1
    assert silence.answers == ["request"]
    assert not watch.check(time.monotonic())


@pytest.mark.parametrize(("calls", "cancelled"), [(1, 0), (2, 1)])
def test_a_crowd_of_silent_calls_is_cancelled_early(calls: int, cancelled: int) -> None:
    """Only while all threads wait for requests, patience is CROWDED_SECONDS."""
    watch, _ = make_watch(2)
    with Silence(watch, calls) as silence:
        watch.check(time.monotonic() + CROWDED_SECONDS + 0.1)
        assert [context.cancels for context in silence.contexts] == [cancelled] * calls
