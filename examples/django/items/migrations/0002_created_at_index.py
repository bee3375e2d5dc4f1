from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models


class Migration(migrations.Migration):
    # CREATE INDEX CONCURRENTLY lets writes go on meanwhile; it refuses to run in a transaction.
    atomic = False

    dependencies = [("items", "0001_initial")]

    operations = [
        AddIndexConcurrently(
            model_name="item",
            index=models.Index(fields=["created_at"], name="items_created_at_idx"),
        ),
    ]
