"""Configuration of data preparation: raw sources, the steps that documents pass through, and what runs them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from megagpt.config.schema import Frozen, RunConfig

Share = Annotated[float, Field(ge=0, le=1)]
"""A part of a whole, or a probability."""


class SourceConfig(Frozen):
    """Files of one corpus."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """In ids, in the ledger, in the mixture."""
    kind: Literal["web", "books", "wikipedia", "code", "papers", "rows"]
    """`web`: WARC, ARC, WET. `books`: plain text, EPUB. `wikipedia`: XML dumps. `code`: repositories. `papers`: LaTeX, PDF, JATS, HTML, Markdown, man
    pages. `rows`: JSONL, parquet and text files that hold documents already."""
    files: list[str] = Field(min_length=1)
    """Files, folders (all files below) and patterns (`crawl/**/*.warc.gz`), relative to the working directory. Folders and patterns leave out hidden files
    and do not follow links; a file that is named itself may be one."""
    text_files: Literal["document", "lines"] = "document"
    """Of `rows`: a plain text file is one document, or each of its lines is one."""
    licence: str = ""
    """Of documents that do not name their own."""
    language: str | None = None
    """Keep documents of this language identification says otherwise of; default: as the language step says."""


class EncodingConfig(Frozen):
    """Mojibake, line endings, control characters (ftfy)."""


class StepsConfig(Frozen):
    """What documents pass through, in this order; a step that is not named is left out."""

    encoding: EncodingConfig | None = EncodingConfig()
    """Repair what was decoded wrongly."""


class ExecutorConfig(Frozen):
    """What runs the tasks. Nothing of this changes a byte of the result."""

    kind: Literal["local", "slurm", "ray", "mpi"] = "local"
    """`mpi`: start the command under mpirun, every rank takes its share. `slurm`: submits one job array for each phase and returns."""
    workers: int | None = Field(None, gt=0)
    """Tasks at the same time; default: one for each core."""
    memory_gib: float = Field(2.0, gt=0)
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
