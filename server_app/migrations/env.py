"""Run by alembic: take the connection ``migrations.upgrade`` was given."""

from alembic import context

from server_app.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
