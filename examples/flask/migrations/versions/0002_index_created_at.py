"""index items by created_at"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # CREATE INDEX CONCURRENTLY lets writes go on meanwhile; it refuses to run in a transaction.
    with op.get_context().autocommit_block():
        op.create_index(
            "items_created_at_idx", "items", ["created_at"], postgresql_concurrently=True
        )


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.drop_index("items_created_at_idx", postgresql_concurrently=True)
