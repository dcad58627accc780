"""Configuration of data preparation: raw sources, the steps that documents pass through, and what runs them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from megagpt.config.schema import Frozen, RunConfig

Share = Annotated[float, Field(ge=0, le=1)]
"""A part of a whole, or a probability."""
Size = Annotated[int, Field(gt=0)]
"""A number of things."""


Kind = Literal["web", "books", "wikipedia", "code", "papers", "rows"]
"""What a source is, which says how it is read and by which rules it is judged."""


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
    """ISO 639 code of the language that all its documents are in: none is dropped for it, whatever identification says; default: identification
    decides for each."""


class EncodingConfig(Frozen):
    """Mojibake, HTML entities, control characters (ftfy), line endings. Reason: `undecodable`."""

    mojibake: bool = True
    """Decode again what was decoded with the wrong table (`schÃ¶n`); not in code, where such text is there on purpose."""
    html_entities: bool = True
    """`&amp;` is `&`, in lines before the first that has a `<`; not in code."""
    normal_form: Literal["NFC", "NFKC"] | None = "NFC"
    """Unicode's normal form: the same letter is the same bytes, whether its accent is a character of its own or not. `NFKC` makes ligatures,
    full-width letters and superscripts plain ones too. Not in code."""
    max_undecodable: Share = 0.01
    """Drop a document of which more characters than this share are U+FFFD, what a decoder writes where it gave up."""


class UrlConfig(Frozen):
    """Where a document was found, as FineWeb does (Penedo et al. 2024, section 3.1). Documents without a host in their URL pass. Reasons:
    `url_domain`, `url_listed`, `url_word`, `url_soft_words`, `url_substring`."""

    kinds: list[Kind] = ["web", "rows"]
    """Sources that are judged: an encyclopaedia may have an article on what is blocked elsewhere."""
    datatrove_lists: bool = True
    """datatrove's own lists beside yours: 4.6 million domains (Université Toulouse Capitole: adult content, gambling, malware and the like), 20,000
    addresses, English words. 36 MiB and 2 seconds in each process that meets a URL."""
    domains: list[str] = []
    """Files, one domain a line, `#` comments: it and all below it are dropped."""
    urls: list[str] = []
    """Files, one address a line, with or without `https://`."""
    words: list[str] = []
    """Files, one word a line: a URL with one of them between anything but letters and digits is dropped."""
    soft_words: list[str] = []
    """Files of words that are no proof alone."""
    max_soft_words: int = Field(1, ge=0)
    """Drop a URL with more different soft words than this."""
    substrings: list[str] = []
    """Files, one a line: dropped wherever they stand in the URL once all but letters and digits is taken out."""


class LanguageConfig(Frozen):
    """fastText's identification (Joulin et al. 2016). Reasons: `language_other`, `language_unsure`."""

    model: str
    """Path of `lid.176.bin` (126 MB) or `lid.176.ftz` (917 kB) from fasttext.cc, or of another fastText classifier of languages."""
    languages: list[str] = Field(["en"], min_length=1)
    """Kept; the model's codes, ISO 639."""
    min_score: Share = 0.65
    """Drop what the model gives its best language a lower probability for (0.65: Penedo et al. 2024, section 3.1)."""
    kinds: list[Kind] = ["web", "books", "wikipedia", "papers", "rows"]
    """Sources that are judged; the others pass without a language."""


RuleSet = Literal["gopher_quality", "gopher_repetition", "c4", "fineweb", "code"]
"""Heuristics of one paper."""


class GopherQualityConfig(Frozen):
    """Rae et al. 2021 (arXiv 2112.11446), A1.1, `Quality Filtering`; reasons as datatrove's `GopherQualityFilter`. null switches a rule off."""

    min_words: int | None = Field(50, gt=0)
    """Words, punctuation not counted (`gopher_short_doc`)."""
    max_words: int | None = Field(100_000, gt=0)
    """Likewise (`gopher_long_doc`)."""
    min_mean_word_length: float | None = Field(3.0, gt=0)
    """Characters (`gopher_below_avg_threshold`); no rule for languages that are written without spaces."""
    max_mean_word_length: float | None = Field(10.0, gt=0)
    """Characters (`gopher_above_avg_threshold`); likewise."""
    max_symbols_per_word: float | None = Field(0.1, gt=0)
    """Hashes (`gopher_too_many_hashes`) or ellipses (`gopher_too_many_ellipsis`)."""
    max_bullet_lines: Share | None = 0.9
    """Share of the lines that begin with a bullet (`gopher_too_many_bullets`)."""
    max_ellipsis_lines: Share | None = 0.3
    """Share of the lines that end with an ellipsis (`gopher_too_many_end_ellipsis`)."""
    min_alphabetic_words: Share | None = 0.8
    """Share of the words that hold a letter (`gopher_below_alpha_threshold`)."""
    min_stop_words: int | None = Field(2, gt=0)
    """Different words of the language's list (`gopher_enough_stop_words`); no rule where there is no list."""
    stop_words: dict[str, list[str]] = {}
    """Lists by language, instead of ours or beside them."""


class GopherRepetitionConfig(Frozen):
    """Rae et al. 2021, A1.1, `Repetition Removal`, table A1; reasons as datatrove's `GopherRepetitionFilter`. Shares are of the document's characters
    where nothing else is said; in languages without spaces n words are 2n characters. null switches a rule off."""

    max_duplicate_lines: Share | None = 0.3
    """Share of the lines (`dup_line_frac`)."""
    max_duplicate_paragraphs: Share | None = 0.3
    """Share of the paragraphs (`dup_para_frac`)."""
    max_duplicate_line_characters: Share | None = 0.2
    """`dup_line_char_frac`."""
    max_duplicate_paragraph_characters: Share | None = 0.2
    """`dup_para_char_frac`."""
    max_top_ngram: dict[Size, Share] = {2: 0.2, 3: 0.18, 4: 0.16}
    """n -> share that the most frequent n words in a row make up (`top_2_gram`); {} switches them off."""
    max_duplicate_ngrams: dict[Size, Share] = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1}
    """n -> share of n words in a row that were there before (`duplicated_5_n_grams`); {} switches them off."""


class C4Config(Frozen):
    """Raffel et al. 2020, section 2.2, and the code behind it; reasons as datatrove's `C4QualityFilter`. Lines are taken out of the text; how
    many and why is noted."""

    terminal_punctuation: bool = True
    """Take out lines without a mark of the end of a sentence. FineWeb leaves this rule out, since it takes 30 % of the text (Penedo et al. 2024,
    section 3.6)."""
    min_words_per_line: int | None = Field(3, gt=0)
    """Take out shorter lines."""
    max_word_length: int | None = Field(1000, gt=0)
    """Take out lines with a longer word; characters."""
    javascript: bool = True
    """Take out lines that mention it."""
    policy: bool = True
    """Take out lines about cookies, terms of use and privacy."""
    citations: bool = True
    """Take out Wikipedia's `[1]`, `[edit]`, `[citation needed]`."""
    lorem_ipsum: bool = True
    """Drop the document (`lorem_ipsum`)."""
    curly_bracket: bool = True
    """Drop the document (`curly_bracket`): natural text has none, programs do."""
    min_sentences: int | None = Field(5, gt=0)
    """Drop the document with fewer in the lines that are left (`too_few_sentences`)."""


class FineWebConfig(Frozen):
    """Penedo et al. 2024 (arXiv 2406.17557), section 3.6; reasons as datatrove's `FineWebQualityFilter`. null switches a rule off."""

    min_ended_lines: Share | None = 0.12
    """Share of the lines that end with a mark of the end of a sentence (`line_punct_ratio`)."""
    max_short_lines: Share | None = 0.67
    """Share of the lines with at most `short_line_length` characters (`short_line_ratio`)."""
    short_line_length: int = Field(30, gt=0)
    """Characters."""
    max_duplicate_line_characters: Share | None = 0.01
    """Share of the characters that stand in lines that were there before (`char_dup_ratio`)."""
    max_newlines_per_word: float | None = Field(0.3, gt=0)
    """`list_ratio`."""


class CodeConfig(Frozen):
    """Chen et al. 2021 (arXiv 2107.03374), section 3.1, with the numbers of The Stack (Kocetkov et al. 2022) and StarCoder (Li et al. 2023,
    section 3.2). null switches a rule off."""

    max_line_length: int | None = Field(1000, gt=0)
    """Characters of the longest line (`code_long_line`)."""
    max_mean_line_length: float | None = Field(100.0, gt=0)
    """Characters (`code_long_lines`)."""
    min_alphanumeric: Share | None = 0.25
    """Share of the characters that are letters or digits (`code_few_alphanumeric`)."""


class LanguageRules(Frozen):
    """Rule sets of one language; one that is not named is as for all."""

    gopher_quality: GopherQualityConfig | None = None
    """Length, symbols, stop words."""
    gopher_repetition: GopherRepetitionConfig | None = None
    """Lines, paragraphs and n-grams that come again."""
    c4: C4Config | None = None
    """Lines that are no sentences."""
    fineweb: FineWebConfig | None = None
    """Lists and menus."""


class HeuristicsConfig(Frozen):
    """Rules of published corpora that look at words, lines and repetition. The value that broke a rule is noted with its bound."""

    web: list[RuleSet] = ["gopher_quality", "gopher_repetition", "c4", "fineweb"]
    """Sets that judge documents of `web` sources, in this order. Their papers use them on web pages only, hence so little for other kinds."""
    books: list[RuleSet] = ["gopher_repetition"]
    """Of `books`."""
    wikipedia: list[RuleSet] = ["gopher_repetition"]
    """Of `wikipedia`."""
    papers: list[RuleSet] = ["gopher_repetition"]
    """Of `papers`; C4's rule on curly brackets would drop all of LaTeX."""
    code: list[RuleSet] = ["code"]
    """Of `code`."""
    rows: list[RuleSet] = ["gopher_quality", "gopher_repetition"]
    """Of `rows`."""
    language: str = "en"
    """Of documents that went through no identification, in sources that do not name theirs."""
    gopher_quality: GopherQualityConfig = GopherQualityConfig()
    """Length, symbols, stop words."""
    gopher_repetition: GopherRepetitionConfig = GopherRepetitionConfig()
    """Lines, paragraphs and n-grams that come again."""
    c4: C4Config = C4Config()
    """Lines that are no sentences."""
    fineweb: FineWebConfig = FineWebConfig()
    """Lists and menus."""
    code_rules: CodeConfig = CodeConfig()
    """Generated and minified code."""
    by_language: dict[str, LanguageRules] = {}
    """Language -> rules with other thresholds, in place of those above."""


class StepsConfig(Frozen):
    """What documents pass through, in this order; a step that is not named is left out."""

    encoding: EncodingConfig | None = EncodingConfig()
    """Repair what was decoded wrongly."""
    url: UrlConfig | None = None
    """Drop by where it was found; `{}` for the lists of datatrove."""
    language: LanguageConfig | None = None
    """Keep some languages."""
    heuristics: HeuristicsConfig | None = None
    """Drop what does not look like good text; `{}` for the rules and thresholds of the papers."""


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
