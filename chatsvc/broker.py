"""The program of the embedded broker that the workers of `serve --workers` share."""

import threading
from typing import Any

from chatsvc import parent
from chatsvc.embedded import EmbeddedBroker


def _serve(settings: dict[str, Any], report: parent.Report, stopping: threading.Event) -> None:
    broker = EmbeddedBroker()
    try:
        brokers = broker.start()
        for topic in settings["topics"]:
            broker.make_topic(topic)
        report({"brokers": brokers})
        stopping.wait()
    finally:
        broker.close()


if __name__ == "__main__":
    # The workers end before it, also when all are signalled at once: they need it to stop.
    parent.run(_serve, until_signal=False)
