"""Configuration of data preparation: raw sources, the steps that documents pass through, and what runs them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

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
    """Files, folders (all files below) and patterns (`crawl/**/*.warc.gz`), relative to the working directory. Folders and patterns leave out hidden files
    and do not follow links; a file that is named itself may be one."""
    text_files: Literal["document", "lines"] = "document"
    """Of `rows`: a plain text file is one document, or each of its lines is one."""
    judged_as: Kind | None = None
    """Steps treat its documents as those of this kind (rows of source files: `code`); default: as those of its own."""
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


RuledKind = Literal["EMAIL", "IP", "PHONE", "CARD", "IBAN", "SSN", "ADDRESS"]
"""Personal data that rules find."""
PersonalDataKind = Literal[RuledKind, "NAME"]


class PersonalDataConfig(Frozen):
    """E-mail, IP and postal addresses, telephone, card, account and social security numbers, names."""

    kinds: tuple[RuledKind, ...] = Field(("EMAIL", "IP", "PHONE", "CARD", "IBAN", "SSN", "ADDRESS"), min_length=1)
    """What is looked for."""
    engine: Literal["rules", "presidio"] = "rules"
    """`presidio`: names of persons too (NAME), by the model below; all other kinds by rules in any case."""
    presidio_model: str = "en_core_web_lg"
    """spaCy's name of an installed model, or the folder of one."""
    presidio_language: str = Field("en", pattern=r"^[a-z]{2}$")
    """Of the model; two letters."""
    ip_addresses: Literal["public", "all"] = "public"
    """`public`: private, loopback, documentation and reserved ranges stay, which name nobody."""
    phone_regions: tuple[str, ...] = Field(
        ("US", "GB", "DE", "FR", "ES", "IT", "NL", "PT", "PL", "SE", "AT", "CH", "BE", "IE", "AU", "NZ", "IN", "BR", "MX", "JP"), min_length=1
    )
    """Countries whose national numbers are known; international ones (`+49 ...`) are known of all. Each costs time."""
    replacement: Literal["placeholder", "form"] = "placeholder"
    """`placeholder`: `<EMAIL>`, `<PHONE>` and so on. `form`: what looks alike and belongs to nobody: `name@example.com`, digits as 0, letters as x."""
    drop_above: dict[PersonalDataKind, Annotated[int, Field(ge=0)]] = {}
    """Drop a document that has more of a kind than this; default: redact, however many there are."""


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


class QualityConfig(Frozen):
    """A classifier of `megagpt data train-quality` scores documents: 0 is raw crawl, 1 is reference text."""

    classifier: str
    """Folder of the classifier, as runs/NAME/quality."""
    kinds: list[Kind] = ["web"]
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
    """For all sources but those of `by_kind` and `by_source`."""
    by_kind: dict[Kind, ToxicityRule] = {"books": ToxicityRule(action="weigh")}
    """Other rules for some kinds, with the keys of `default`."""
    by_source: dict[str, ToxicityRule] = {}
    """Other rules for some sources, by their names, with the keys of `default`; before those of their kinds."""


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
    quality: QualityConfig | None = None
    """Drop what does not read like reference text; off without a classifier."""
    exact_duplicates: ExactDuplicatesConfig | None = None
    """Documents, paragraphs and lines that occur more than once."""
    near_duplicates: NearDuplicatesConfig | None = None
    """Documents that are almost the same; looked for among those that exact_duplicates keeps."""
    toxicity: ToxicityConfig | None = None
    """Drop or down-weight what is toxic; off without a classifier."""
    personal_data: PersonalDataConfig | None = None
    """Find and redact it, or drop documents with too much of it."""
    decontamination: DecontaminationConfig | None = None
    """Take out what evaluation sets ask."""
    representation: RepresentationConfig | None = None
    """Count who is spoken of, and how."""


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
    memory_gib: float = Field(2.0, ge=0.125)
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
