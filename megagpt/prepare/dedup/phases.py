"""The phases between cleaning and finishing that find duplicates."""

from __future__ import annotations

from pathlib import Path

from megagpt.config.prepare import PrepareConfig
from megagpt.prepare.dedup.clusters import DuplicateClusters
from megagpt.prepare.dedup.exact import ExactDocuments, RepeatedPassages
from megagpt.prepare.dedup.fingerprints import compares_documents, passage_kinds
from megagpt.prepare.dedup.near import NearBuckets, NearCandidates, NearShingles, NearVerify
from megagpt.prepare.phase import Phase


def dedup_phases(config: PrepareConfig, work: Path, num_tasks: int) -> list[Phase]:
    """In their order; none where neither kind of duplicates is looked for. `num_tasks` is that of the clean phase.

    Exact documents come first, so that near-duplicates are looked for among different ones, and paragraphs and lines last, among the documents
    that are left.
    """
    exact, near = config.steps.exact_duplicates, config.steps.near_duplicates
    phases = []
    if exact and exact.documents:
        phases.append(Phase("exact_documents", exact.tasks, ExactDocuments(config, work)))
    if near:
        phases.append(Phase("near_buckets", near.buckets * near.tasks_per_bucket, NearBuckets(config, work)))
        phases.append(Phase("near_candidates", 1, NearCandidates(config, work)))
        phases.append(Phase("near_shingles", num_tasks, NearShingles(config, work)))
        phases.append(Phase("near_verify", near.tasks, NearVerify(config, work)))
    clusters = compares_documents(config.steps)
    if clusters:
        phases.append(Phase("duplicate_clusters", 1, DuplicateClusters(config, work)))
    for kind in passage_kinds(exact):
        phases.append(Phase(f"repeated_{kind}", exact.tasks, RepeatedPassages(config, work, kind, after_clusters=clusters)))
    return phases
