"""Documents on their way through the steps of data preparation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datatrove.data import Document

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
NO_SHARED = f"needs the real data sets in {SHARED}"


def flowing(text: str, kind: str = "web", **metadata: Any) -> Document:
    """As the clean phase makes it of a record."""
    known = {"source": "test", "kind": kind, "url": "", "licence": "", "date": "", "meta": {}, "scores": {}, "notes": {}, "weight": 1.0}
    return Document(text=text, id="test/0", metadata=known | metadata)
