"""The gates of a run as a table on the terminal."""

from __future__ import annotations

from typing import Any

from megagpt.runtime.run_folder import RunFolder

COLUMNS = ("stage", "name", "value", "bound", "verdict")


def print_gates(run: RunFolder) -> bool:
    """Print the table of gates to stdout. Returns True if none failed, also where none was recorded."""
    gates = run.gates
    if not gates:
        print(f"{run.path.name}: no gates recorded")
        return True
    cells = [COLUMNS, *(tuple(show(gate[column]) for column in COLUMNS) for gate in gates)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    failed = failures(gates)
    print(f"{len(gates)} gates: " + (f"{len(failed)} FAILED ({', '.join(failed)})" if failed else "all passed"))
    return not failed


def failures(gates: list[dict[str, Any]]) -> list[str]:
    """`stage name` of every gate that is not recorded as passed."""
    return [f"{gate['stage']} {gate['name']}" for gate in gates if gate["verdict"] != "passed"]


def show(value: Any) -> str:
    """A number in four digits or with separators, anything else as text."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
