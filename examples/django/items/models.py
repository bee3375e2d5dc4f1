from datetime import UTC
from typing import Any

from django.db import models
from django.db.models.functions import Now


class Item(models.Model):
    key = models.CharField(max_length=200, unique=True)
    name = models.TextField()
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        db_table = "items"
        indexes = [models.Index(fields=["created_at"], name="items_created_at_idx")]

    def __str__(self) -> str:
        return self.key

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.pk,
            "key": self.key,
            "name": self.name,
            "created_at": self.created_at.astimezone(UTC).isoformat(),
        }
