"""Run by alembic for each command; the connection comes from migrate.py, which made it for this call alone."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context
from sqlalchemy import JSON
from sqlmodel import AutoString, SQLModel

from provisiond.inventory import tables


def _render(kind: str, item: Any, _context: Any) -> str | Literal[False]:
    """Write types into a draft so that it stands alone, whatever becomes of our classes."""
    if kind != "type":
        return False
    if isinstance(item, tables.UtcDateTime):
        return "sa.DateTime(timezone=True)"
    if isinstance(item, JSON):
        return 'sa.JSON().with_variant(postgresql.JSONB(), "postgresql")'
    if isinstance(item, AutoString):
        return f"sa.String({item.length})"
    return False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    render_as_batch=True,
    render_item=_render,
    compare_type=True,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
