"""Bring a ledger of an earlier release to the schema of this one.

Release 0.1.0 wrote schema 1: no table `tests`, no checksums and no seal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tune_softmax.run.tables import (
    EPOCHS,
    EVENTS,
    FIRST_SCHEMA,
    META,
    SCHEMA_VERSION,
    TRIALS,
    fetch,
    make_tables,
)

if TYPE_CHECKING:
    import sqlalchemy as sa

__all__ = ["upgrade"]


def upgrade(connection: sa.Connection, copy: str) -> int:
    """Move every row of a ledger of schema 1 to new tables.

    Args:
        connection: Within the transaction that does it all.
        copy: The name of the copy that was made before, for the event that tells of this.

    Returns:
        How many transactions the ledger holds with this one, the first that counts.
    """
    # Those that refer to others come first.
    tables = (EPOCHS, TRIALS, EVENTS, META)
    old = {table: fetch(connection, table, is_sealed=False).rows for table in tables}
    for table in old:
        connection.exec_driver_sql(f"ALTER TABLE {table.name} RENAME TO old_{table.name}")
    batch = make_tables(connection, {row["key"]: row["value"] for row in old[META]})
    for table in (TRIALS, EPOCHS, EVENTS):
        batch.put(table, old[table])
    batch.event("upgraded", {"from": FIRST_SCHEMA, "to": SCHEMA_VERSION, "copy": copy})
    for table in old:
        connection.exec_driver_sql(f"DROP TABLE old_{table.name}")
    return batch.seal()
