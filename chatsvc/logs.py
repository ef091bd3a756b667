"""Log lines on stderr: text for people, or one JSON object a line."""

import json
import logging
import time
from datetime import UTC, datetime

LEVELS = ("debug", "info", "warning", "error")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "thread": record.threadName,
            "message": record.getMessage(),
        }
        trace_id = getattr(record, "trace_id", "")
        if trace_id:
            fields["trace_id"] = trace_id
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


class _TextFormatter(logging.Formatter):
    """The seed's form, Go's: local time without an offset, then the message."""

    converter = time.localtime  # type: ignore[assignment]  # logging's own documented way
    default_time_format = "%Y/%m/%d %H:%M:%S"
    default_msec_format = None

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        line = super().formatMessage(record)
        trace_id = getattr(record, "trace_id", "")
        return f"{line}, Trace: {trace_id}" if trace_id else line


def configure(form: str, level: str) -> None:
    """Sends all log lines of at least `level` to stderr, as `text` or `json`."""
    handler = logging.StreamHandler()
    text = _TextFormatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(_JsonFormatter() if form == "json" else text)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
