"""Configuration of data preparation: raw sources, the steps that documents pass through, and what runs them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from megagpt.config.schema import Frozen, RunConfig

Share = Annotated[float, Field(ge=0, le=1)]
"""A part of a whole, or a probability."""


Kind = Literal["web", "books", "wikipedia", "code", "papers", "rows"]


class SourceConfig(Frozen):
    """Files of one corpus."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """In ids, in the ledger, in the mixture."""
    kind: Kind
    """`web`: WARC, ARC, WET. `books`: plain text, EPUB. `wikipedia`: XML dumps. `code`: repositories. `papers`: LaTeX, PDF, JATS, HTML, Markdown, man
    pages. `rows`: JSONL, parquet and text files that hold documents already."""
    files: list[str] = Field(min_length=1)
    """Files, folders (all files below) and patterns (`crawl/**/*.warc.gz`), relative to the working directory."""
    licence: str = ""
    """Of documents that do not name their own."""
    language: str | None = None
    """Keep documents of this language identification says otherwise of; default: as the language step says."""


class EncodingConfig(Frozen):
    """Mojibake, line endings, control characters (ftfy)."""


class RepeatedParagraphsConfig(Frozen):
    """Blocks of text between blank lines that stand in several documents: all but the first are cut."""

    min_characters: int = Field(100, gt=0)
    """Shorter ones stay, however often they occur; counted without superfluous spaces."""
    min_documents: int = Field(2, gt=0)
    """Ones that stand in fewer documents stay; with 1, those repeated within one document are cut as well."""


class RepeatedLinesConfig(Frozen):
    """Lines that stand in many documents, as the boilerplate of web pages does: all but the first are cut."""

    min_characters: int = Field(30, gt=0)
    """Shorter ones stay, however often they occur; counted without superfluous spaces."""
    min_documents: int = Field(10, gt=0)
    """Ones that stand in fewer documents stay; with 1, those repeated within one document are cut as well."""


class ExactDuplicatesConfig(Frozen):
    """What is equal but for case and spacing."""

    documents: bool = True
    """Of equal documents the one of the best quality is kept, the first where several are equally good."""
    paragraphs: RepeatedParagraphsConfig | None = None
    """Cut repeated paragraphs out of the documents that are kept; default: leave them."""
    lines: RepeatedLinesConfig | None = None
    """Cut repeated lines out of the documents that are kept; default: leave them."""
    exempt_kinds: list[Kind] = ["code"]
    """Sources of these kinds keep all paragraphs and lines, and give none that others could repeat."""
    min_characters_left: int = Field(200, ge=0)
    """A document that is shorter after the cuts is dropped as `duplicate_paragraphs`."""
    tasks: int = Field(16, gt=0)
    """Into how many tasks each search is split; more of them need less disk for one task, and more files."""


class NearDuplicatesConfig(Frozen):
    """Documents that share most of their shingles (runs of words): MinHash finds candidates, exact Jaccard similarity decides."""

    threshold: float = Field(0.8, gt=0, le=1)
    """Jaccard similarity of shingles from which two documents are duplicates."""
    shingle_words: int = Field(5, gt=0)
    """Words in a shingle; documents of fewer words have no near-duplicates."""
    buckets: int = Field(16, gt=0)
    """Documents that agree in one bucket are candidates: with similarity s a share of 1 - (1 - s^hashes)^buckets is found, 0.977 at 0.8."""
    hashes: int = Field(7, gt=0)
    """Minimum hashes in a bucket."""
    seed: int = 1
    """Of the hash functions."""
    exempt_kinds: list[Kind] = []
    """Sources of these kinds are left out."""
    tasks_per_bucket: int = Field(1, gt=0)
    """Into how many tasks the search of one bucket is split."""
    tasks: int = Field(16, gt=0)
    """Into how many tasks the verification of candidates is split."""


class StepsConfig(Frozen):
    """What documents pass through, in this order; a step that is not named is left out."""

    encoding: EncodingConfig | None = EncodingConfig()
    """Repair what was decoded wrongly."""
    exact_duplicates: ExactDuplicatesConfig | None = None
    """Documents, paragraphs and lines that occur more than once."""
    near_duplicates: NearDuplicatesConfig | None = None
    """Documents that are almost the same; looked for among those that exact_duplicates keeps."""


class ExecutorConfig(Frozen):
    """What runs the tasks. Nothing of this changes a byte of the result."""

    kind: Literal["local", "slurm", "ray", "mpi"] = "local"
    """`mpi`: start the command under mpirun, every rank takes its share. `slurm`: submits one job array for each phase and returns."""
    workers: int | None = Field(None, gt=0)
    """Tasks at the same time; default: one for each core."""
    memory_gib: float = Field(2.0, ge=0.125)
    """A task may use so much where it sorts or joins, then it goes to disk; GiB."""


class PrepareConfig(Frozen):
    """Raw sources to clean documents with a ledger that says of each one why it was kept or dropped."""

    stage: Literal["prepare"] = "prepare"
    """Which stage this file is for."""
    run: RunConfig
    sources: list[SourceConfig] = Field(min_length=1)
    """Where text comes from."""
    steps: StepsConfig = StepsConfig()
    """What is done with it."""
    executor: ExecutorConfig = ExecutorConfig()
    """What runs it."""
    shard_mib: float = Field(256.0, gt=0)
    """One task reads files of one source of about so much in all, or one larger file; MiB."""
    max_document_characters: int = Field(5_000_000, gt=0)
    """Longer documents are dropped as `too_long`: one of them must fit into memory several times."""
    valid_fraction: float = Field(0.005, ge=0, lt=1)
    """Share of the documents that is held out for validation, by a hash of their id."""
