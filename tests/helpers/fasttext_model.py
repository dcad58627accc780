"""A fastText classifier file made by hand, whose probabilities have a closed form; fastText's own training often ends in NaN on so little text."""

from __future__ import annotations

import struct
from pathlib import Path

MAGIC, VERSION, SOFTMAX, SUPERVISED, WORD, LABEL = 793712314, 12, 3, 3, 0, 1


def write_model(path: Path, words_of_labels: dict[str, list[str]], slope: float) -> None:
    """One dimension for each label: of its words alone. P(label) is softmax(slope * share of the text's known words that are the label's)."""
    labels = list(words_of_labels)
    words = [(word, place) for place, label in enumerate(labels) for word in words_of_labels[label]]
    entries = [(word, WORD) for word, _ in words] + [(f"__label__{label}", LABEL) for label in labels]
    dim = len(labels)
    one_hot = [[float(place == column) for column in range(dim)] for place in range(dim)]
    arguments = struct.pack("<12id", dim, 5, 1, 1, 5, 1, SOFTMAX, SUPERVISED, 0, 0, 0, 100, 1e-4)
    dictionary = struct.pack("<3i2q", len(entries), len(words), len(labels), len(words), -1)
    dictionary += b"".join(text.encode() + b"\0" + struct.pack("<qb", 1, kind) for text, kind in entries)
    inputs = _matrix([one_hot[place] for _, place in words])
    outputs = _matrix([[slope * number for number in row] for row in one_hot])
    path.write_bytes(struct.pack("<2i", MAGIC, VERSION) + arguments + dictionary + b"\0" + inputs + b"\0" + outputs)


def _matrix(rows: list[list[float]]) -> bytes:
    return struct.pack("<2q", len(rows), len(rows[0])) + b"".join(struct.pack(f"<{len(row)}f", *row) for row in rows)
