"""The step: placeholders, counts, reasons to drop, and names by presidio."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
from datatrove.data import Document
from pydantic import ValidationError

from megagpt.config.load import ConfigError
from megagpt.config.prepare import PersonalDataConfig
from megagpt.data.errors import DataError
from megagpt.prepare.personal_data import names
from megagpt.prepare.personal_data.find import find
from megagpt.prepare.steps.personal_data import PersonalData, redact

TEXT = "Ana (ana@example.org, 415-642-4948) paid with 4111 1111 1111 1111 from 58.74.121.78.\nIBAN DE89 3704 0044 0532 0130 00, SSN 123-45-6789\n12 Main Street"
SECRETS = ["ana@", "642", "4111", "74.121", "3704", "6789", "Main"]


def document(text: str = TEXT) -> Document:
    return Document(text=text, id="7", metadata={"scores": {}, "notes": {}})


def test_pii_step_placeholders():
    given = document()
    assert PersonalData(PersonalDataConfig())(given) is None
    assert given.text == "Ana (<EMAIL>, <PHONE>) paid with <CARD> from <IP>.\nIBAN <IBAN>, SSN <SSN>\n<ADDRESS>"
    assert given.metadata["notes"] == {"personal_data": {"ADDRESS": 1, "CARD": 1, "EMAIL": 1, "IBAN": 1, "IP": 1, "PHONE": 1, "SSN": 1}}
    assert find(given.text, PersonalDataConfig()) == []


def test_pii_step_form():
    given = document()
    PersonalData(PersonalDataConfig(replacement="form"))(given)
    assert given.text == (
        "Ana (name@example.com, 000-000-0000) paid with 0000 0000 0000 0000 from 192.0.2.1.\nIBAN XX00 0000 0000 0000 0000 00, SSN 000-00-0000\n00 Xxxx Xxxxxx"
    )
    assert redact("2a00:1450::200e", find("2a00:1450::200e", PersonalDataConfig()), keep_form=True) == "2001:db8::1"


def test_pii_step_leaves_other_texts_alone():
    given = document("Nobody is named on 12.03.2021.")
    assert PersonalData(PersonalDataConfig())(given) is None
    assert given.text == "Nobody is named on 12.03.2021." and given.metadata["notes"] == {}


def test_pii_step_drops_above_a_number():
    step = PersonalData(PersonalDataConfig(drop_above={"EMAIL": 2, "CARD": 0}))
    two, three, card = document("a@x.org b@x.org"), document("a@x.org b@x.org c@x.org"), document("Visa 4111111111111111")
    assert [step(two), step(three), step(card)] == [None, "personal_data", "personal_data"]
    assert two.text == "<EMAIL> <EMAIL>"
    assert three.metadata["notes"] == {"personal_data": {"EMAIL": 3}}


@pytest.mark.parametrize("replacement", ["placeholder", "form"])
def test_pii_step_tells_nothing(replacement, caplog, capsys):
    given = document()
    with caplog.at_level(0):
        PersonalData(PersonalDataConfig(replacement=replacement))(given)
    said = caplog.text + "".join(capsys.readouterr()) + json.dumps(given.metadata) + given.text
    assert not [secret for secret in SECRETS if secret in said]


def test_pii_step_settings():
    with pytest.raises(ConfigError, match="phone_regions: 'XX' is no region"):
        PersonalData(PersonalDataConfig(phone_regions=("DE", "XX")))
    for wrong in ({"kinds": ()}, {"kinds": ("NAME",)}, {"drop_above": {"EMAIL": -1}}, {"engine": "spacy"}):
        with pytest.raises(ValidationError):
            PersonalDataConfig(**wrong)


# ---------------------------------------------------------------- names


@pytest.fixture
def no_cache():
    names.load.cache_clear()
    yield
    names.load.cache_clear()


def test_pii_names_need_presidio(monkeypatch, no_cache):
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(DataError, match=r"pip install 'megagpt\[presidio\]'"):
        PersonalData(PersonalDataConfig(engine="presidio"))


class Analyser:
    """presidio's, as far as it is called: it knows one name."""

    def __init__(self, registry, nlp_engine, supported_languages):
        self.seen = []

    def analyze(self, text, language, entities):
        assert language == "en" and entities == ["PERSON"]
        self.seen.append(text)
        places = [place for place in range(len(text)) if text.startswith("Ana Ruiz", place)]
        return [SimpleNamespace(start=place, end=place + len("Ana Ruiz")) for place in places]


@pytest.fixture
def presidio(monkeypatch, no_cache):
    """A stand-in for the package and for spaCy, which knows the model `small`."""

    def load(model, exclude):
        if model != "small":
            raise OSError(model)

    parts = {
        "spacy": {"load": load},
        "presidio_analyzer": {"AnalyzerEngine": Analyser, "RecognizerRegistry": lambda **settings: None},
        "presidio_analyzer.nlp_engine": {"NlpEngineProvider": lambda nlp_configuration: SimpleNamespace(create_engine=lambda: None)},
        "presidio_analyzer.predefined_recognizers": {"SpacyRecognizer": lambda **settings: None},
    }
    for name, members in parts.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return PersonalDataConfig(engine="presidio", presidio_model="small")


def test_pii_names_model_is_missing(presidio):
    with pytest.raises(DataError, match="'large' is no installed model"):
        PersonalData(PersonalDataConfig(engine="presidio", presidio_model="large"))


def test_pii_names_are_found_in_all_parts(presidio):
    """A long text is cut at ends of sentences; places are those of the whole."""
    text = "Here Ana Ruiz speaks, ana@example.org. " * 4000
    given = document(text)
    PersonalData(presidio)(given)
    assert given.metadata["notes"]["personal_data"] == {"EMAIL": 4000, "NAME": 4000}
    assert given.text == "Here <NAME> speaks, <EMAIL>. " * 4000
    seen = names.load("small", "en").seen
    assert len(seen) > 3 and "".join(seen) == text and max(map(len, seen)) <= names.PART
