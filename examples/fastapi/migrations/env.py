"""Migrations run one at a time, without the application's pool and over a blocking connection."""

import os
from logging.config import fileConfig

from alembic import context
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import NullPool, create_engine

from app.models import Base

fileConfig(context.config.config_file_name)

engine = create_engine(
    "postgresql+psycopg://",
    connect_args=conninfo_to_dict(os.environ["DATABASE_URL"]),
    poolclass=NullPool,
)
with engine.connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        transaction_per_migration=True,  # so that one of them may do without a transaction
    )
    with context.begin_transaction():
        context.run_migrations()
