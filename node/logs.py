"""Logging of a node process: one line a record, as text for people or JSON for collectors.

Keys, tokens and request bodies are never handed to a logger; wrappers of secrets hide them in `repr`. What
peers and clients wrote may stand in a message, so that whatever is not printable is escaped: a record can't
be made to look like two.
"""

import json
import logging
import sys
import time
from collections import deque
from contextvars import ContextVar

from node.settings import LogSettings

QUIET = ("aiohttp.access", "asyncio", "urllib3")
MAX_RECENT = 1_000
"""Records kept in memory for `bmif debug dump`."""
MAX_RECENT_LENGTH = 4_000
"""Characters of each that are kept."""

REQUEST: ContextVar[str] = ContextVar("request", default="")
"""Id of the API request that is being answered; empty outside of any."""


def escape(text: str) -> str:
    """The text on one line and without control characters, each as Python writes it in a literal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, node, logger, message and, where there is one, the request's
    id and the error."""

    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "node": self._node,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := REQUEST.get():
            entry["request"] = request
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class TextFormatter(logging.Formatter):
    """Time of day, level, node, logger, message, request id; an error's lines follow, each marked as such."""

    def __init__(self, node: str) -> None:
        super().__init__()
        self._node = node

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = (
            f"{clock}.{int(record.msecs):03d} {record.levelname:<7} {self._node} {record.name}: "
            f"{escape(record.getMessage())}"
        )
        if request := REQUEST.get():
            line += f" [{request}]"
        if record.exc_info:
            trace = self.formatException(record.exc_info).split("\n")
            line += "".join(f"\n    | {escape(part)}" for part in trace)
        return line


class RecentRecords(logging.Handler):
    """Keeps the last records as lines, for whoever looks for what went wrong."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[str] = deque(maxlen=MAX_RECENT)

    @property
    def lines(self) -> tuple[str, ...]:
        """Oldest first."""
        return tuple(self._lines)

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record)[:MAX_RECENT_LENGTH])


def configure_logging(settings: LogSettings, node: str) -> None:
    """Send all records of this process to standard error, once, and keep the last ones."""
    # Node names are [a-z0-9-], so they need no escaping.
    formatter = JsonFormatter(node) if settings.format == "json" else TextFormatter(node)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr), RecentRecords()]
    for handler in handlers:
        handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = handlers
    root.setLevel(settings.level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def get_recent_lines() -> tuple[str, ...]:
    """The last records of this process; none where `configure_logging` was not called."""
    found = (handler for handler in logging.getLogger().handlers if isinstance(handler, RecentRecords))
    return tuple(line for handler in found for line in handler.lines)
