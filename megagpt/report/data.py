"""`data.html`: what became of every source, read from the ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb

from megagpt.config.prepare import RepresentationConfig
from megagpt.data.errors import DataError
from megagpt.prepare.representation import table as representation_table
from megagpt.prepare.representation_counts import AFTER, BEFORE, WEIGHED
from megagpt.prepare.reweighting import effect
from megagpt.prepare.show import reasons
from megagpt.prepare.summary import (
    CONTAMINATION,
    REPRESENTATION,
    STATISTICS,
    database,
    ledger_files,
)
from megagpt.report.data_pictures import draw_funnel, draw_scores
from megagpt.report.page import (
    Html,
    document,
    element,
    identifier,
    join,
    picture,
    prose,
    table,
)
from megagpt.report.representation import draw
from megagpt.runtime import atomic

SAMPLES = 3
"""Of each reason, and of what is kept of each source."""
SHOWN = 40
"""Rows of a table of single cases."""
BINS = 40
WIDE = 100
"""Scores that reach further (numbers of words and the like) are drawn on a logarithmic axis."""


def build_data_report(folder: Path) -> Path:
    """Write `data.html` and its pictures (`plots/`) into a stage's folder; returns where the page lies.

    Raises:
        DataError: the folder holds no finished preparation.
    """
    if not (folder / STATISTICS).exists():
        raise DataError(folder, "holds no finished data preparation (statistics.json is written last)")
    statistics = json.loads((folder / STATISTICS).read_text(encoding="utf-8"))
    with database() as connection:
        connection.execute(f"CREATE VIEW ledger AS SELECT * FROM read_parquet('{ledger_files(folder)}')")
        connection.execute(f"CREATE VIEW problems AS SELECT * FROM read_parquet('{folder / 'problems.parquet'}')")
        pieces = [
            element("h1", f"Data of {folder.resolve().parent.name}"), _totals(statistics), *_funnel(statistics, folder), *_scores(connection, folder),
            *_duplicates(connection), *_personal_data(connection), *_representation(folder), *_contamination(folder), *_samples(connection), *_problems(connection),
        ]  # fmt: skip
    path = folder / "data.html"
    atomic.write_text(path, document("Data preparation", pieces))
    return path


def _totals(statistics: dict[str, Any]) -> Html:
    sources = statistics["sources"].values()
    seen, kept, before, after = (sum(source[key] for source in sources) for key in ("seen", "kept", "characters_before", "characters_after"))
    return element("p", f"{kept:,} of {seen:,} documents kept, {after:,} of {before:,} characters, from {len(sources)} sources.")


def _funnel(statistics: dict[str, Any], folder: Path) -> list[Html]:
    sources = statistics["sources"]
    path = draw_funnel(sources, folder / "plots" / "funnel.png")
    tokens = any("tokens_before" in figures for figures in sources.values())
    head = ("Source", "Documents", "Kept", "Held out", "Characters", "kept", *(("Tokens", "kept") if tokens else ()), "Unreadable places", "Dropped for")
    rows = []
    for name, figures in sources.items():
        why = "\n".join(f"{count:,} {step}: {reason}" for step, reason, count in reasons(figures["dropped"]))
        counts = ("seen", "kept", "valid", "characters_before", "characters_after", *(("tokens_before", "tokens_after") if tokens else ()), "problems")
        rows.append((name, *(f"{figures.get(key, 0):,}" for key in counts), why))
    return [element("h2", "What became of each source"), picture(path, "Share of each source's documents that each step dropped"), table(head, rows)]


def _scores(connection: duckdb.DuckDBPyConnection, folder: Path) -> list[Html]:
    rows = connection.execute("""
        WITH entries AS (SELECT kept, unnest(map_entries(scores), recursive := true) FROM ledger),
        raw AS (SELECT * FROM entries WHERE isfinite(value)),
        wide AS (SELECT key, min(value) >= 0 AND max(value) > $wide AS is_log FROM raw GROUP BY key),
        scored AS (SELECT kept, key, is_log, CASE WHEN is_log THEN log10(1 + value) ELSE value END AS value FROM raw JOIN wide USING (key)),
        ends AS (SELECT key, min(value) AS low, max(value) AS high FROM scored GROUP BY key)
        SELECT key, is_log, low, high, kept, least(floor((value - low) / (high - low) * $bins), $bins - 1)::INT AS bin, count(*)
        FROM scored JOIN ends USING (key) WHERE high > low GROUP BY ALL ORDER BY ALL""", {"bins": BINS, "wide": WIDE}).fetchall()  # fmt: skip
    histograms: dict[str, Any] = {}
    for name, is_log, low, high, kept, bin, count in rows:
        found = histograms.setdefault(name, {"is_log": is_log, "low": low, "high": high, "kept": [0] * BINS, "dropped": [0] * BINS})
        found["kept" if kept else "dropped"][bin] = count
    if not histograms:
        return []
    paths = draw_scores(histograms, folder / "plots")
    return [element("h2", "Scores"), element("div", join(picture(path, f"Histogram of {name}") for name, path in paths), "grid")]


def _duplicates(connection: duckdb.DuckDBPyConnection) -> list[Html]:
    sizes = connection.execute("""
        SELECT size, count(*) FROM (SELECT cluster, count(*) AS size FROM ledger WHERE cluster IS NOT NULL GROUP BY cluster) GROUP BY size ORDER BY size
    """).fetchall()  # fmt: skip
    if not sizes:
        return []
    largest = connection.execute("""
        SELECT cluster, count(*) AS size, count(DISTINCT source), any_value(id) FILTER (kept), min_by(excerpt, (task, row))
        FROM ledger WHERE cluster IS NOT NULL GROUP BY cluster ORDER BY size DESC, cluster LIMIT 10""").fetchall()  # fmt: skip
    rows = [(f"{size:,}", f"{sources:,}", identifier(kept) if kept else "none", prose(text)) for _, size, sources, kept, text in largest]
    counts = " · ".join(f"{count:,} of {size:,}" for size, count in sizes[:12])
    return [
        element("h2", "Clusters of duplicates"), element("p", f"Clusters by number of documents: {counts}.", "soft"),
        table(("Documents", "Sources", "Kept", "Text"), rows),
    ]  # fmt: skip


def _personal_data(connection: duckdb.DuckDBPyConnection) -> list[Html]:
    rows = connection.execute("""
        SELECT source, kind, count(*), sum(CAST(json_extract(notes, '$.personal_data.' || kind) AS BIGINT))
        FROM (SELECT source, notes, unnest(json_keys(notes, '$.personal_data')) AS kind FROM ledger WHERE json_exists(notes, '$.personal_data'))
        GROUP BY ALL ORDER BY ALL""").fetchall()  # fmt: skip
    if not rows:
        return []
    return [element("h2", "Personal data"), table(("Source", "Kind", "Documents", "Places"), [(source, kind, f"{n:,}", f"{places:,}") for source, kind, n, places in rows])]


def _representation(folder: Path) -> list[Html]:
    path = folder / REPRESENTATION
    if not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    config = RepresentationConfig.model_validate(found["settings"])
    rows = representation_table(found[BEFORE], found[AFTER], config, found["dropped"])
    if not rows:
        return [element("h2", "Who is spoken of"), element("p", "No identity term was found.")]
    drawing = folder / "plots" / "representation.png"
    draw(rows, drawing)
    pieces = [element("h2", "Who is spoken of"), picture(drawing, "Mentions of groups before and after cleaning, and the words around them")]
    flagged = [(f"{row.category}: {row.group}{f' ({row.term})' if row.term else ''}", step, f"{kept.share:.1%}", f"{kept.ratio:.2f}", f"{kept.seen:,}")
               for row in rows for step, kept in {"all steps": row.kept, **row.steps}.items() if kept.is_flagged]  # fmt: skip
    rule = f"under {config.min_ratio:g} of the rate of all documents, {config.min_documents} documents or more"
    if flagged:
        pieces += [element("p", f"Kept less often than others ({rule}):"), table(("Group or term", "Step", "Kept", "Of the rate of all", "Documents"), flagged)]
    else:
        pieces.append(element("p", f"No group's documents are dropped much more often than others ({rule}).", "soft"))
    if WEIGHED in found:
        shares = effect(found[AFTER], found[WEIGHED], config)
        head = ("Category", "Group", "Share of mentions", "With weights", "Target")
        pieces.append(table(head, [(r["category"], r["group"], f"{r['share']:.1%}", f"{r['weighted']:.1%}", f"{r['target']:.1%}") for r in shares]))
    return pieces


def _contamination(folder: Path) -> list[Html]:
    path = folder / CONTAMINATION
    if not path.exists():
        return []
    rows = [
        (each["set"], f"{each['items']:,}", f"{each['too_short']:,}", f"{each['touched']:,}", f"{each['documents']:,}")
        for each in json.loads(path.read_text(encoding="utf-8"))
    ]
    head = ("Evaluation set", "Items", "Too short to look for", "Found", "In documents")
    return [element("h2", "Evaluation sets in the documents"), table(head, rows)]


def _samples(connection: duckdb.DuckDBPyConnection) -> list[Html]:
    """The same ones each time: in the order of a hash of their ids."""
    ranked = "SELECT *, row_number() OVER (PARTITION BY source, step, reason ORDER BY md5(id)) AS place FROM ledger WHERE {}"
    dropped = connection.execute(
        f"SELECT step, reason, source, id, scores, excerpt FROM ({ranked.format('NOT kept')}) WHERE place <= ? ORDER BY step, reason, source, place", [SAMPLES]
    ).fetchall()
    kept = connection.execute(f"SELECT source, id, scores, excerpt FROM ({ranked.format('kept')}) WHERE place <= ? ORDER BY source, place", [SAMPLES]).fetchall()
    head = ("Source", "Document", "Scores", "Text")
    return [
        element("h2", "Samples of what was dropped"), table(("Dropped for", *head), [(f"{step}:\n{reason}", *_sample(*row)) for step, reason, *row in dropped]),
        element("h2", "Samples of what was kept"), table(head, [_sample(*row) for row in kept]),
    ]  # fmt: skip


def _problems(connection: duckdb.DuckDBPyConnection) -> list[Html]:
    number = connection.execute("SELECT count(*) FROM problems").fetchone()[0]
    if not number:
        return []
    problems = connection.execute("SELECT source, path, position, reason FROM problems LIMIT ?", [SHOWN]).fetchall()
    rows = [(source, identifier(path), position, reason) for source, path, position, reason in problems]
    shown = f", the first {SHOWN}" if number > SHOWN else ""
    return [element("h2", f"What could not be read ({number:,}{shown})"), table(("Source", "File", "Where", "Why"), rows)]


def _sample(source: str, id: str, scores: dict[str, float], excerpt: str) -> tuple[Any, ...]:
    numbers = "\n".join(f"{score}\u00a0{value:{',.0f' if abs(value) >= 1000 else '.3g'}}" for score, value in scores.items())
    return source, identifier(id), numbers, prose(excerpt)
