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


class EvaluationSetConfig(Frozen):
    """One test set that training must not see."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """In notes and in the report."""
    files: list[str] = Field(min_length=1)
    """Files and patterns, `.gz` allowed: rows (JSONL, JSON, parquet), tables (`.csv`, `.tsv`), or texts with an item on each line."""
    columns: list[str] = []
    """Names of the columns that are an item's text (all texts in them, where they hold lists or objects). Tables need it; rows without it are read
    as documents, demonstrations, rankings or prompts."""
    ignore: str | None = None
    """Regular expression for what is not text of the item, such as numbers at the beginning of lines: `^\\d+ `."""


class DecontaminationConfig(Frozen):
    """Documents that share n-grams with evaluation items are cut or dropped (Brown et al. 2020, appendix C). Words are compared in lower case and
    without punctuation."""

    sets: list[EvaluationSetConfig] = Field(min_length=1)
    """What must stay unseen."""
    n: int = Field(13, gt=0)
    """Words of an n-gram."""
    min_words: int = Field(8, gt=0)
    """Texts under n words are searched for as a whole if they have so many, and not at all if they have fewer; at most n."""
    min_share: Share = 0.0
    """An item counts as found in a document if this share of its n-grams is there; 0: if one is. Higher values let pass phrases that items quote."""
    max_documents: int | None = Field(None, gt=0)
    """N-grams in more documents than this are common phrases and ignored (GPT-3: 10); default: none is, which spares a pass over all documents."""
    action: Literal["cut", "drop"] = "cut"
    """`cut`: take the match and its surroundings out. `drop`: drop the document."""
    window: int = Field(200, ge=0)
    """Cut so much on each side of a match too, up to the edge of a word; characters."""
    min_piece: int = Field(200, ge=0)
    """Drop what is left between two cuts if it is shorter; characters."""
    max_pieces: int = Field(10, gt=0)
    """Drop a document that the cuts would leave in more pieces."""


Target = Literal["uniform"] | dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]]


class ReweightingConfig(Frozen):
    """Weights of documents by whom they speak of."""

    targets: dict[str, Target] = Field({"gender": {"women": 1.0, "men": 1.0}}, min_length=1)
    """Category -> the shares that its groups should have of all its mentions: `uniform`, or group -> share (normalised; others are left out)."""
    strength: Share = 1.0
    """0: as it is; 1: the target; between them the geometric mean of both."""
    min_weight: float = Field(0.5, gt=0, le=1)
    """No document weighs less."""
    max_weight: float = Field(2.0, ge=1, allow_inf_nan=False)
    """No document weighs more."""


class RepresentationConfig(Frozen):
    """How often groups of people are named, among which words, before and after cleaning. Counts only; it drops nothing."""

    terms: str | None = None
    """YAML file of more terms: category -> group -> list of terms; beside the terms that come with the package (identity_terms.yaml)."""
    window: int = Field(10, gt=0)
    """Sentiment is that of so many words on each side of a term."""
    min_ratio: Share = 0.8
    """Flag a group or term whose documents are kept at less than this ratio of the rate at which all documents are (four-fifths rule)."""
    min_documents: int = Field(50, gt=0)
    """Flag nothing that fewer documents name: chance moves their rate too far."""
    reweighting: ReweightingConfig | None = None
    """Weigh documents after cleaning; default: all weigh 1."""


class StepsConfig(Frozen):
    """What documents pass through, in this order; a step that is not named is left out."""

    encoding: EncodingConfig | None = EncodingConfig()
    """Repair what was decoded wrongly."""
    decontamination: DecontaminationConfig | None = None
    """Take out what evaluation sets ask."""
    representation: RepresentationConfig | None = None
    """Count who is spoken of, and how."""


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
