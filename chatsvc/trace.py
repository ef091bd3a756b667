"""Trace: the id by which a message is followed from its sender's call through Kafka to the logs of
all servers.

Sources: W3C "Trace Context", 3.2 (traceparent); the id travels in a record header of Kafka.
"""

import re
from collections.abc import Iterable
from typing import Any

from chatsvc import metadata

HEADER = "trace-id"

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}.*")


def is_valid(trace_id: str) -> bool:
    """Whether it is 1 to 64 letters, digits, dots, underscores and hyphens."""
    return _ID.fullmatch(trace_id) is not None


def of_metadata(pairs: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The trace id in a call's metadata: that of ours, else the one of a traceparent. What is no
    trace id counts for nothing, as W3C wants it. Empty if there is none."""
    found = ""
    for key, value in pairs or ():
        if key == metadata.TRACE and is_valid(str(value)):
            return str(value)
        if key == metadata.TRACEPARENT:
            parent = _TRACEPARENT.fullmatch(str(value))
            found = parent[1] if parent is not None else found
    return found


def headers(trace_id: str) -> list[tuple[str, str | bytes | None]]:
    """The headers of a record."""
    return [(HEADER, trace_id.encode())]


def of_headers(pairs: Any) -> str:
    """The trace id in the headers of a record, which any Kafka tool may have written; empty if
    there is none."""
    for key, value in pairs or ():  # of bytes, or None; the library's type has more
        if key == HEADER and value is not None:
            text = value.decode("ascii", "replace")
            return text if is_valid(text) else ""
    return ""


def extra(trace_id: str) -> dict[str, str] | None:
    """For a log line about a message: chatsvc.logs shows it."""
    return {"trace_id": trace_id} if trace_id else None
