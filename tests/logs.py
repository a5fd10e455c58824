"""How tests log: as text, with tracebacks as Python writes them."""

from __future__ import annotations

import structlog


def plain() -> None:
    """In place of structlog's default, which has rich draw every traceback with its local variables.

    That takes a second and more for one of SQLAlchemy's, in the event loop: an engine that was frozen and finds all its
    sessions ended was busy with it for minutes.
    """
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ]
    )
