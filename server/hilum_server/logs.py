"""The gateway's log: one JSON object a line on standard error, control characters escaped, long texts cut."""

from __future__ import annotations

import json
import logging
import sys
import time

LONGEST = 4000


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{when}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "name": record.name,
            "message": record.getMessage()[:LONGEST],
        }
        trace = getattr(record, "trace", None)
        if record.exc_info:
            trace = self.formatException(record.exc_info)
        if trace:
            line["trace"] = str(trace)[-LONGEST:]
        return json.dumps(line)


def set_up(level: str) -> None:
    """Send every log of this process to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in ("uvicorn", "uvicorn.error", "httpx"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLogger().level))
