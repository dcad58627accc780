"""From similar pairs to clusters, and what becomes of their members."""

from __future__ import annotations

import duckdb

from megagpt.prepare.dedup.database import database, files, write
from megagpt.prepare.dedup.task import DedupTask

LARGE_STAR = """
    WITH both_ways AS (SELECT u, v FROM edges UNION ALL SELECT v, u FROM edges),
         least AS (SELECT u, least(u, min(v)) AS m FROM both_ways GROUP BY u)
    SELECT DISTINCT v AS u, m AS v FROM both_ways JOIN least USING (u) WHERE v > u"""
"""Every document's larger neighbours are tied to the least of its neighbours and itself."""
SMALL_STAR = """
    WITH least AS (SELECT u, min(v) AS m FROM edges GROUP BY u)
    SELECT v AS u, m AS v FROM edges JOIN least USING (u) WHERE v <> m UNION SELECT u, m FROM least"""
"""Every document and its smaller neighbours are tied to the least of these."""
NOT_STARS = "SELECT count(*) FROM (SELECT DISTINCT v FROM edges) JOIN (SELECT DISTINCT u FROM edges) ON u = v"
MANY_CENTRES = "SELECT count(*) FROM (SELECT u FROM edges GROUP BY u HAVING count(*) > 1)"

NEAR = {
    # Members of clusters with the quality that decides, and the least document, which names the component until the end.
    "members": """SELECT doc, component, quality FROM (SELECT u AS doc, v AS component FROM edges UNION SELECT v, v FROM edges)
        JOIN qualities USING (doc)""",
    "best": "SELECT component, max(quality) AS quality FROM members GROUP BY component",
    "kept": "SELECT component, min(doc) AS kept FROM members JOIN best USING (component, quality) GROUP BY component",
    # A cluster's name counts the copies of its members too.
    "named": """SELECT component, min(coalesce(exact.first, members.doc)) AS first
        FROM members LEFT JOIN exact ON exact.doc = members.doc GROUP BY component""",
    "near": """SELECT doc, kept, first, jaccard FROM members JOIN kept USING (component) JOIN named USING (component)
        LEFT JOIN verified ON a = least(doc, kept) AND b = greatest(doc, kept)""",
}
RESOLVED = """
    SELECT doc, CASE WHEN doc <> kept THEN 'near_duplicate' END AS reason, first, CASE WHEN doc <> kept THEN kept END AS kept, jaccard FROM near
    UNION ALL
    SELECT exact.doc, CASE WHEN exact.doc <> exact.kept THEN 'duplicate_document' END, coalesce(near.first, exact.first),
        CASE WHEN exact.doc <> exact.kept THEN coalesce(near.kept, exact.kept) END, NULL
    FROM exact LEFT JOIN near ON near.doc = exact.kept WHERE exact.doc <> exact.kept OR near.doc IS NULL"""
"""Copies of a near-duplicate share its fate: the document that is kept instead is the one that really is."""
VERDICTS = """
    SELECT resolved.doc, reason, names.id AS cluster, ids.id AS kept, jaccard
    FROM resolved JOIN ids AS names ON names.doc = first LEFT JOIN ids ON ids.doc = resolved.kept ORDER BY resolved.doc"""


class DuplicateClusters(DedupTask):
    """The verdict over all documents that have a duplicate, exact or near, kept or not: (doc, reason, cluster, kept, jaccard). One task, in tables
    that go to disk; of near-duplicates only, whose number is that of verified pairs.

    A cluster is a connected component of similar pairs, named by the id of its first document. Members of one may be less similar than the
    threshold where a chain of similar ones ties them.
    """

    name = "duplicate clusters"

    def run_task(self, task: int, num_tasks: int) -> None:
        with self.layout.partial("clusters") as folder, database(folder, self.memory_gib) as connection:
            nothing = "SELECT 0::BIGINT AS doc, 0::BIGINT AS kept, 0::BIGINT AS first, NULL::DOUBLE AS jaccard WHERE false"
            exact = f"FROM {files(self.layout.exact)}" if self.exact and self.exact.documents else nothing
            connection.execute(f"CREATE VIEW exact AS {exact}")
            if self.near:
                connection.execute(f"CREATE VIEW verified AS FROM {files(self.layout.verified)}")
                connection.execute(f"CREATE VIEW qualities AS FROM {files(self.layout.shingles)}")
                connect(connection)
                for table, query in NEAR.items():
                    connection.execute(f"CREATE TEMP TABLE {table} AS {query}")
            else:
                connection.execute(f"CREATE VIEW near AS {nothing}")
            connection.execute(f"CREATE TEMP TABLE resolved AS {RESOLVED}")
            connection.execute("CREATE TEMP TABLE asked AS SELECT first AS doc FROM resolved UNION SELECT kept FROM resolved WHERE kept IS NOT NULL")
            documents = files(self.layout.documents, "*/*.parquet")
            connection.execute(f"CREATE TEMP TABLE ids AS SELECT doc, id FROM {documents} SEMI JOIN asked USING (doc)")
            write(connection, VERDICTS, folder / self.layout.verdicts.name)


def connect(connection: duckdb.DuckDBPyConnection) -> int:
    """Makes the table `edges` (u, v): every document of the pairs (a, b) in `verified` but the least of its component, and that one. Returns the
    number of rounds.

    Large and small stars in turn (Kiveris et al., Connected Components in MapReduce and Beyond, SoCC 2014): the number of edges never grows, and
    few rounds are enough even for long chains, where handing on the least label would take as many as the chain has links.
    """
    connection.execute("CREATE TEMP TABLE edges AS SELECT b AS u, a AS v FROM verified")
    rounds = 0
    while any(connection.sql(query).fetchall()[0][0] for query in (NOT_STARS, MANY_CENTRES)):
        for query in (LARGE_STAR, SMALL_STAR):
            connection.execute(f"CREATE TEMP TABLE next AS {query}")
            connection.execute("DROP TABLE edges")
            connection.execute("ALTER TABLE next RENAME TO edges")
        rounds += 1
    return rounds
