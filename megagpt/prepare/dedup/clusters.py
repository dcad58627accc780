"""From similar pairs to clusters, and what becomes of their members."""

from __future__ import annotations

import itertools

from megagpt.prepare.dedup.database import Database, Queries, database, files
from megagpt.prepare.dedup.task import DedupTask

LARGE_STAR: Queries = [
    ("least", lambda part: f"SELECT u, least(u, min(v)) AS m FROM {part('both_ways', 'u')} GROUP BY u"),
    ("moved", lambda part: f"SELECT v AS u, m AS v FROM {part('both_ways', 'u')} JOIN {part('least', 'u')} USING (u) WHERE v > u"),
    ("edges", lambda part: f"SELECT DISTINCT u, v FROM {part('moved', 'u')}"),
]
"""Every document's larger neighbours are tied to the least of its neighbours and itself."""
SMALL_STAR: Queries = [
    ("least", lambda part: f"SELECT u, min(v) AS m FROM {part('edges', 'u')} GROUP BY u"),
    ("moved", lambda part: f"""SELECT v AS u, m AS v FROM {part('edges', 'u')} JOIN {part('least', 'u')} USING (u) WHERE v <> m
        UNION ALL FROM {part('least', 'u')}"""),
    ("edges", lambda part: f"SELECT DISTINCT u, v FROM {part('moved', 'u')}"),
]
"""Every document and its smaller neighbours are tied to the least of these."""
STARS: Queries = [
    ("several", lambda part: f"SELECT u FROM {part('edges', 'u')} GROUP BY u HAVING count(*) > 1"),
    ("centres", lambda part: f"SELECT DISTINCT v AS u FROM {part('edges', 'v')}"),
    ("tied", lambda part: f"SELECT u FROM {part('edges', 'u')} SEMI JOIN {part('centres', 'u')} USING (u)"),
]
"""`several` and `tied` are empty where all edges lead to centres that are tied to nothing themselves: each component is a star."""

NEAR: Queries = [
    # Members of clusters with the quality that decides, and the least document, which names the component until the end.
    ("members", lambda part: f"SELECT doc, component, quality FROM {part('placed', 'doc')} JOIN {part('qualities', 'doc')} USING (doc)"),
    ("best", lambda part: f"SELECT component, max(quality) AS quality FROM {part('members', 'component')} GROUP BY component"),
    ("good", lambda part: f"""SELECT component, doc FROM {part('members', 'component')}
        JOIN {part('best', 'component')} USING (component, quality)"""),
    ("kept", lambda part: f"SELECT component, min(doc) AS kept FROM {part('good', 'component')} GROUP BY component"),
    # A cluster's name counts the copies of its members too.
    ("copied", lambda part: f"""SELECT component, coalesce(exact.first, members.doc) AS first
        FROM {part('members', 'doc')} LEFT JOIN {part('exact', 'doc')} ON exact.doc = members.doc"""),
    ("named", lambda part: f"SELECT component, min(first) AS first FROM {part('copied', 'component')} GROUP BY component"),
    ("clusters", lambda part: f"SELECT component, kept, first FROM {part('kept', 'component')} JOIN {part('named', 'component')} USING (component)"),
    ("judged", lambda part: f"""SELECT doc, kept, first, least(doc, kept) AS a, greatest(doc, kept) AS b
        FROM {part('members', 'component')} JOIN {part('clusters', 'component')} USING (component)"""),
    ("near", lambda part: f"SELECT doc, kept, first, jaccard FROM {part('judged', 'a')} LEFT JOIN {part('verified', 'a')} USING (a, b)"),
]
PLACED = "SELECT u AS doc, v AS component FROM edges UNION ALL SELECT u, u FROM centres"
COPIES: Queries = [
    # Copies of a near-duplicate share its fate: the document that is kept instead is the one that really is.
    ("copies", lambda part: f"""SELECT exact.doc, CASE WHEN exact.doc <> exact.kept THEN 'duplicate_document' END AS reason,
        coalesce(near.first, exact.first) AS first, CASE WHEN exact.doc <> exact.kept THEN coalesce(near.kept, exact.kept) END AS kept, NULL AS jaccard
        FROM {part('exact', 'kept')} LEFT JOIN {part('near', 'doc')} ON near.doc = exact.kept WHERE exact.doc <> exact.kept OR near.doc IS NULL"""),
]
RESOLVED = """SELECT doc, CASE WHEN doc <> kept THEN 'near_duplicate' END AS reason, first, CASE WHEN doc <> kept THEN kept END AS kept, jaccard
    FROM near UNION ALL FROM copies"""
ASKED = "SELECT first AS doc FROM resolved UNION ALL SELECT kept FROM resolved WHERE kept IS NOT NULL"
VERDICTS: Queries = [
    ("ids", lambda part: f"SELECT doc, id FROM {part('documents', 'doc')} SEMI JOIN {part('asked', 'doc')} USING (doc)"),
    ("called", lambda part: f"""SELECT resolved.doc, reason, id AS cluster, kept, jaccard
        FROM {part('resolved', 'first')} JOIN {part('ids', 'doc')} ON ids.doc = resolved.first"""),
    ("verdicts", lambda part: f"""SELECT called.doc, reason, cluster, id AS kept, jaccard
        FROM {part('called', 'kept')} LEFT JOIN {part('ids', 'doc')} ON ids.doc = called.kept"""),
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
                tables.view("placed", PLACED)
                tables.make(NEAR)
            else:
                tables.view("near", nothing)
            tables.view("documents", f"SELECT doc, id FROM {files(self.layout.documents, '*/*.parquet')}")
            tables.make(COPIES)
            tables.view("resolved", RESOLVED)
            tables.view("asked", ASKED)
            tables.make(VERDICTS)
            tables.write("FROM verdicts ORDER BY doc", folder / self.layout.verdicts.name)


def connect(tables: Database) -> int:
    """Makes the tables `edges` (u, v), every document of the pairs (a, b) in `verified` but the least of its component, with that one, and `centres`
    (u), these least. Returns the number of rounds.

    Large and small stars in turn (Kiveris et al., Connected Components in MapReduce and Beyond, SoCC 2014): the number of edges never grows, and
    few rounds are enough even for long chains, where handing on the least label would take as many as the chain has links.
    """
    tables.table("edges", lambda part: f"SELECT b AS u, a AS v FROM {part('verified', 'a')}")
    tables.view("both_ways", "SELECT u, v FROM edges UNION ALL SELECT v, u FROM edges")
    for rounds in itertools.count():
        tables.make(STARS)
        if not tables.count("FROM several") and not tables.count("FROM tied"):
            return rounds
        tables.make(LARGE_STAR + SMALL_STAR)
