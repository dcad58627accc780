"""What became of the documents, as text for a terminal."""

from __future__ import annotations

from typing import Any

COLUMNS = ("source", "documents", "kept", "share", "characters", "kept", "share", "problems", "most dropped for")


def table_of_sources(statistics: dict[str, Any]) -> str:
    """One line for each source, and one for all."""
    sources = statistics["sources"]
    rows = [_line(name, figures) for name, figures in sources.items()]
    if len(sources) > 1:
        whole = {key: sum(figures[key] for figures in sources.values()) for key in ("seen", "kept", "characters_before", "characters_after", "problems")}
        rows.append(_line("all", {**whole, "dropped": {}}))
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows)]
    return "\n".join("  ".join(_aligned(number, cell, width) for number, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in (COLUMNS, *rows))


def reasons(dropped: dict[str, dict[str, int]]) -> list[tuple[str, str, int]]:
    """(step, reason, documents), most first."""
    found = [(step, reason, count) for step, counts in dropped.items() for reason, count in counts.items()]
    return sorted(found, key=lambda each: (-each[2], each[:2]))


def explain(row: dict[str, Any]) -> str:
    """What the ledger says of a document, a fact a line."""
    if row["kept"]:
        lines = [f"{row['id']}: kept ({row['split']}), {row['characters_after']:,} of {row['characters_before']:,} characters"]
    else:
        lines = [f"{row['id']}: dropped by {row['step']}: {row['reason']} ({row['characters_before']:,} characters)"]
    lines += [f"source: {row['source']}{', ' + row['url'] if row['url'] else ''}"]
    lines += [f"{name}: {value:.4g}" for name, value in row["scores"].items()]
    lines += [f"{name}: {value}" for name, value in row["notes"].items()]
    if row["weight"] != 1:
        lines.append(f"weight: {row['weight']:.4g}")
    if row["cluster"] is not None:
        lines.append(f"duplicates: cluster {row['cluster']}{'; kept instead: ' + row['kept_instead'] if row['kept_instead'] else ''}")
        lines += [f"  {other['id']} ({'kept' if other['kept'] else 'dropped'})" for other in row["others_in_cluster"]]
    lines.append(f"text: {' '.join(row['excerpt'].split())}")
    return "\n".join(lines)


def _line(name: str, figures: dict[str, Any]) -> tuple[str, ...]:
    most = ", ".join(f"{reason} {count:,}" for _, reason, count in reasons(figures["dropped"])[:3])
    pairs = ((figures["seen"], figures["kept"]), (figures["characters_before"], figures["characters_after"]))
    numbers = [cell for before, after in pairs for cell in (f"{before:,}", f"{after:,}", f"{after / before:.0%}" if before else "")]
    return (name, *numbers, f"{figures['problems']:,}", most)


def _aligned(number: int, cell: str, width: int) -> str:
    return cell.ljust(width) if number in (0, len(COLUMNS) - 1) else cell.rjust(width)
