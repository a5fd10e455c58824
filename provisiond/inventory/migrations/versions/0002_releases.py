"""Releases with pointers, sources, shadow runs, rollouts and flags; storage and network descriptions."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002_releases"
down_revision = "0001_first"
branch_labels = None
depends_on = None

_AT = sa.DateTime(timezone=True)
_MOVE = sa.table(
    "pointer_move",
    *map(sa.column, ("id", "place", "release_id", "actor", "reason", "back")),
    sa.column("at", _AT),
)
_POINTER = sa.table(
    "release_pointer", *map(sa.column, ("place", "release_id", "move_id")), sa.column("moved_at", _AT)
)

# Rows of these never change. A later migration that lets alembic rebuild one of them on SQLite loses its triggers: make them again.
_UNIQUE = {"template_release": ("id", "number", "digest"), "pointer_move": ("id",)}


def _guards(dialect: str, table: str) -> list[str]:
    said = f"rows of {table} never change"
    if dialect == "sqlite":
        refuse = f"BEGIN SELECT RAISE(ABORT, '{said}'); END"
        same = " OR ".join(f"{column} = NEW.{column}" for column in _UNIQUE[table])
        there = f"EXISTS (SELECT 1 FROM {table} WHERE {same})"  # noqa: S608 - our own names
        return [
            f"CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} {refuse}",
            f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} {refuse}",
            f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} WHEN {there} {refuse}",
        ]
    run = f"EXECUTE FUNCTION {table}_refuse()"
    return [
        f"CREATE OR REPLACE FUNCTION {table}_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{said}' USING ERRCODE = 'integrity_constraint_violation'; END $$",
        f"CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW {run}",
        f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table} FOR EACH STATEMENT {run}",
    ]


def upgrade() -> None:
    op.create_table(
        "flag",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("about", sa.String(1024), nullable=False),
        sa.Column("percent", sa.Float(), nullable=False),
        sa.Column("groups", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.Column("hosts", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.Column("off_hosts", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_flag")),
        sa.UniqueConstraint("name", name=op.f("uq_flag_name")),
    )
    op.create_table(
        "template_source",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("location", sa.String(1024), nullable=False),
        sa.Column("ref", sa.String(256), nullable=False),
        sa.Column("subdirectory", sa.String(256), nullable=False),
        sa.Column("poll_seconds", sa.Integer(), nullable=True),
        sa.Column("secret_key", sa.Text(), nullable=False),
        sa.Column("known_hosts", sa.Text(), nullable=False),
        sa.Column("secret_hook", sa.Text(), nullable=False),
        sa.Column("polled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("commit", sa.String(64), nullable=True),
        sa.Column("failure", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_template_source")),
        sa.UniqueConstraint("name", name=op.f("uq_template_source_name")),
    )
    with op.batch_alter_table("template_source", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_template_source_due_at"), ["due_at"], unique=False)

    op.create_table(
        "pointer_move",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("place", sa.String(36), nullable=False),
        sa.Column("release_id", sa.String(None), nullable=True),
        sa.Column("before_id", sa.String(None), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("reason", sa.String(1024), nullable=False),
        sa.Column("back", sa.Boolean(), nullable=False),
        sa.Column("rollout_id", sa.String(36), nullable=True),
        sa.ForeignKeyConstraint(
            ["before_id"], ["template_release.id"], name=op.f("fk_pointer_move_before_id")
        ),
        sa.ForeignKeyConstraint(
            ["release_id"], ["template_release.id"], name=op.f("fk_pointer_move_release_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pointer_move")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("pointer_move", schema=None) as batch_op:
        batch_op.create_index("ix_pointer_move_place", ["place", "id"], unique=False)

    op.create_table(
        "release_pointer",
        sa.Column("place", sa.String(36), nullable=False),
        sa.Column("release_id", sa.String(None), nullable=False),
        sa.Column("move_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("moved_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["release_id"], ["template_release.id"], name=op.f("fk_release_pointer_release_id")
        ),
        sa.PrimaryKeyConstraint("place", name=op.f("pk_release_pointer")),
    )
    op.create_table(
        "rollout",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("group_id", sa.String(36), nullable=True),
        sa.Column("group_name", sa.String(128), nullable=False),
        sa.Column("active_place", sa.String(36), nullable=True),
        sa.Column("release_id", sa.String(None), nullable=False),
        sa.Column("before_id", sa.String(None), nullable=True),
        sa.Column("steps", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.Column("gates", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.Column("window_seconds", sa.Integer(), nullable=False),
        sa.Column("rebuild", sa.Integer(), nullable=False),
        sa.Column("rebuild_back", sa.Boolean(), nullable=False),
        sa.Column("min_builds", sa.Integer(), nullable=False),
        sa.Column("seed", sa.String(64), nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("step_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("threshold", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_owner", sa.String(80), nullable=True),
        sa.Column("lease_expires", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("work", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.Column("report", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.ForeignKeyConstraint(["before_id"], ["template_release.id"], name=op.f("fk_rollout_before_id")),
        sa.ForeignKeyConstraint(["release_id"], ["template_release.id"], name=op.f("fk_rollout_release_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollout")),
        sa.UniqueConstraint("active_place", name=op.f("uq_rollout_active_place")),
        sa.UniqueConstraint("number", name=op.f("uq_rollout_number")),
    )
    with op.batch_alter_table("rollout", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_rollout_due_at"), ["due_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_rollout_state"), ["state"], unique=False)

    op.create_table(
        "rollout_host",
        sa.Column("rollout_id", sa.String(length=36), nullable=False),
        sa.Column("host_id", sa.String(36), nullable=False),
        sa.Column("purpose", sa.String(8), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollout.id"], name=op.f("fk_rollout_host_rollout_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("rollout_id", "host_id", "purpose", name=op.f("pk_rollout_host")),
    )
    op.create_table(
        "shadow_run",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("release_id", sa.String(None), nullable=False),
        sa.Column("group_id", sa.String(36), nullable=True),
        sa.Column("group_name", sa.String(128), nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("validate_results", sa.Boolean(), nullable=False),
        sa.Column("boot", sa.Integer(), nullable=False),
        sa.Column("cursor", sa.String(36), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("done", sa.Integer(), nullable=False),
        sa.Column("unchanged", sa.Integer(), nullable=False),
        sa.Column("changed", sa.Integer(), nullable=False),
        sa.Column("failing", sa.Integer(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failure", sa.Text(), nullable=False),
        sa.Column("lease_owner", sa.String(80), nullable=True),
        sa.Column("lease_expires", sa.DateTime(timezone=True), nullable=True),
        sa.Column("report", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.ForeignKeyConstraint(
            ["release_id"], ["template_release.id"], name=op.f("fk_shadow_run_release_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_shadow_run")),
        sa.UniqueConstraint("number", name=op.f("uq_shadow_run_number")),
    )
    with op.batch_alter_table("shadow_run", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_shadow_run_state"), ["state"], unique=False)

    op.create_table(
        "shadow_diff",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("template", sa.String(256), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("hosts", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["shadow_run.id"], name=op.f("fk_shadow_diff_run_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", "digest", name=op.f("pk_shadow_diff")),
    )
    op.create_table(
        "shadow_result",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("host_id", sa.String(36), nullable=False),
        sa.Column("host_name", sa.String(63), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("diffs", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.Column("milliseconds", sa.Float(), nullable=False),
        sa.Column("milliseconds_before", sa.Float(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("size_before", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["shadow_run.id"], name=op.f("fk_shadow_result_run_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", "host_id", name=op.f("pk_shadow_result")),
    )
    op.create_table(
        "served_file",
        sa.Column("deployment_id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("template", sa.String(256), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("times", sa.Integer(), nullable=False),
        sa.Column("first_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["deployment_id"],
            ["deployment.id"],
            name=op.f("fk_served_file_deployment_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("deployment_id", "kind", "digest", name=op.f("pk_served_file")),
    )
    with op.batch_alter_table("deployment", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("flags", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=True)
        )
        batch_op.create_index("ix_deployment_release", ["release_id", "created_at"], unique=False)

    with op.batch_alter_table("host", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("storage", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=True)
        )
        batch_op.add_column(
            sa.Column("network", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=True)
        )

    with op.batch_alter_table("host_group", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("storage", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=True)
        )
        batch_op.add_column(
            sa.Column("network", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=True)
        )

    with op.batch_alter_table("template_release") as batch_op:
        batch_op.add_column(sa.Column("number", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("source", sa.String(128), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("author", sa.String(256), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("message", sa.Text(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("imported_by", sa.String(128), nullable=False, server_default=""))
        batch_op.add_column(
            sa.Column(
                "lint",
                sa.JSON().with_variant(postgresql.JSONB(), "postgresql"),
                nullable=False,
                server_default="{}",
            )
        )
    connection = op.get_bind()
    rows = connection.execute(
        sa.text("SELECT id, current FROM template_release ORDER BY created_at, id")
    ).all()
    for number, row in enumerate(rows, start=1):
        connection.execute(
            sa.text("UPDATE template_release SET number = :number WHERE id = :id"),
            {"number": number, "id": row.id},
        )
    now = datetime.now(UTC)
    for row in rows:
        if not row.current:
            continue
        values = {"place": "*", "release_id": row.id}
        connection.execute(
            _MOVE.insert().values(
                **values, at=now, actor="daemon", back=False, reason="current before releases had pointers"
            )
        )
        last = connection.execute(sa.select(sa.func.max(_MOVE.c.id))).scalar()
        connection.execute(_POINTER.insert().values(**values, move_id=last, moved_at=now))
    with op.batch_alter_table("template_release") as batch_op:
        batch_op.alter_column("number", existing_type=sa.Integer(), nullable=False)
        batch_op.create_unique_constraint(batch_op.f("uq_template_release_number"), ["number"])
        batch_op.drop_column("current")
    for guarded in _UNIQUE:
        for statement in _guards(connection.dialect.name, guarded):
            connection.exec_driver_sql(statement)


def downgrade() -> None:
    for guarded in _UNIQUE:
        if op.get_bind().dialect.name == "postgresql":
            op.execute(f"DROP FUNCTION {guarded}_refuse() CASCADE")
            continue
        for what in ("update", "delete", "replace"):
            op.execute(f"DROP TRIGGER {guarded}_no_{what}")
    with op.batch_alter_table("template_release", schema=None) as batch_op:
        batch_op.add_column(sa.Column("current", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.execute(
        "UPDATE template_release SET current = true WHERE id IN (SELECT release_id FROM release_pointer WHERE place = '*')"
    )
    with op.batch_alter_table("template_release") as batch_op:
        batch_op.drop_constraint(batch_op.f("uq_template_release_number"), type_="unique")
        batch_op.drop_column("lint")
        batch_op.drop_column("imported_by")
        batch_op.drop_column("message")
        batch_op.drop_column("author")
        batch_op.drop_column("source")
        batch_op.drop_column("number")

    with op.batch_alter_table("host_group", schema=None) as batch_op:
        batch_op.drop_column("network")
        batch_op.drop_column("storage")

    with op.batch_alter_table("host", schema=None) as batch_op:
        batch_op.drop_column("network")
        batch_op.drop_column("storage")

    with op.batch_alter_table("deployment", schema=None) as batch_op:
        batch_op.drop_index("ix_deployment_release")
        batch_op.drop_column("flags")

    op.drop_table("served_file")
    op.drop_table("shadow_result")
    op.drop_table("shadow_diff")
    with op.batch_alter_table("shadow_run", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_shadow_run_state"))

    op.drop_table("shadow_run")
    with op.batch_alter_table("rollout", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_rollout_state"))
        batch_op.drop_index(batch_op.f("ix_rollout_due_at"))

    op.drop_table("rollout_host")
    op.drop_table("rollout")
    op.drop_table("release_pointer")
    with op.batch_alter_table("pointer_move", schema=None) as batch_op:
        batch_op.drop_index("ix_pointer_move_place")

    op.drop_table("pointer_move")
    with op.batch_alter_table("template_source", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_template_source_due_at"))

    op.drop_table("template_source")
    op.drop_table("flag")
