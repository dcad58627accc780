"""From similar pairs to clusters, and what becomes of their members."""

from __future__ import annotations

import itertools

from megagpt.prepare.dedup.database import Database, database, files
from megagpt.prepare.dedup.task import DedupTask

LARGE_STAR = [
    ("least", "SELECT u, least(u, min(v)) AS m FROM both_ways GROUP BY u"),
    ("moved", "SELECT v AS u, m AS v FROM both_ways JOIN least USING (u) WHERE v > u"),
    ("edges", "SELECT DISTINCT u, v FROM moved"),
]
"""Every document's larger neighbours are tied to the least of its neighbours and itself."""
SMALL_STAR = [
    ("least", "SELECT u, min(v) AS m FROM edges GROUP BY u"),
    ("moved", "SELECT v AS u, m AS v FROM edges JOIN least USING (u) WHERE v <> m UNION ALL FROM least"),
    ("edges", "SELECT DISTINCT u, v FROM moved"),
]
"""Every document and its smaller neighbours are tied to the least of these."""
STARS = [
    ("several", "SELECT u FROM edges GROUP BY u HAVING count(*) > 1"),
    ("centres", "SELECT DISTINCT v AS u FROM edges"),
    ("tied", "SELECT u FROM edges SEMI JOIN centres USING (u)"),
]
"""`several` and `tied` are empty where all edges lead to centres that are tied to nothing themselves: each component is a star."""

NEAR = [
    # Members of clusters with the quality that decides, and the least document, which names the component until the end.
    ("placed", "SELECT u AS doc, v AS component FROM edges UNION ALL SELECT u, u FROM centres"),
    ("members", "SELECT doc, component, quality FROM placed JOIN qualities USING (doc)"),
    ("best", "SELECT component, max(quality) AS quality FROM members GROUP BY component"),
    ("good", "SELECT component, doc FROM members JOIN best USING (component, quality)"),
    ("kept", "SELECT component, min(doc) AS kept FROM good GROUP BY component"),
    # A cluster's name counts the copies of its members too.
    ("copied", "SELECT component, coalesce(exact.first, members.doc) AS first FROM members LEFT JOIN exact ON exact.doc = members.doc"),
    ("named", "SELECT component, min(first) AS first FROM copied GROUP BY component"),
    ("clusters", "SELECT component, kept, first FROM kept JOIN named USING (component)"),
    ("judged", "SELECT doc, kept, first FROM members JOIN clusters USING (component)"),
    ("near", "SELECT doc, kept, first, jaccard FROM judged LEFT JOIN verified ON a = least(doc, kept) AND b = greatest(doc, kept)"),
]
VERDICTS = [
    # Copies of a near-duplicate share its fate: the document that is kept instead is the one that really is.
    ("resolved", """
        SELECT doc, CASE WHEN doc <> kept THEN 'near_duplicate' END AS reason, first, CASE WHEN doc <> kept THEN kept END AS kept, jaccard FROM near
        UNION ALL
        SELECT exact.doc, CASE WHEN exact.doc <> exact.kept THEN 'duplicate_document' END, coalesce(near.first, exact.first),
            CASE WHEN exact.doc <> exact.kept THEN coalesce(near.kept, exact.kept) END, NULL
        FROM exact LEFT JOIN near ON near.doc = exact.kept WHERE exact.doc <> exact.kept OR near.doc IS NULL"""),
    ("asked", "SELECT DISTINCT doc FROM (SELECT first AS doc FROM resolved UNION ALL SELECT kept FROM resolved)"),
    ("ids", "SELECT doc, id FROM documents SEMI JOIN asked USING (doc)"),
    ("named", "SELECT resolved.* EXCLUDE first, id AS cluster FROM resolved JOIN ids ON ids.doc = first"),
    ("verdicts", "SELECT named.doc, reason, cluster, id AS kept, jaccard FROM named LEFT JOIN ids ON ids.doc = named.kept"),
]


class DuplicateClusters(DedupTask):
    """The verdict over all documents that have a duplicate, exact or near, kept or not: (doc, reason, cluster, kept, jaccard). One task, in tables
    that go to disk; of near-duplicates only, whose number is that of verified pairs.

    A cluster is a connected component of similar pairs, named by the id of its first document. Members of one may be less similar than the
    threshold where a chain of similar ones ties them.
    """

    name = "duplicate clusters"

    def run_task(self, task: int, num_tasks: int) -> None:
        with self.layout.partial("clusters") as folder, database(folder, self.memory_gib) as tables:
            nothing = "SELECT 0::BIGINT AS doc, 0::BIGINT AS kept, 0::BIGINT AS first, NULL::DOUBLE AS jaccard WHERE false"
            tables.view("exact", f"FROM {files(self.layout.exact)}" if self.exact and self.exact.documents else nothing)
            if self.near:
                tables.view("verified", f"FROM {files(self.layout.verified)}")
                tables.view("qualities", f"FROM {files(self.layout.shingles)}")
                connect(tables)
                for name, query in NEAR:
                    tables.table(name, query)
            else:
                tables.view("near", nothing)
            tables.view("documents", f"SELECT doc, id FROM {files(self.layout.documents, '*/*.parquet')}")
            for name, query in VERDICTS:
                tables.table(name, query)
            tables.write("FROM verdicts ORDER BY doc", folder / self.layout.verdicts.name)


def connect(tables: Database) -> int:
    """Makes the tables `edges` (u, v), every document of the pairs (a, b) in `verified` but the least of its component, with that one, and `centres`
    (u), these least. Returns the number of rounds.

    Large and small stars in turn (Kiveris et al., Connected Components in MapReduce and Beyond, SoCC 2014): the number of edges never grows, and
    few rounds are enough even for long chains, where handing on the least label would take as many as the chain has links.
    """
    tables.table("edges", "SELECT b AS u, a AS v FROM verified")
    tables.view("both_ways", "SELECT u, v FROM edges UNION ALL SELECT v, u FROM edges")
    for rounds in itertools.count():
        for name, query in STARS:
            tables.table(name, query)
        if not tables.count("FROM several") and not tables.count("FROM tied"):
            return rounds
        for name, query in (*LARGE_STAR, *SMALL_STAR):
            tables.table(name, query)
