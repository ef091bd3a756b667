"""Requests: reading a call's first message without trusting the client to send it, or to send
something that parses."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import grpc
from google.protobuf import unknown_fields
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message

from chatsvc.errors import InvalidRequest

CROWDED_SECONDS = 0.25
"""How long a call may keep a thread without a request while all threads wait for requests."""

_LENGTH_DELIMITED = 2

M = TypeVar("M", bound=Message)


class Malformed(NamedTuple):
    """Bytes that are not the message they should be, and the field at fault."""

    error: InvalidRequest


class Parser(Generic[M]):
    """A request deserializer that never raises: an exception there would make grpcio log a
    traceback and answer INTERNAL. `parsed` turns what it returned into the message or an error."""

    def __init__(self, kind: type[M]) -> None:
        self._kind = kind

    def __call__(self, raw: bytes) -> M | Malformed:
        try:
            return self._kind.FromString(raw)
        except DecodeError:
            field = _field_at_fault(raw, self._kind.DESCRIPTOR)
            return Malformed(InvalidRequest(field or "request", "is not valid protobuf or UTF-8"))

    @staticmethod
    def parsed(request: M | Malformed) -> M:
        """The message. Raises InvalidRequest."""
        if isinstance(request, Malformed):
            raise request.error
        return request


def wrong_type(message: Message, number: int) -> bool:
    """Whether field `number` was sent, but as another type, so that protobuf left it out."""
    return any(field.field_number == number for field in _unknown(message))


def _field_at_fault(raw: bytes, descriptor: Any) -> str | None:
    """The path of the first text field that is not UTF-8. Parsed as a message without fields,
    everything is an unknown field, whose bytes protobuf does not look at."""
    try:
        fields = _unknown(Empty.FromString(raw))
    except DecodeError:
        return None
    for field in fields:
        known = descriptor.fields_by_number.get(field.field_number)
        if known is None or field.wire_type != _LENGTH_DELIMITED:
            continue
        if known.type == FieldDescriptor.TYPE_STRING and not _is_utf8(field.data):
            return str(known.name)
        if known.type == FieldDescriptor.TYPE_MESSAGE:
            inner = _field_at_fault(field.data, known.message_type)
            if inner is not None:
                return f"{known.name}.{inner}"
    return None


def _unknown(message: Message) -> list[Any]:
    fields: Any = unknown_fields.UnknownFieldSet(message)  # its stub does not know __iter__
    return list(fields)


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


class RequestWatch:
    """Cancels calls whose request does not come.

    grpcio reads a request in a pool thread, without a timeout, so a few clients that open calls
    and say nothing could keep all `threads`. A call may wait for `timeout` seconds, and for
    CROWDED_SECONDS while all threads do nothing else.
    """

    def __init__(self, threads: int, timeout: float, wake_watchdog: Callable[[], None]) -> None:
        self._threads = threads
        self._timeout = timeout
        self._wake_watchdog = wake_watchdog
        # Guards the calls that wait now, by thread.
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[float, grpc.ServicerContext]] = {}

    def first(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        """The first request of a call. Blocks until it is there. Raises InvalidRequest if the
        client ends without one, grpc.RpcError if the call is over."""
        thread = threading.get_ident()
        with self._lock:
            self._waiting[thread] = (time.monotonic(), context)
        self._wake_watchdog()
        try:
            return next(requests)
        except StopIteration:
            raise InvalidRequest("request", "is missing") from None
        finally:
            with self._lock:
                del self._waiting[thread]

    def close(self) -> None:
        """The server stops: whoever does not send a request now is not waited for."""
        self._timeout = min(self._timeout, CROWDED_SECONDS)
        self._wake_watchdog()

    def check(self, now: float) -> bool:
        """The watchdog's check."""
        with self._lock:
            waiting = list(self._waiting.values())
        crowded = len(waiting) >= self._threads
        patience = min(self._timeout, CROWDED_SECONDS) if crowded else self._timeout
        for since, context in waiting:
            if now - since > patience:
                context.cancel()
        return bool(waiting)
