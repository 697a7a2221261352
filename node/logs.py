"""Logging of a node process: one line a record, as text for people or JSON for collectors.

Keys, tokens and request bodies are never handed to a logger; wrappers of secrets hide them in `repr`.
"""

import json
import logging
import sys
import time

from node.config import LogSettings

QUIET = ("aiohttp.access", "asyncio", "urllib3")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, node, logger, message and, if there is one, the error."""

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
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def configure_logging(settings: LogSettings, node: str) -> None:
    """Send all records of this process to standard error, once."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.format == "json":
        handler.setFormatter(JsonFormatter(node))
    else:
        # Node names are [a-z0-9-], so the format needs no escaping.
        text = f"%(asctime)s.%(msecs)03d %(levelname)-7s {node} %(name)s: %(message)s"
        handler.setFormatter(logging.Formatter(text, "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
