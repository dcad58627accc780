"""Equal documents, and paragraphs and lines that several documents have."""

from __future__ import annotations

from pathlib import Path

from megagpt.config.prepare import PrepareConfig
from megagpt.prepare.dedup.database import database, files, write
from megagpt.prepare.dedup.task import DedupTask

REPEATED = "SELECT high, low FROM documents GROUP BY high, low HAVING count(*) > 1"
MEMBERS = "SELECT doc, high, low, quality FROM documents SEMI JOIN repeated USING (high, low)"
BEST = "SELECT high, low, max(quality) AS quality, min(doc) AS first FROM members GROUP BY high, low"
KEPT = "SELECT high, low, min(doc) AS kept, any_value(first) AS first FROM members JOIN best USING (high, low, quality) GROUP BY high, low"

REPEATED_PASSAGES = """SELECT high, low, min(doc) AS first FROM survivors GROUP BY high, low
    HAVING count(*) > 1 AND count(*) FILTER (fresh) >= {min_documents}"""
CUTS = "SELECT doc, position FROM survivors JOIN repeated USING (high, low) WHERE doc <> first OR NOT fresh ORDER BY doc, position"


class ExactDocuments(DedupTask):
    """One part of the documents: (doc, kept, first) of all that have an equal one. `kept` is the best by quality and the first of several
    best, `first` the one that names the cluster."""

    name = "exact documents"

    def run_task(self, task: int, num_tasks: int) -> None:
        with self.layout.partial(f"exact_{task:05d}") as folder, database(folder, self.memory_gib) as connection:
            connection.execute(f"CREATE VIEW documents AS FROM {files(self.layout.part('documents', task))}")
            for table, query in {"repeated": REPEATED, "members": MEMBERS, "best": BEST, "kept": KEPT}.items():
                connection.execute(f"CREATE TEMP TABLE {table} AS {query}")
            write(connection, "SELECT doc, kept, first FROM members JOIN kept USING (high, low) ORDER BY doc", folder / f"exact/{task:05d}.parquet")


class RepeatedPassages(DedupTask):
    """One part of the paragraphs or lines: (doc, position) of those that are cut. Only documents that are still there count: what a dropped one
    had first is kept in the next."""

    def __init__(self, config: PrepareConfig, work: Path, kind: str, after_clusters: bool):
        super().__init__(config, work)
        self.name = f"repeated {kind}"
        self.kind, self.after_clusters = kind, after_clusters

    def run_task(self, task: int, num_tasks: int) -> None:
        with self.layout.partial(f"{self.kind}_{task:05d}") as folder, database(folder, self.memory_gib) as connection:
            survivors = f"SELECT doc, high, low, position, fresh FROM {files(self.layout.part(self.kind, task))}"
            if self.after_clusters:
                survivors += f" ANTI JOIN (SELECT doc FROM {files(self.layout.root, self.layout.verdicts.name)} WHERE reason IS NOT NULL) USING (doc)"
            connection.execute(f"CREATE VIEW survivors AS {survivors}")
            repeated = REPEATED_PASSAGES.format(min_documents=getattr(self.exact, self.kind).min_documents)
            connection.execute(f"CREATE TEMP TABLE repeated AS {repeated}")
            write(connection, CUTS, folder / f"cuts/{self.kind}_{task:05d}.parquet")
