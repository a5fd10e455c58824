"""Hardware: facts, discovery rules, profiles, ramdisk sessions and tasks, tests and erasures; what an image holds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003_hardware"
down_revision = "0002_releases"
branch_labels = None
depends_on = None

_SAID = "rows of erasure never change"


def _guards(dialect: str) -> list[str]:
    """Triggers as in 0002: a later migration that lets alembic rebuild the table on SQLite must make them again."""
    if dialect == "sqlite":
        refuse = f"BEGIN SELECT RAISE(ABORT, '{_SAID}'); END"
        there = "EXISTS (SELECT 1 FROM erasure WHERE id = NEW.id)"
        return [
            f"CREATE TRIGGER erasure_no_update BEFORE UPDATE ON erasure {refuse}",
            f"CREATE TRIGGER erasure_no_delete BEFORE DELETE ON erasure {refuse}",
            f"CREATE TRIGGER erasure_no_replace BEFORE INSERT ON erasure WHEN {there} {refuse}",
        ]
    run = "EXECUTE FUNCTION erasure_refuse()"
    return [
        "CREATE OR REPLACE FUNCTION erasure_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{_SAID}' USING ERRCODE = 'integrity_constraint_violation'; END $$",
        f"CREATE TRIGGER erasure_no_change BEFORE UPDATE OR DELETE ON erasure FOR EACH ROW {run}",
        f"CREATE TRIGGER erasure_no_truncate BEFORE TRUNCATE ON erasure FOR EACH STATEMENT {run}",
    ]


def upgrade() -> None:
    op.create_table(
        "erasure",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("task_id", sa.String(36), nullable=False),
        sa.Column("host_id", sa.String(36), nullable=False),
        sa.Column("host_name", sa.String(63), nullable=False),
        sa.Column("host_serial", sa.String(128), nullable=True),
        sa.Column("disk_name", sa.String(64), nullable=False),
        sa.Column("disk_model", sa.String(128), nullable=False),
        sa.Column("disk_serial", sa.String(128), nullable=False),
        sa.Column("disk_wwn", sa.String(64), nullable=False),
        sa.Column("disk_size", sa.BigInteger(), nullable=False),
        sa.Column("method", sa.String(32), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("verified", sa.Boolean(), nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=False),
        sa.Column("message", sa.String(1024), nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_erasure")),
    )
    with op.batch_alter_table("erasure", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_erasure_host_id"), ["host_id"], unique=False)
        batch_op.create_index("ix_erasure_host_name", ["host_name"], unique=False)
        batch_op.create_index(batch_op.f("ix_erasure_task_id"), ["task_id"], unique=False)

    op.create_table(
        "hardware_profile",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("about", sa.String(1024), nullable=False),
        sa.Column("expected", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hardware_profile")),
        sa.UniqueConstraint("name", name=op.f("uq_hardware_profile_name")),
    )
    op.create_table(
        "discovery_rule",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("about", sa.String(1024), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("expression", sa.Text(), nullable=False),
        sa.Column("group_id", sa.String(), nullable=True),
        sa.Column("profile_id", sa.String(), nullable=True),
        sa.Column("name_pattern", sa.String(256), nullable=False),
        sa.Column("storage", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=True),
        sa.Column("network", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=True),
        sa.Column("parameters", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.Column("approve", sa.Boolean(), nullable=False),
        sa.Column("build", sa.Boolean(), nullable=False),
        sa.Column("bmc_username", sa.String(16), nullable=False),
        sa.Column("taken", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["group_id"], ["host_group.id"], name=op.f("fk_discovery_rule_group_id")),
        sa.ForeignKeyConstraint(
            ["profile_id"], ["hardware_profile.id"], name=op.f("fk_discovery_rule_profile_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_discovery_rule")),
        sa.UniqueConstraint("name", name=op.f("uq_discovery_rule_name")),
    )
    with op.batch_alter_table("discovery_rule", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_discovery_rule_priority"), ["priority"], unique=False)

    op.create_table(
        "agent_session",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("host_id", sa.String(length=36), nullable=True),
        sa.Column("mac", sa.String(17), nullable=False),
        sa.Column("secret_hash", sa.String(64), nullable=False),
        sa.Column("macs", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.Column("serial", sa.String(128), nullable=True),
        sa.Column("machine_uuid", sa.String(36), nullable=True),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("facts_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["host_id"], ["host.id"], name=op.f("fk_agent_session_host_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_agent_session")),
    )
    with op.batch_alter_table("agent_session", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_agent_session_host_id"), ["host_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_agent_session_seen_at"), ["seen_at"], unique=False)

    op.create_table(
        "hardware",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("host_id", sa.String(length=36), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("facts", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.ForeignKeyConstraint(
            ["host_id"], ["host.id"], name=op.f("fk_hardware_host_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hardware")),
    )
    with op.batch_alter_table("hardware", schema=None) as batch_op:
        batch_op.create_index("ix_hardware_host", ["host_id", "id"], unique=False)

    op.create_table(
        "hardware_test",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("host_id", sa.String(length=36), nullable=False),
        sa.Column("task_id", sa.String(36), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("output", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["host_id"], ["host.id"], name=op.f("fk_hardware_test_host_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hardware_test")),
        sa.UniqueConstraint("task_id", "name", name=op.f("uq_hardware_test_task_id_name")),
    )
    with op.batch_alter_table("hardware_test", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_hardware_test_host_id"), ["host_id"], unique=False)

    op.create_table(
        "ramdisk_task",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("host_id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("options", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("boots", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("progress", sa.Integer(), nullable=False),
        sa.Column("progress_text", sa.String(256), nullable=False),
        sa.Column("done_bytes", sa.BigInteger(), nullable=False),
        sa.Column("total_bytes", sa.BigInteger(), nullable=False),
        sa.Column("done_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failure", sa.Text(), nullable=False),
        sa.Column("log_tail", sa.Text(), nullable=False),
        sa.Column("result", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["host_id"], ["host.id"], name=op.f("fk_ramdisk_task_host_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ramdisk_task")),
    )
    with op.batch_alter_table("ramdisk_task", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_ramdisk_task_host_id"), ["host_id"], unique=False)

    with op.batch_alter_table("host", schema=None) as batch_op:
        batch_op.add_column(sa.Column("machine_uuid", sa.String(36), nullable=True))
        batch_op.add_column(sa.Column("profile_id", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("task_id", sa.String(36), nullable=True))
        batch_op.create_index(batch_op.f("ix_host_machine_uuid"), ["machine_uuid"], unique=False)
        batch_op.create_foreign_key(
            batch_op.f("fk_host_profile_id"), "hardware_profile", ["profile_id"], ["id"]
        )

    with op.batch_alter_table("host_group", schema=None) as batch_op:
        batch_op.add_column(sa.Column("profile_id", sa.String(), nullable=True))
        batch_op.create_foreign_key(
            batch_op.f("fk_host_group_profile_id"), "hardware_profile", ["profile_id"], ["id"]
        )

    with op.batch_alter_table("image", schema=None) as batch_op:
        batch_op.add_column(sa.Column("content", sa.String(16), nullable=False, server_default="disk"))
        batch_op.add_column(sa.Column("zstd", sa.String(1024), nullable=False, server_default=""))
        batch_op.add_column(
            sa.Column(
                "partitions",
                sa.JSON().with_variant(postgresql.JSONB(), "postgresql"),
                nullable=False,
                server_default="[]",
            )
        )
        batch_op.add_column(sa.Column("verified_by", sa.String(256), nullable=False, server_default=""))
    for statement in _guards(op.get_bind().dialect.name):
        op.get_bind().exec_driver_sql(statement)


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION erasure_refuse() CASCADE")
    else:
        for what in ("update", "delete", "replace"):
            op.execute(f"DROP TRIGGER erasure_no_{what}")
    with op.batch_alter_table("image", schema=None) as batch_op:
        batch_op.drop_column("verified_by")
        batch_op.drop_column("partitions")
        batch_op.drop_column("zstd")
        batch_op.drop_column("content")

    with op.batch_alter_table("host_group", schema=None) as batch_op:
        batch_op.drop_constraint(batch_op.f("fk_host_group_profile_id"), type_="foreignkey")
        batch_op.drop_column("profile_id")

    with op.batch_alter_table("host", schema=None) as batch_op:
        batch_op.drop_constraint(batch_op.f("fk_host_profile_id"), type_="foreignkey")
        batch_op.drop_index(batch_op.f("ix_host_machine_uuid"))
        batch_op.drop_column("task_id")
        batch_op.drop_column("profile_id")
        batch_op.drop_column("machine_uuid")

    with op.batch_alter_table("ramdisk_task", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_ramdisk_task_host_id"))

    op.drop_table("ramdisk_task")
    with op.batch_alter_table("hardware_test", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_hardware_test_host_id"))

    op.drop_table("hardware_test")
    with op.batch_alter_table("hardware", schema=None) as batch_op:
        batch_op.drop_index("ix_hardware_host")

    op.drop_table("hardware")
    with op.batch_alter_table("agent_session", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_agent_session_seen_at"))
        batch_op.drop_index(batch_op.f("ix_agent_session_host_id"))

    op.drop_table("agent_session")
    with op.batch_alter_table("discovery_rule", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_discovery_rule_priority"))

    op.drop_table("discovery_rule")
    op.drop_table("hardware_profile")
    with op.batch_alter_table("erasure", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_erasure_task_id"))
        batch_op.drop_index("ix_erasure_host_name")
        batch_op.drop_index(batch_op.f("ix_erasure_host_id"))

    op.drop_table("erasure")
