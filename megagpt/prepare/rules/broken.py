"""What a rule says of a document that it would drop."""

from __future__ import annotations

from typing import NamedTuple


class Broken(NamedTuple):
    reason: str
    """datatrove's name of the rule."""
    value: float
    """What was found, in the unit of the bound."""
    bound: float
    """The setting that it is beyond."""


def share(part: float, whole: float) -> float:
    """Of nothing there is no share: 0."""
    return part / whole if whole else 0.0
