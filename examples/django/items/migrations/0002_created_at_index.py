from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models


class Migration(migrations.Migration):
    # CREATE INDEX CONCURRENTLY lets writes go on meanwhile; it refuses to run in a transaction. It
    # waits for every transaction that began before it, and holds up no query: longer than the
    # role's lock_timeout. What a build that was cut off has left is in the way of the next one.
    atomic = False

    dependencies = [("items", "0001_initial")]

    operations = [
        migrations.RunSQL("SET lock_timeout = '15min'", migrations.RunSQL.noop),
        migrations.RunSQL(
            "DROP INDEX CONCURRENTLY IF EXISTS items_created_at_idx", migrations.RunSQL.noop
        ),
        AddIndexConcurrently(
            model_name="item",
            index=models.Index(fields=["created_at"], name="items_created_at_idx"),
        ),
        migrations.RunSQL("RESET lock_timeout", migrations.RunSQL.noop),
    ]
