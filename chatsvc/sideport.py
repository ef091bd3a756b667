"""SidePort: the HTTP server beside the chat, for those who watch it."""

import logging
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from socket import AF_INET6
from socketserver import ThreadingMixIn
from typing import Any, NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from chatsvc.errors import PortTaken

_log = logging.getLogger(__name__)

REQUEST_SECONDS = 10.0
"""How long a client may take to send a request, and to read each part of the answer."""

StartResponse = Callable[[str, list[tuple[str, str]]], object]


class Readiness(NamedTuple):
    """Whether clients should come, and in one line why not, or what is not as it should be."""

    ready: bool
    text: str


class SidePort:
    """Shows a registry at /metrics; that the process lives at /healthz; at /readyz what `readiness`
    returns, which is called in the thread of the request: 200 if it is ready, else 503."""

    def __init__(
        self,
        registry: CollectorRegistry,
        host: str,
        port: int,
        readiness: Callable[[], Readiness],
    ) -> None:
        self._metrics = make_wsgi_app(registry)
        self._host = host
        self._port = port
        self._readiness = readiness
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> str:
        """Listens, and returns the URL of the metrics. Raises PortTaken."""
        kind = _Server6 if ":" in self._host else _Server
        try:
            server = make_server(self._host, self._port, self._answer, kind, _Handler)
        except OSError as error:
            cause = error.strerror or str(error)
            raise PortTaken("--metrics-port", f"{self._host}:{self._port}", cause) from error
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
        self._thread.start()
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{server.server_port}/metrics"

    def close(self) -> None:
        """Stops listening and waits for the thread. Idempotent; also before `start`."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = None

    def _answer(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            page: Iterable[bytes] = self._metrics(environ, start_response)
            return page
        status, text = HTTPStatus.NOT_FOUND, "no such page; there are /metrics, /healthz, /readyz"
        if path == "/healthz":
            status, text = HTTPStatus.OK, "ok"
        elif path == "/readyz":
            ready, text = self._readiness()
            status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
        body = f"{text}\n".encode()
        headers = [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
        ]
        start_response(f"{status.value} {status.phrase}", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


class _Server(ThreadingMixIn, WSGIServer):
    """A thread a request: a slow scrape does not hold up a look at the health."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One that does not send its request, or goes before the answer, is no matter."""
        _log.debug("A request at the side port failed", exc_info=True)


class _Server6(_Server):
    address_family = AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: whoever watches asks all the time."""
