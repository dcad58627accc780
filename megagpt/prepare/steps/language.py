"""Which language a document is in, by a fastText model."""

from __future__ import annotations

from pathlib import Path

from datatrove.data import Document
from fasttext.FastText import _FastText

from megagpt.config.prepare import LanguageConfig
from megagpt.data.errors import DataError, require_file
from megagpt.data.repair import repair_surrogates

_LABEL = "__label__"


class Language:
    """Reasons `language_other`, `language_unsure`. Note and score `language`: the most probable one and its probability. Documents of a source that
    names its language are of that one; their score is the probability that the model gives it."""

    name = "language"

    def __init__(self, config: LanguageConfig) -> None:
        """Raises:
        DataError: the model is missing, no fastText model, or does not know a language that is to be kept.
        """
        self.config = config
        path = Path(config.model)
        require_file(path)
        try:
            self._model = _FastText(str(path)).f  # what fasttext.load_model wraps, without its warning
        except ValueError as error:
            raise DataError(path, "is no fastText model") from error
        labels = {label.removeprefix(_LABEL) for label in self._model.getLabels("strict")[0]}
        if unknown := sorted(set(config.languages) - labels):
            raise DataError(path, f"does not know the language {unknown[0]!r} of steps.language.languages")

    def __call__(self, document: Document) -> str | None:
        metadata = document.metadata
        if metadata["kind"] not in self.config.kinds:
            return None
        if fixed := metadata.get("language"):
            metadata["notes"]["language"], metadata["scores"]["language"] = fixed, dict(self.predict(document.text, k=-1)).get(fixed, 0.0)
            return None
        language, score = self.predict(document.text)[0]
        metadata["notes"]["language"], metadata["scores"]["language"] = language, score
        if language not in self.config.languages:
            return "language_other"
        return "language_unsure" if score < self.config.min_score else None

    def predict(self, text: str, k: int = 1) -> list[tuple[str, float]]:
        """The k most probable languages with their probabilities (-1: all), most probable first.

        fastText reads one line, and no half surrogate pairs; that it also splits words at NUL does no harm.
        """
        found = self._model.predict(repair_surrogates(text).replace("\n", " ") + "\n", k, 0.0, "strict")
        return [(label.removeprefix(_LABEL), min(probability, 1.0)) for probability, label in found] or [("und", 0.0)]
