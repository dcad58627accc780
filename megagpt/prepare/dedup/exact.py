"""Equal documents, and paragraphs and lines that several documents have."""

from __future__ import annotations

from pathlib import Path

from megagpt.config.prepare import PrepareConfig
from megagpt.prepare.dedup.database import database, files
from megagpt.prepare.dedup.task import DedupTask

DOCUMENTS = {
    "repeated": "SELECT high, low FROM documents GROUP BY high, low HAVING count(*) > 1",
    "members": "SELECT doc, high, low, quality FROM documents SEMI JOIN repeated USING (high, low)",
    "best": "SELECT high, low, max(quality) AS quality, min(doc) AS first FROM members GROUP BY high, low",
    "good": "SELECT high, low, doc, first FROM members JOIN best USING (high, low, quality)",
    "kept": "SELECT high, low, min(doc) AS kept, min(first) AS first FROM good GROUP BY high, low",
    "groups": "SELECT doc, kept, first FROM members JOIN kept USING (high, low)",
}
PASSAGES = {
    "repeated": """SELECT high, low, min(doc) AS first FROM survivors GROUP BY high, low
        HAVING count(*) > 1 AND count(*) FILTER (fresh) >= {min_documents}""",
    "cuts": "SELECT doc, position FROM survivors JOIN repeated USING (high, low) WHERE doc <> first OR NOT fresh",
}


class ExactDocuments(DedupTask):
    """One part of the documents: (doc, kept, first) of all that have an equal one. `kept` is the best by quality and the first of several
    best, `first` the one that names the cluster."""

    name = "exact documents"

    def run_task(self, task: int, num_tasks: int) -> None:
        with self.layout.partial(f"exact_{task:05d}") as folder, database(folder, self.memory_gib) as tables:
            tables.view("documents", f"FROM {files(self.layout.part('documents', task))}")
            for name, query in DOCUMENTS.items():
                tables.table(name, query)
            tables.write("FROM groups ORDER BY doc", folder / f"exact/{task:05d}.parquet")


class RepeatedPassages(DedupTask):
    """One part of the paragraphs or lines: (doc, position) of those that are cut. Only documents that are still there count: what a dropped one
    had first is kept in the next."""

    def __init__(self, config: PrepareConfig, work: Path, kind: str, after_clusters: bool):
        super().__init__(config, work)
        self.name = f"repeated {kind}"
        self.kind, self.after_clusters = kind, after_clusters

    def run_task(self, task: int, num_tasks: int) -> None:
        with self.layout.partial(f"{self.kind}_{task:05d}") as folder, database(folder, self.memory_gib) as tables:
            passages = f"SELECT doc, high, low, position, fresh FROM {files(self.layout.part(self.kind, task))}"
            if self.after_clusters:
                tables.view("dropped", f"SELECT doc FROM {files(self.layout.root, self.layout.verdicts.name)} WHERE reason IS NOT NULL")
                tables.table("survivors", f"{passages} ANTI JOIN dropped USING (doc)")
            else:
                tables.view("survivors", passages)
            for name, query in PASSAGES.items():
                tables.table(name, query.format(min_documents=getattr(self.exact, self.kind).min_documents))
            tables.write("FROM cuts ORDER BY doc, position", folder / f"cuts/{self.kind}_{task:05d}.parquet")
