"""Equal documents, and paragraphs and lines that several documents have."""

from __future__ import annotations

from pathlib import Path

from megagpt.config.prepare import PrepareConfig
from megagpt.prepare.dedup.database import Queries, database, files
from megagpt.prepare.dedup.task import DedupTask

DOCUMENTS: Queries = [
    ("repeated", lambda part: f"SELECT high, low FROM {part('documents', 'high')} GROUP BY high, low HAVING count(*) > 1"),
    ("members", lambda part: f"SELECT documents.* FROM {part('documents', 'high')} SEMI JOIN {part('repeated', 'high')} USING (high, low)"),
    ("best", lambda part: f"SELECT high, low, max(quality) AS quality, min(doc) AS first FROM {part('members', 'high')} GROUP BY high, low"),
    ("good", lambda part: f"SELECT high, low, doc, first FROM {part('members', 'high')} JOIN {part('best', 'high')} USING (high, low, quality)"),
    ("kept", lambda part: f"SELECT high, low, min(doc) AS kept, min(first) AS first FROM {part('good', 'high')} GROUP BY high, low"),
    ("groups", lambda part: f"SELECT doc, kept, first FROM {part('members', 'high')} JOIN {part('kept', 'high')} USING (high, low)"),
]


class ExactDocuments(DedupTask):
    """One part of the documents: (doc, kept, first) of all that have an equal one. `kept` is the best by quality and the first of several
    best, `first` the one that names the cluster."""

    name = "exact documents"

    def run_task(self, task: int, num_tasks: int) -> None:
        with self.layout.partial(f"exact_{task:05d}") as folder, database(folder, self.memory_gib) as tables:
            tables.view("documents", f"SELECT doc, high, low, quality FROM {files(self.layout.part('documents', task))}")
            tables.make(DOCUMENTS)
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
            tables.view("passages", f"SELECT doc, high, low, position, fresh FROM {files(self.layout.part(self.kind, task))}")
            if self.after_clusters:
                tables.view("dropped", f"SELECT doc FROM {files(self.layout.root, self.layout.verdicts.name)} WHERE reason IS NOT NULL")
                tables.table("survivors", lambda part: f"FROM {part('passages', 'doc')} ANTI JOIN {part('dropped', 'doc')} USING (doc)")
            else:
                tables.view("survivors", "FROM passages")
            least = getattr(self.exact, self.kind).min_documents
            tables.table("repeated", lambda part: f"""SELECT high, low, min(doc) AS first FROM {part('survivors', 'high')} GROUP BY high, low
                HAVING count(*) > 1 AND count(*) FILTER (fresh) >= {least}""")
            tables.table("cuts", lambda part: f"""SELECT doc, position FROM {part('survivors', 'high')} JOIN {part('repeated', 'high')}
                USING (high, low) WHERE doc <> first OR NOT fresh""")
            tables.write("FROM cuts ORDER BY doc, position", folder / f"cuts/{self.kind}_{task:05d}.parquet")
