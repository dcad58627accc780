"""Language identification: a small fastText model whose probabilities are known, and lid.176 where it is."""

import math

import pytest

from megagpt.config.prepare import LanguageConfig, SourceConfig
from megagpt.data import records
from megagpt.data.errors import DataError
from megagpt.prepare.document import to_flow
from megagpt.prepare.steps.language import Language
from tests.helpers.fasttext_model import write_model
from tests.helpers.flow import NO_SHARED, SHARED, flowing

LID = SHARED / "model_lid176" / "lid.176.ftz"
WORDS = {"en": "the house and water is of with they".split(), "de": "das haus und wasser ist von mit sie".split()}
SLOPE = 4.0


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("model") / "model.bin"
    write_model(path, WORDS, SLOPE)
    return str(path)


def judged(step: Language, text: str, **metadata):
    document = flowing(text, **metadata)
    return step(document), document.metadata["notes"].get("language"), document.metadata["scores"].get("language")


def score(share: float) -> float:
    """Of a language whose words are this share of the text."""
    return pytest.approx(1 / (1 + math.exp(-SLOPE * (2 * share - 1))), abs=1e-4)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("the house\nand water", (None, "en", score(1))),
        ("the house and das", ("language_unsure", "en", score(3 / 4))),
        ("das haus und the", ("language_other", "de", score(3 / 4))),
        ("the\n\nhouse\r\nand\twater\x00is das", (None, "en", score(5 / 6))),
        ("the house __label__de", (None, "en", score(1))),
        ("\ud800 the house", (None, "en", score(1))),
        ("", ("language_other", "und", 0.0)),
        ("\n\x00\n", ("language_other", "und", 0.0)),
        ("x" * 100_000, ("language_other", "und", 0.0)),
    ],
)
def test_language_keeps_what_is_wanted_and_sure(model, text, verdict):
    assert judged(Language(LanguageConfig(model=model, min_score=0.9)), text) == verdict


def test_language_settings(model):
    assert judged(Language(LanguageConfig(model=model, languages=["de", "en"])), "das haus")[:2] == (None, "de")
    assert judged(Language(LanguageConfig(model=model, min_score=0.5)), "the house and das")[:2] == (None, "en")
    assert judged(Language(LanguageConfig(model=model)), "das haus", kind="code") == (None, None, None)


def test_language_of_a_source_that_names_it(model):
    """None of its documents is dropped; what the model thinks of that language stands in the score."""
    step = Language(LanguageConfig(model=model))
    source = SourceConfig(name="german", kind="rows", files=["x"], language="de")
    document = to_flow(records.Document(id="1", text="the house and das"), source)
    assert step(document) is None
    assert document.metadata["notes"]["language"] == "de" and document.metadata["scores"]["language"] == score(1 / 4)
    assert judged(step, "das haus", language="eu") == (None, "eu", 0.0)


def test_language_refuses_a_model_that_is_none(model, tmp_path):
    path = tmp_path / "lid.bin"
    with pytest.raises(DataError, match="no such file"):
        Language(LanguageConfig(model=str(path)))
    path.write_text("no model")
    with pytest.raises(DataError, match="no fastText model"):
        Language(LanguageConfig(model=str(path)))
    with pytest.raises(DataError, match="'english'"):
        Language(LanguageConfig(model=model, languages=["english"]))


@pytest.mark.skipif(not LID.is_file(), reason=NO_SHARED)
@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "Data preparation reads raw text and keeps what a model should learn from."),
        ("de", "Die Aufbereitung liest rohen Text und behält, woraus ein Modell lernen soll."),
        ("ja", "吾輩は猫である。名前はまだ無い。\nどこで生れたかとんと見当がつかぬ。"),
        ("bg", "Това е текст на български език, който моделът трябва да познае."),
    ],
)
def test_language_of_lid176(capfd, language, text):
    step = Language(LanguageConfig(model=str(LID), languages=[language]))
    assert judged(step, text)[:2] == (None, language)
    assert judged(step, text.replace(" ", "\n")[:-1] + "\x00")[:2] == (None, language)
    assert judged(step, "")[0] is not None
    assert capfd.readouterr() == ("", ""), "fastText warns when it loads a model"
