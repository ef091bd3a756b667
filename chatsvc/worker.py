"""The program of one worker of `serve --workers`: a server on a port that it shares."""

import dataclasses
import logging
import os
import threading
from typing import Any

from chatsvc import parent
from chatsvc.config import Config
from chatsvc.errors import ChatError
from chatsvc.process import pin_cpu, raise_file_limit
from chatsvc.seats import SeatTable, SharedSeats
from chatsvc.server import Server

_log = logging.getLogger(__name__)


def _serve(settings: dict[str, Any], report: parent.Report, stopping: threading.Event) -> None:
    brokers = tuple(settings["config"].pop("brokers"))
    config = Config(**settings["config"], brokers=brokers)
    warning = raise_file_limit(config.max_connections)
    if config.pin_cpu:
        pin_cpu(config.port + settings["slot"])
    table = SeatTable(settings["seats"])
    os.close(settings["seats"])
    failures: list[ChatError] = []

    def fail(error: ChatError) -> None:
        _log.error("%s", error)
        failures.append(error)
        stopping.set()

    server = Server(
        config,
        seats=SharedSeats(config.max_connections, table, settings["slot"]),
        embedded=tuple(settings["embedded"]),
        on_failure=fail,
    )
    try:
        listening = server.start()
        report(
            dataclasses.asdict(listening)
            | {"warnings": [*([warning] if warning else []), *listening.warnings]}
        )
        stopping.wait()
    finally:
        server.stop()
    for error in failures:
        raise error


if __name__ == "__main__":
    parent.run(_serve, until_signal=True)
