"""`megagpt data why`: what the ledger says of one document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megagpt.config.load import nearest
from megagpt.data.errors import DataError
from megagpt.prepare.summary import database, ledger_files


def why(folder: Path, document_id: str) -> dict[str, Any]:
    """The row of a document, and of what else is in its cluster.

    Raises:
        DataError: no ledger here, or no such document; the message names the nearest ids.
    """
    if not any((folder / "ledger").glob("*.parquet")):
        raise DataError(folder, "holds no ledger; is this the folder of a run of `megagpt data run`?")
    with database() as connection:
        ledger = ledger_files(folder)
        rows = _rows(connection.execute("SELECT * FROM read_parquet(?) WHERE id = ? ORDER BY task, row", [ledger, document_id]))
        if not rows:
            alike = connection.execute(
                "SELECT id FROM read_parquet(?) ORDER BY jaro_winkler_similarity(id, ?) DESC, id LIMIT 1", [ledger, document_id]
            ).fetchall()
            raise DataError(folder / "ledger", f"no document {document_id!r}{nearest(document_id, [id for (id,) in alike]) or ''}")
        found = rows[0]
        if found["cluster"] is not None:
            members = connection.execute(
                "SELECT id, kept FROM read_parquet(?) WHERE cluster = ? AND id <> ? ORDER BY task, row LIMIT 20", [ledger, found["cluster"], document_id]
            ).fetchall()
            found["others_in_cluster"] = [{"id": id, "kept": kept} for id, kept in members]
    return found


def _rows(result) -> list[dict[str, Any]]:
    names = [column[0] for column in result.description]
    rows = [dict(zip(names, values, strict=True)) for values in result.fetchall()]
    for row in rows:
        row["notes"] = json.loads(row["notes"])
    return rows
