"""Token files by source: weights of documents, mixtures, and the configuration of pre-training that follows from them."""

import json
import re
from collections import Counter

import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megagpt.config.load import ConfigError, load_config
from megagpt.config.schema import MixtureConfig, PretrainConfig, RunConfig, TokenizeConfig
from megagpt.data.blend import BLOCK, Blend
from megagpt.data.errors import DataError
from megagpt.data.mixture import SourceSize, mix
from megagpt.data.token_data import open_token_files
from megagpt.data.token_files import tokenize_documents
from megagpt.prepare.tables import DOCUMENTS, Table
from megagpt.tokenizer.train import train_tokenizer

WEIGHTS = (1.0, 0.25, 2.5, 0.0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(["some words and more words. " * 20], 290, tmp_path_factory.mktemp("tokenizer"))


def write_documents(path, rows):
    """As data preparation writes them."""
    with Table(path, DOCUMENTS) as table:
        for row in rows:
            table.add({**row, "url": "", "licence": "", "date": "", "meta": "{}"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    rows = [{"id": f"web/{n}", "text": f"web {n} some words", "source": "web", "weight": WEIGHTS[n % 4]} for n in range(800)]
    rows[1:1] = [{"id": f"books/{n}", "text": f"books {n} " + "more words. " * 40, "source": "books", "weight": 1.0} for n in range(30)]
    write_documents(folder / "train-00000.parquet", rows[:400])
    write_documents(folder / "train-00001.parquet", rows[400:])
    write_documents(folder / "valid-00000.parquet", [{"id": f"{s}/v", "text": f"{s} held out " * 20, "source": s, "weight": 1.0} for s in ("books", "web")])
    return folder


def config_of(folder, **settings):
    inputs = {side: [str(folder / f"{side}-*.parquet")] for side in ("train", "valid")}
    return TokenizeConfig(run=RunConfig(name="t"), inputs=inputs, **({"by_source": True} | settings))


def documents_of(prefix, tokenizer):
    files = IndexedDataset(str(prefix))
    return [tokenizer.decode(ids[:-1]) for ids in files[0 : len(files)]]


@pytest.fixture(scope="module")
def tokens(tokenizer, folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "tokenize"
    return output, tokenize_documents(config_of(folder), tokenizer, output)


def test_sources_have_a_pair_each(tokenizer, tokens):
    output, summary = tokens
    assert sorted(path.relative_to(output).as_posix() for path in output.rglob("*.*")) == sorted(
        f"{side}/{source}.{end}" for side in ("train", "valid") for source in ("books", "web") for end in ("bin", "idx", "json")
    )
    books = documents_of(output / "train/books", tokenizer)
    assert [text.split()[1] for text in books] == [str(number) for number in range(30)], "in their order, over files and between others"
    assert summary["train"]["sources"]["books"]["documents"] == 30
    assert summary["train"]["tokens"] == sum(facts["tokens"] for facts in summary["train"]["sources"].values())
    assert json.loads((output / "train/books.json").read_text())["num_documents"] == 30


def test_sources_weights_are_copies_on_average(tokenizer, tokens):
    output, summary = tokens
    counts = Counter(int(text.split()[1]) for text in documents_of(output / "train/web", tokenizer))
    by_weight = {weight: Counter(counts[number] for number in range(800) if WEIGHTS[number % 4] == weight) for weight in WEIGHTS}
    assert by_weight[1.0] == {1: 200} and by_weight[0.0] == {0: 200}
    assert by_weight[0.25].keys() == {0, 1} and by_weight[2.5].keys() == {2, 3}
    assert abs(by_weight[0.25][1] - 50) < 5 * (200 * 0.25 * 0.75) ** 0.5 and abs(by_weight[2.5][3] - 100) < 5 * (200 * 0.25) ** 0.5
    web = summary["train"]["sources"]["web"]
    assert (web["documents"], web["left_out"], web["repeated"]) == (sum(counts.values()), 200 + by_weight[0.25][0], 200)


def test_sources_copies_of_a_document_stand_apart(tokenizer, tokens):
    """A row of a training batch would otherwise show a text twice."""
    output, _ = tokens
    texts = documents_of(output / "train/web", tokenizer)
    places = {text: [i for i, other in enumerate(texts) if other == text] for text in set(texts)}
    assert min(second - first for found in places.values() for first, second in zip(found, found[1:], strict=False)) > 80, "as many as have a third copy, or nearly"


def test_sources_copies_depend_on_seed_and_id_alone(tokenizer, tokens, folder, tmp_path):
    output, _ = tokens
    config = config_of(folder, workers=2)
    backwards = config.model_copy(update={"inputs": {"train": [str(folder / f"train-0000{n}.parquet") for n in (1, 0)]}})
    tokenize_documents(config, tokenizer, tmp_path / "again")
    tokenize_documents(backwards, tokenizer, tmp_path / "backwards")
    other = backwards.model_copy(update={"run": RunConfig(name="t", seed=7)})
    tokenize_documents(other, tokenizer, tmp_path / "other")
    for end in ("bin", "idx"):
        assert (tmp_path / f"again/train/web.{end}").read_bytes() == (output / f"train/web.{end}").read_bytes()
    ours, same, different = (sorted(documents_of(path / "train/web", tokenizer)) for path in (output, tmp_path / "backwards", tmp_path / "other"))
    assert ours == same != different


def test_sources_weights_can_be_left_aside(tokenizer, folder, tmp_path):
    summary = tokenize_documents(config_of(folder, document_weights=False, by_source=False), tokenizer, tmp_path)
    assert summary["train"]["documents"] == 830 and "left_out" not in summary["train"]


def test_sources_parts_without_documents_are_passed_over(tokenizer, tmp_path):
    """Of many tasks some keep nothing; only if none has kept anything there is nothing to tokenize."""
    write_documents(tmp_path / "in/valid-0.parquet", [{"id": "a", "text": "words", "source": "web", "weight": 1.0}])
    write_documents(tmp_path / "in/valid-1.parquet", [])
    config = TokenizeConfig(run=RunConfig(name="t"), inputs={"valid": [str(tmp_path / "in")]})
    assert tokenize_documents(config, tokenizer, tmp_path)["valid"]["documents"] == 1
    (tmp_path / "in/valid-0.parquet").unlink()
    with pytest.raises(DataError, match="valid-1.parquet: no document holds any text"):
        tokenize_documents(config, tokenizer, tmp_path)


def test_sources_take_the_place_of_an_earlier_run(tokenizer, folder, tmp_path):
    """A pair of the other form would be mistaken for this run's; leftovers of a killed run go too."""
    (tmp_path / ".unfinished-train").mkdir()
    (tmp_path / ".unfinished-train" / "web.ids0").write_text("half")
    for by_source in (False, True, False):
        tokenize_documents(config_of(folder, by_source=by_source), tokenizer, tmp_path)
        assert (tmp_path / "train.bin").exists() != by_source and (tmp_path / "train/web.bin").exists() == by_source
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{side}.{end}" for side in ("train", "valid") for end in ("bin", "idx", "json")]


@pytest.mark.parametrize("weight", [-1.0, 101.0, float("nan"), "2"])
def test_sources_weight_that_cannot_be_is_refused(tokenizer, tmp_path, weight):
    (tmp_path / "train-0.jsonl").write_text(json.dumps({"id": "a", "text": "words", "weight": weight}))
    config = TokenizeConfig(run=RunConfig(name="t"), inputs={"train": [str(tmp_path)]})
    with pytest.raises(DataError, match=rf"train-0.jsonl: weight {weight!r} of document a: must be a number from 0 to 100"):
        tokenize_documents(config, tokenizer, tmp_path / "tokens")
    assert not list((tmp_path / "tokens").iterdir())


@pytest.mark.parametrize("source", ["../up", "a b", ".hidden", "x/y"])
def test_sources_that_are_no_file_names_are_refused(tokenizer, tmp_path, source):
    write_documents(tmp_path / "train-0.parquet", [{"id": "a", "text": "words", "source": source, "weight": 1.0}])
    config = TokenizeConfig(run=RunConfig(name="t"), inputs={"train": [str(tmp_path)]}, by_source=True)
    with pytest.raises(DataError, match="by_source makes it a file's name"):
        tokenize_documents(config, tokenizer, tmp_path / "tokens")


# ---------------------------------------------------------------- mixtures

SIZES = {"crawl": SourceSize(100, 410_000), "books": SourceSize(10, 55_000), "wiki": SourceSize(5, 3_000)}


def test_mixture_by_weights_gives_gpt3s_epochs():
    """Brown et al. 2020, table 2.2, in thousands for billions: 60 % of 300 are 0.44 epochs of 410, 3 % are 3 epochs of 3 (published, of rounded sizes: 3.4)."""
    mixture = mix(MixtureConfig(weights={"crawl": 60, "books": 16, "wiki": 3}, tokens=79 * 3000), SIZES)
    assert mixture.shares == pytest.approx({"crawl": 60 / 79, "books": 16 / 79, "wiki": 3 / 79})
    assert [round(mixture.epochs(source), 2) for source in SIZES] == [0.44, 0.87, 3.0]
    assert [row["source"] for row in mixture.rows()] == ["crawl", "books", "wiki"]


def test_mixture_by_epochs_gives_shares():
    mixture = mix(MixtureConfig(epochs={"crawl": 0.5, "wiki": 10}), SIZES)
    assert mixture.tokens == 205_000 + 55_000 + 30_000
    assert mixture.shares == pytest.approx({"crawl": 205 / 290, "books": 55 / 290, "wiki": 30 / 290})
    assert [mixture.epochs(source) for source in SIZES] == pytest.approx([0.5, 1.0, 10.0])


def test_mixture_leaves_out_what_weighs_nothing():
    mixture = mix(MixtureConfig(weights={"crawl": 0, "books": 1, "wiki": 1}), SIZES)
    assert mixture.tokens == 58_000 and mixture.epochs("crawl") == 0
    assert "crawl" not in mixture.yaml("tokenize/train", "tokenize/valid", ["crawl"]).split("train_tokens")[1]
    assert "valid" not in mixture.yaml("tokenize/train", "tokenize/valid", ["crawl"])


def test_mixture_smallest_share_is_one_that_the_blend_takes():
    """Of 65,536 rows one; a digit less in the file and it would be less than that."""
    mixture = mix(MixtureConfig(weights={"a": 1.001 / BLOCK, "b": 1.0}), {"a": SourceSize(1, 100), "b": SourceSize(1, 100)})
    weights = [float(weight) for weight in re.findall(r"weight: ([0-9.]+)", mixture.yaml("train", "valid", []))]
    assert Blend(weights).counts(BLOCK)[0] >= 1


def test_mixture_table_is_aligned_and_adds_up():
    lines = mix(MixtureConfig(epochs={"wiki": 10}), SIZES).table().splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["source", "documents", "tokens", "share", "epochs"]
    assert lines[-1].split() == ["all", "115", "468,000", "100.00%", "1.06"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": {"crawl": 1, "books": 1, "wiki": 1, "news": 1}}, "mixture: news: no document has this source; there are books, crawl, wiki"),
        ({"weights": {"crawl": 1, "books": 1}}, "mixture.weights: wiki: this source of the documents has no weight; 0 leaves it out"),
        ({"epochs": {"crawl": 0, "books": 0, "wiki": 0}}, "mixture: every source is left out"),
        ({"weights": {"crawl": 1e6, "books": 1, "wiki": 1}}, r"mixture: books: its share 1.0e-06 is less than 1 / 65,536"),
    ],
)
def test_mixture_that_cannot_be_is_refused(settings, message):
    with pytest.raises(DataError, match=message):
        mix(MixtureConfig(**settings), SIZES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"by_source": False, "mixture": {"epochs": {}}}, "set by_source: true"),
        ({"mixture": {"input": "trian", "epochs": {}}}, "mixture.input = trian: is none of inputs; did you mean 'train'"),
        ({"mixture": {}}, "neither of weights and epochs; give one"),
        ({"mixture": {"weights": {}, "epochs": {}}}, "both of weights and epochs; give one"),
        ({"mixture": {"epochs": {}, "tokens": 5}}, "mixture.tokens = 5 with epochs"),
    ],
)
def test_mixture_settings_that_contradict_each_other_are_refused(tokenizer, folder, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        tokenize_documents(config_of(folder, **settings), tokenizer, tmp_path)
    assert not list(tmp_path.iterdir())


def test_mixture_file_is_a_base_of_pretraining(tokenizer, folder, tmp_path):
    """What pre-training makes of it are the epochs of the table."""
    output = tmp_path / "runs/t/tokenize"
    config = config_of(folder, mixture=MixtureConfig(epochs={"books": 3.0, "web": 0.5}))
    summary = tokenize_documents(config, tokenizer, output)
    assert {row["source"]: row["epochs"] for row in summary["mixture"]} == pytest.approx({"books": 3.0, "web": 0.5}, abs=1e-3)
    model = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "max_sequence_length": 8}
    rest = {"run": {"name": "t"}, "model": model, "optimizer": {"lr": 1e-3}, "batch": {"micro_batch_size": 1, "global_batch_size": 1}, "sequence_length": 8}
    (tmp_path / "pretrain.yaml").write_text(json.dumps({"base": "runs/t/tokenize/mixture.yaml", **rest}))
    pretrain = load_config(PretrainConfig, tmp_path / "pretrain.yaml")
    data = open_token_files(pretrain.data, lambda path: tmp_path / "runs/t" / path, 8, tokenizer, 1)
    counts = data.train.blend.counts(pretrain.train_tokens // 8)
    epochs = {rows.file.prefix.name: count / len(rows) for rows, count in zip(data.train.sources, counts, strict=True)}
    assert epochs == pytest.approx({"books": 3.0, "web": 0.5}, rel=0.01)
    assert sorted(rows.file.prefix.name for rows in data.valid.sources) == ["books", "web"]
