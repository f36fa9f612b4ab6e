"""The gateway's log: one JSON object a line on standard error, control characters escaped, long texts cut.

A trace holds types and places in the code, never an exception's text: that may name a volume or its file.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from types import TracebackType

LONGEST = 4000
Exc = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


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

    def formatException(self, ei: Exc) -> str:  # noqa: N802 - logging's own name
        """Types and frames of an exception and of what caused it, without their texts."""
        lines, error, seen = list[str](), ei[1], set[int]()
        while error is not None and id(error) not in seen:
            seen.add(id(error))
            frames = [f"{f.filename}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)]
            lines += [*frames, f"{type(error).__module__}.{type(error).__qualname__}"]
            error = error.__cause__ or error.__context__
        return "\n".join(lines)


def set_up(level: str) -> None:
    """Send every log of this process to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in ("uvicorn", "uvicorn.error", "httpx"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLogger().level))
