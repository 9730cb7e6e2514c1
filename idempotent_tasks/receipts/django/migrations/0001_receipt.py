"""Create the table of receipts."""

from typing import ClassVar

from django.db import migrations, models

from idempotent_tasks.receipts.django.fields import KeyText


class Migration(migrations.Migration):
    """The first version of the table."""

    initial = True
    dependencies: ClassVar[list[tuple[str, str]]] = []
    operations: ClassVar[list[migrations.operations.base.Operation]] = [
        migrations.CreateModel(
            name="Receipt",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "key", "step", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("key", KeyText()),
                ("step", KeyText()),
                ("generation", models.BigIntegerField()),
                ("fence", models.BigIntegerField()),
                ("task_id", models.TextField()),
                ("expires_at", models.BigIntegerField(db_index=True)),
                ("status", models.TextField(null=True)),
                ("codec", models.TextField(null=True)),
                ("text", models.TextField(null=True)),
                ("data", models.BinaryField(null=True)),
                ("error", models.TextField(null=True)),
                ("continuation", models.TextField(null=True)),
                ("following", models.TextField(null=True)),
                ("inputs", models.TextField(null=True)),
            ],
            options={"db_table": "idempotency_receipts"},
        ),
    ]
