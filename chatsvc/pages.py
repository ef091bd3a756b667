"""Pages: older messages, read from one of several servers without a stream."""

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime

import grpc

from chatsvc.errors import ConnectionFailed
from chatsvc.link import Link, cause, is_final
from chatsvc.pb import chat_pb2

PAGE_MESSAGES = 1_000
PAGE_SECONDS = 30.0
"""How long a page may take."""

Page = chat_pb2.HistoryPage


class Pages:
    """The messages of `rooms` (none: the lobby) that Kafka keeps. Used with `with`, by one thread;
    all calls block, ask the servers (`host:port` each) in turn until one answers, and raise
    ConnectionFailed with what the last one said."""

    def __init__(self, servers: Sequence[str], rooms: Collection[str] = ()) -> None:
        self._rooms = tuple(rooms)
        self._servers = tuple(servers)
        self._links = [Link(server) for server in servers]

    def newest(self, messages: int) -> list[Page]:
        """So many of the newest messages, or as many as there are, in pages, oldest first; at least
        one page, the last of which has where to go on."""
        pages: list[Page] = []
        request = chat_pb2.HistoryRequest(rooms=self._rooms, backwards=True)
        left = messages
        while not pages or (left > 0 and not pages[-1].end):
            request.limit = min(max(left, 1), PAGE_MESSAGES)
            pages.append(self._ask(request))
            left -= len(pages[-1].messages)
            request.cursor = pages[-1].before
        return pages[::-1]

    def since(self, time: datetime) -> Iterator[Page]:
        """All messages from a time on, as far as there are, in pages."""
        request = chat_pb2.HistoryRequest(rooms=self._rooms, limit=PAGE_MESSAGES)
        request.since.FromDatetime(time)
        while True:
            page = self._ask(request)
            yield page
            if page.end:
                return
            request.ClearField("since")
            request.cursor = page.after

    def _ask(self, request: chat_pb2.HistoryRequest) -> Page:
        said = ""
        for _ in self._links:
            try:
                return self._links[0].history(request, PAGE_SECONDS)
            except grpc.RpcError as error:
                said = cause(error, self._links[0].server)
                if is_final(error):
                    break
            self._links.append(self._links.pop(0))
        raise ConnectionFailed(said, self._servers)

    def close(self) -> None:
        """Ends all connections. Idempotent."""
        for link in self._links:
            link.close()

    def __enter__(self) -> "Pages":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
