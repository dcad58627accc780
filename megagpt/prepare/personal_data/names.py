"""Names of persons, where presidio and a spaCy model are installed."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

from megagpt.data.errors import DataError
from megagpt.prepare.personal_data.span import Span

PART = 50_000
"""Characters that the model sees at once: its memory grows with them."""
_CUT = re.compile(r"\n|(?<=[.!?]) ")


@functools.cache
def load(model: str, language: str) -> Any:
    """presidio's analyser with this spaCy model and nothing but its names.

    Raises:
        DataError: presidio or the model is not installed. (Left to itself presidio downloads the model.)
    """
    try:
        import spacy
        from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
        from presidio_analyzer.nlp_engine import NlpEngineProvider
        from presidio_analyzer.predefined_recognizers import SpacyRecognizer
    except ImportError:
        raise DataError("steps.personal_data.engine", "presidio is not installed (pip install 'megagpt[presidio]')") from None
    try:
        spacy.load(model, exclude=["tok2vec", "ner", "parser", "tagger", "lemmatizer", "attribute_ruler"])
    except OSError:
        raise DataError("steps.personal_data.presidio_model", f"{model!r} is no installed model (python -m spacy download {model})") from None
    models = [{"lang_code": language, "model_name": model}]
    engine = NlpEngineProvider(nlp_configuration={"nlp_engine_name": "spacy", "models": models}).create_engine()
    recogniser = SpacyRecognizer(supported_language=language, supported_entities=["PERSON"])
    registry = RecognizerRegistry(recognizers=[recogniser], supported_languages=[language])
    return AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=[language])


def names(text: str, model: str, language: str) -> Iterator[Span]:
    """Persons that the model names."""
    engine = load(model, language)
    start = 0
    while start < len(text):
        end = len(text)
        if end - start > PART:
            cuts = [match.end() for match in _CUT.finditer(text, start + PART // 2, start + PART)]
            end = cuts[-1] if cuts else start + PART
        for found in engine.analyze(text[start:end], language=language, entities=["PERSON"]):
            yield Span(start + found.start, start + found.end, "NAME")
        start = end
