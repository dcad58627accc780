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
    """Files, folders (all files below) and patterns (`crawl/**/*.warc.gz`), relative to the working directory."""
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


class SlurmConfig(Frozen):
    """What sbatch wants to know."""

    partition: str
    """Where tasks run."""
    time: str = "20:00:00"
    """Limit of one task; hours:minutes:seconds."""
    qos: str = "normal"
    """Quality of service."""
    max_array_size: int = Field(1001, gt=0)
    """Largest job array of the cluster (`MaxArraySize`); longer ones are split."""
    environment: str = ""
    """Shell command that makes this Python the one of the task; default: activates the virtual environment that runs now."""
    sbatch: dict[str, str] = {}
    """Further options by their long names, as `account`."""


class ExecutorConfig(Frozen):
    """What runs the tasks. Nothing of this changes a byte of the result."""

    kind: Literal["local", "slurm", "ray", "mpi"] = "local"
    """`mpi`: start the command under mpirun, every rank takes its share. `slurm`: submits a job array for each phase, and returns. `ray`: on the cluster
    that RAY_ADDRESS names, else one made on this machine. Several machines need a run folder that all of them see."""
    workers: int | None = Field(None, gt=0)
    """Tasks at the same time; default: one for each core (local, ray), no limit (slurm), one for each rank (mpi)."""
    memory_gib: float = Field(2.0, gt=0)
    """A task may use so much where it sorts or joins, then it goes to disk; what is reserved for a task on a cluster. GiB."""
    slurm: SlurmConfig | None = None
    """Needed for `kind: slurm`."""


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
    tokenizer: str | None = None
    """Count each document's tokens before and after with this one (folder or file), for the report. Costs about as much as tokenising the corpus twice."""
    max_document_characters: int = Field(5_000_000, gt=0)
    """Longer documents are dropped as `too_long`: one of them must fit into memory several times."""
    keep_work: bool = False
    """Keep what the phases leave for each other (`work/`) when all is done."""
    valid_fraction: float = Field(0.005, ge=0, lt=1)
    """Share of the documents that is held out for validation, by a hash of their id."""
