"""The report on a tokenizer, and what tokenizers say that they cannot give back."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers

from megagpt.report.tokenizer import write_tokenizer_report
from megagpt.tokenizer.limits import limits
from megagpt.tokenizer.report import Sample, script, summary_line, tokenizer_report
from megagpt.tokenizer.tokenizer import Tokenizer, TokenizerError, load_tokenizer
from megagpt.tokenizer.train import train_tokenizer

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data" / "tokenizers"
SIZES = {"bpe": 290, "unigram": 285, "byte_bpe": 290}
INVALID = {"half a surrogate pair", "bytes that are no UTF-8 (as Python's surrogateescape reads them)"}
needs_vocabularies = pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the vocabularies in {SHARED}")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(["who are you, a model; be brief, bye. " * 9], 290, tmp_path_factory.mktemp("report"))


def words_only() -> Tokenizer:
    library = Library(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    return Tokenizer("huggingface", {"tokenizer.json": library.to_str().encode()})


class Forgetful:
    """Loses accents."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def decode(self, ids):
        return self._tokenizer.decode(ids).replace("é", "e")


def test_report_counts_by_source_and_language(tokenizer):
    samples = [Sample("who are you", "web", "en", "1"), Sample("be brief, bye", "books", "en", "2"), Sample("привет", "web", "", "3")]
    report = tokenizer_report(tokenizer, samples)
    numbers = [len(tokenizer.encode(sample.text)) for sample in samples]
    assert (report["texts"], report["bytes"], report["tokens"]) == (3, 11 + 13 + 12, sum(numbers))
    assert report["tokens_per_word"] == round(sum(numbers) / 7, 4) and report["bytes_per_token"] == round(36 / sum(numbers), 4)
    web, english = report["by_source"]["web"], report["by_language"]["en"]
    assert (web["texts"], web["bytes"], web["tokens"]) == (2, 23, numbers[0] + numbers[2])
    assert (english["bytes"], english["tokens"], english["tokens_per_word"]) == (24, sum(numbers[:2]), round(sum(numbers[:2]) / 6, 4))
    assert list(report["by_source"]) == ["web", "books"] and list(report["by_language"]) == ["en", "Cyrillic script"], "most text first"
    assert report["by_language"]["Cyrillic script"]["characters_per_token"] == 0.5, "two bytes a letter, none of them learned"
    used = {piece for sample in samples for piece in tokenizer.encode(sample.text)}
    assert report["used_ids"] == len(used) and report["round_trip_failures"] == 0


def test_report_shows_what_does_not_come_back(tokenizer):
    report = tokenizer_report(Forgetful(tokenizer), [Sample("fine", "a"), Sample("caf\u00e9s", "b", document="b/7"), *[Sample("é", "b")] * 9])
    assert report["round_trip_failures"] == report["by_source"]["b"]["round_trip_failures"] == 10
    assert report["failure_examples"][0] == {"document": "b/7", "source": "b", "position": 3, "original": "és", "decoded": "es"}
    assert len(report["failure_examples"]) == 5
    assert "round-trip failures: 10" in summary_line(report)


def test_report_on_no_text(tokenizer):
    report = tokenizer_report(tokenizer, [])
    assert report["bytes_per_token"] is None and report["by_source"] == {}


def test_report_longest_tokens(tokenizer):
    report = tokenizer_report(tokenizer, [Sample("model; be brief")])
    longest = report["longest_tokens"]
    sizes = [len(tokenizer.decode([number]).encode()) for number in range(290) if number not in tokenizer.special_ids.values()]
    assert [one["bytes"] for one in longest] == sorted(sizes, reverse=True)[:30]
    ids = tokenizer.encode("model; be brief")
    assert all(one["count"] == ids.count(one["id"]) and one["text"] == tokenizer.decode([one["id"]]) for one in longest)


@pytest.mark.parametrize(("text", "name"), [
    ("Hello, мир and more", "Latin script"), ("привет", "Cyrillic script"), ("漢字, 仮名 a", "CJK script"), ("吾輩は猫である", "Hiragana script"), ("12 + 3 = !", "no letters"),
])  # fmt: skip
def test_report_script_of_most_letters(text, name):
    assert script(text) == name


def test_report_page_escapes_and_shows(tokenizer, tmp_path):
    samples = [Sample("<b>café</b> \x01", "<source>", document="d"), Sample("x", "")]
    report = tokenizer_report(Forgetful(tokenizer), samples)
    page = write_tokenizer_report(report, "Tokenizer <i>", tmp_path, "report").read_text()
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(report))
    assert "&lt;source&gt;" in page and "<source>" not in page and "<i>" not in page and "\x01" not in page
    assert page.count("data:image/png;base64,") == 2 and "texts that do not come back: 1" in page and "half a surrogate pair" in page
    empty = write_tokenizer_report(tokenizer_report(tokenizer, []), "none", tmp_path, "empty").read_text()
    assert "every text comes back" in empty and "image/png" not in empty


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize("kind", SIZES)
def test_limits_of_our_own_are_what_utf8_cannot_spell(kind, tmp_path):
    ours = train_tokenizer(["who are you, a model; be brief and say goodbye. " * 9], SIZES[kind], tmp_path, kind=kind)
    found = limits(ours)
    assert {limit.what for limit in found} == INVALID
    assert all(limit.decoded is None for limit in found)


@pytest.mark.parametrize("text", ["ab\ud83dc", b"ab\xffc".decode("utf-8", "surrogateescape")])
def test_limits_invalid_text_is_refused_with_its_place(tokenizer, text):
    others = [words_only(), *([load_tokenizer(SHARED / name) for name in ("gpt2_encoder.json", "spm_test_model.model")] if SHARED.is_dir() else [])]
    for one in [tokenizer, *others]:
        for encode in (one.encode, lambda bad: one.encode_batch(["fine", bad])):  # noqa: B023
            with pytest.raises(TokenizerError, match=rf"half a surrogate pair \(U\+{ord(text[2]):04X}\) at character 2"):
                encode(text)


def test_limits_of_a_vocabulary_of_words():
    found = {limit.what: limit.decoded for limit in limits(words_only())}
    assert found["several spaces"] == "a b" and {"a space in front", "upper case", *INVALID} <= found.keys()


@needs_vocabularies
def test_limits_of_published_vocabularies():
    assert {limit.what for limit in limits(load_tokenizer(SHARED / "gpt2_encoder.json"))} == INVALID
    for name in ("spm_test_model.model", "spm_test_ja_model.model"):
        found = {limit.what: limit.decoded for limit in limits(load_tokenizer(SHARED / name))}
        assert found["compatibility characters (NFKC would replace them)"].startswith("fi 1 A"), "nmt_nfkc"
        assert found["a space in front"] == "a" and found["several spaces"] == "a b"
        assert "\u2047" in found["rare characters (without byte fallback they are unknown)"], "no byte fallback"
        assert found.keys() >= INVALID and "upper case" not in found
