"""Flask-Migrate runs this in an application context: the application's database is the one."""

from logging.config import fileConfig

from alembic import context
from flask import current_app

db = current_app.extensions["migrate"].db

fileConfig(context.config.config_file_name, disable_existing_loggers=False)

with db.engine.connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=db.metadata,
        transaction_per_migration=True,  # so that one of them may do without a transaction
    )
    with context.begin_transaction():
        context.run_migrations()
