"""Tables whose rows never change: the database itself refuses, whoever asks, by triggers on both databases.

What a database's own administrator does against it (dropping a trigger) is not kept from happening: a release's digest shows it.
SQLite's REPLACE deletes without firing the trigger for DELETE, hence the one for INSERT.
"""

from __future__ import annotations

from sqlalchemy import DDL, Table, event

REFUSED = "rows of {table} never change"


def statements(table: str, unique: tuple[str, ...], dialect: str) -> list[str]:
    """The DDL for ``table``, whose unique columns are named. Migration 0002 holds the same texts as they were then."""
    said = REFUSED.format(table=table)
    if dialect == "sqlite":
        refuse = f"BEGIN SELECT RAISE(ABORT, '{said}'); END"
        same = " OR ".join(f"{column} = NEW.{column}" for column in unique)
        there = f"EXISTS (SELECT 1 FROM {table} WHERE {same})"  # noqa: S608 - our own names
        return [
            f"CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} {refuse}",
            f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} {refuse}",
            f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} WHEN {there} {refuse}",
        ]
    return [
        f"CREATE OR REPLACE FUNCTION {table}_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{said}' USING ERRCODE = 'integrity_constraint_violation'; END $$",
        f"CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION {table}_refuse()",
        f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION {table}_refuse()",
    ]


def guard(table: Table, *unique: str) -> None:
    """Have the triggers made together with the table, where it is made from the models."""
    for dialect in ("sqlite", "postgresql"):
        for statement in statements(table.name, unique, dialect):
            made = DDL(statement.replace("%", "%%"))  # type: ignore[no-untyped-call]
            event.listen(table, "after_create", made.execute_if(dialect=dialect))
