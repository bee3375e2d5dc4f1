"""index items by created_at"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # CREATE INDEX CONCURRENTLY lets writes go on meanwhile; it refuses to run in a transaction. It
    # waits for every transaction that began before it, and holds up no query: longer than the
    # role's lock_timeout. What a build that was cut off has left is in the way of the next one.
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = '15min'")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS items_created_at_idx")
        op.create_index(
            "items_created_at_idx", "items", ["created_at"], postgresql_concurrently=True
        )
        op.execute("RESET lock_timeout")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.drop_index("items_created_at_idx", postgresql_concurrently=True)
