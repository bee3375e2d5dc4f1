import json

from django.test import TestCase, TransactionTestCase

from items.models import Item


class ItemsTest(TestCase):
    def post(self, body: object, content_type: str = "application/json"):
        return self.client.post("/items", body, content_type=content_type)

    def test_post_is_idempotent(self):
        first = self.post({"key": "a", "name": "first"})
        again = self.post({"key": "a", "name": "second"})
        self.assertEqual([first.status_code, again.status_code], [201, 200])
        self.assertEqual(first.json(), again.json())
        self.assertEqual(self.client.get("/items").json(), {"items": [first.json()]})

    def test_invalid_items_are_refused(self):
        for key in (None, "", 1, "x" * 201, "a\0b", "\ud800"):
            with self.subTest(key=key):
                self.assertEqual(self.post({"key": key, "name": "n"}).status_code, 400)
        for body in ("", "{", "[]", "[" * 100_000):
            with self.subTest(body=body[:5]):
                self.assertEqual(self.post(body).status_code, 400)
        self.assertEqual(self.post("{}", content_type="text/plain").status_code, 400)


class ExportTest(TransactionTestCase):
    """The export reads on a connection of its own, which sees committed rows only."""

    databases = {"default", "direct"}

    def test_export_streams_every_item(self):
        Item.objects.bulk_create(Item(key=key, name=key) for key in "abc")
        lines = b"".join(self.client.get("/export")).splitlines()
        self.assertEqual([json.loads(line)["key"] for line in lines], ["a", "b", "c"])
