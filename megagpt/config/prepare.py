"""Configuration of data preparation: raw sources, the steps that documents pass through, and what runs them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from megagpt.config.schema import Frozen, RunConfig

Share = Annotated[float, Field(ge=0, le=1)]
"""A part of a whole, or a probability."""


SourceKind = Literal["web", "books", "wikipedia", "code", "papers", "rows"]


class SourceConfig(Frozen):
    """Files of one corpus."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """In ids, in the ledger, in the mixture."""
    kind: SourceKind
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


class QualityConfig(Frozen):
    """A classifier of `megagpt data train-quality` scores documents: 0 is raw crawl, 1 is reference text."""

    classifier: str
    """Folder of the classifier, as runs/NAME/quality."""
    kinds: list[SourceKind] = ["web"]
    """Sources of these kinds are judged; the others pass without a score."""
    keep: Literal["threshold", "pareto"] = "pareto"
    """`threshold`: documents that score at least so much. `pareto`: GPT-3's way, good ones and now and then a bad one (Brown et al. 2020, appendix
    A): where a draw from Lomax's distribution with `alpha` is more than 1 - score."""
    threshold: Share = 0.5
    """For `keep: threshold`."""
    alpha: float = Field(9.0, gt=0, allow_inf_nan=False)
    """For `keep: pareto`: a document of score s stays with probability (2 - s)^-alpha; 9 keeps one of 500 at score 0, all at score 1."""
    seed: int = 1234
    """The draw is a function of this number and the document's id."""


class ToxicityRule(Frozen):
    """What becomes of toxic documents. A document is scored in windows: toxic is one whose worst window or whose mean scores too high."""

    action: Literal["drop", "weigh", "score"] = "drop"
    """`weigh`: keep it and see it less often (`weight`); `score`: only note the scores."""
    max_threshold: float | None = Field(0.9, ge=0, le=1)
    """Toxic where a window scores at least so much; null: windows do not count by themselves."""
    mean_threshold: float | None = Field(0.8, ge=0, le=1)
    """Toxic where the mean of the windows is at least so much; null: the mean does not count."""
    weight: float = Field(0.25, gt=0, lt=1)
    """For `weigh`: the factor of the document's weight in the mixture."""


class ToxicityConfig(Frozen):
    """A classifier of `megagpt data train-toxicity` scores documents: 1 is toxic. It learned from short texts and over-flags some dialects and groups
    (its report.html says how much), so `weigh` is the milder choice for books and other edited text."""

    classifier: str
    """Folder of the classifier, as runs/NAME/toxicity."""
    default: ToxicityRule = ToxicityRule()
    """For all kinds of sources but those of `by_kind`."""
    by_kind: dict[SourceKind, ToxicityRule] = {"books": ToxicityRule(action="weigh")}
    """Other rules for some kinds."""


class StepsConfig(Frozen):
    """What documents pass through, in this order; a step that is not named is left out."""

    encoding: EncodingConfig | None = EncodingConfig()
    """Repair what was decoded wrongly."""
    quality: QualityConfig | None = None
    """Drop what does not read like reference text; off without a classifier."""
    toxicity: ToxicityConfig | None = None
    """Drop or down-weight what is toxic; off without a classifier."""


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


# ---------------------------------------------------------------- the two classifiers


class NgramsConfig(Frozen):
    """What a classifier sees of a text: which runs of characters and words occur in it, hashed into a table of weights."""

    character_sizes: list[int] = [3, 4, 5]
    """Lengths of runs of characters, spaces and punctuation among them; none: words alone."""
    max_words: int = Field(2, ge=0, le=4)
    """Single words, pairs, … up to so many consecutive words; 0: characters alone."""
    hash_bits: int = Field(18, ge=8, le=24)
    """The table has 2^hash_bits weights of 4 bytes."""

    @field_validator("character_sizes")
    @classmethod
    def _in_order(cls, sizes: list[int]) -> list[int]:
        if sizes != sorted(set(sizes) & set(range(1, 9))):
            raise ValueError("must be different numbers from 1 to 8 in ascending order")
        return sizes


class WindowsConfig(Frozen):
    """Parts of a text that are scored; they bound the work for a long document."""

    characters: int = Field(2000, ge=50, le=1 << 20)
    """Length of a window; a shorter text is one window."""
    most: int = Field(16, gt=0)
    """A text of more than so many windows is scored by so many of them, in equal steps from its begin to its end."""


class TextFiles(Frozen):
    """Documents to learn from."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """In the report."""
    files: list[str] = Field(min_length=1)
    """Files and patterns (`crawl/*.warc.gz`): JSONL or parquet of documents, plain text, and WARC, ARC, WET with all text of pages, menus too."""
    document: Literal["file", "line"] = "file"
    """What a document is in a plain text file."""
    max_documents: int = Field(5_000, gt=0)
    """Learn from so many at most, chosen by a hash of their ids. They are held in memory, a window of 2,000 characters with about 60 KB."""


class WordListConfig(Frozen):
    """Terms whose occurrence is one more feature; never a verdict."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """In the report."""
    path: str
    """A term a line; `.csv` with a header, `.txt` and `.tsv` may have columns between tabs. Only hashes of the terms enter the classifier."""
    column: int = Field(0, ge=0)
    """Which column holds the term, from 0."""


class TrainingConfig(Frozen):
    run: RunConfig
    ngrams: NgramsConfig = NgramsConfig()
    windows: WindowsConfig = WindowsConfig()
    inverse_regularisation: float = Field(10.0, gt=0, allow_inf_nan=False)
    """scikit-learn's C of the logistic regression: smaller is smoother."""
    folds: int = Field(4, ge=2)
    """One of so many parts is held out, chosen by a hash; all that belongs together (windows of a document, copies of a text) is in one part."""
    prior: float = Field(0.5, gt=0, lt=1)
    """Scores are probabilities where so much of the text is of class 1 (reference; toxic)."""
    num_failures: int = Field(20, ge=0)
    """Most confident errors that the report shows, for each class."""


class TrainQualityConfig(TrainingConfig):
    """A quality classifier: reference text against raw crawl (Brown et al. 2020, appendix A). Writes runs/NAME/quality: classifier, report.html."""

    stage: Literal["train-quality"] = "train-quality"
    """Which stage this file is for."""
    reference: list[TextFiles] = Field(min_length=1)
    """Text that documents should be like: books, encyclopedias, edited news."""
    raw: list[TextFiles] = Field(min_length=1)
    """Text as the crawl gives it, before anything is cleaned. Take it from many sites: pages of one site share their menus."""
    max_windows_per_document: int = Field(16, gt=0)
    """Learn from so many windows of a document, in equal steps; one long book should not be the whole reference."""
    min_auc: float | None = Field(0.9, gt=0.5, le=1)
    """Gate: ROC-AUC on held-out documents."""


class FairnessConfig(Frozen):
    """Labels of tweets call African American English toxic far more often than other English, and words for groups of people too (Sap et al. 2019;
    Davidson et al. 2019). What is done against it in training."""

    ignore_identity_terms: bool = True
    """The classifier does not see words for groups of people."""
    reweigh: float = Field(1.5, ge=0, le=4)
    """Weight texts by (P(slice) P(label) / P(slice, label))^reweigh, slices being dialect and mention of a group (Kamiran & Calders 2012): 1 makes
    slice and label independent, 0 changes nothing."""


class TrainToxicityConfig(TrainingConfig):
    """A toxicity classifier from labelled texts, with its errors by dialect and group. Writes runs/NAME/toxicity: classifier, report.html."""

    stage: Literal["train-toxicity"] = "train-toxicity"
    """Which stage this file is for."""
    windows: WindowsConfig = WindowsConfig(characters=200, most=64)
    """About as long as the texts that are learned from: a longer window dilutes what is toxic in it. (Texts are cut to ten windows in training.)"""
    files: list[str] = Field(min_length=1)
    """JSONL or parquet rows with `text` and a label; files and patterns."""
    label: str = "label"
    """Field of the label."""
    toxic: list[str] = Field(["hate", "offensive"], min_length=1)
    """Labels of class 1."""
    not_toxic: list[str] = Field(["neither"], min_length=1)
    """Labels of class 0."""
    word_lists: list[WordListConfig] = []
    """Lists of terms as further features."""
    fairness: FairnessConfig | None = FairnessConfig()
    """null: learn the labels as they are. The report shows both."""
    report_rate: float = Field(0.1, gt=0, lt=1)
    """False-positive rates of slices are compared at the threshold at which so much of all harmless text is flagged."""
    min_auc: float | None = Field(0.93, gt=0.5, le=1)
    """Gate: ROC-AUC on held-out texts."""
