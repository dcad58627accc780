"""What the tokenizer verbs refuse before they read a document."""

import pytest

from megagpt.config.check import check_tokenizer
from megagpt.config.load import ConfigError
from megagpt.config.schema import RunConfig, TokenizerTrainConfig


def config(**settings):
    return TokenizerTrainConfig(run=RunConfig(name="t"), documents=["a.jsonl"], vocab_size=400, **settings)


def test_tokenizer_settings_that_say_nothing_unclear_pass():
    check_tokenizer(config(source_weights={"web": 0.5}), trains=True, foreign=False)
    check_tokenizer(config(sampling="first"), trains=False, foreign=True)


def test_tokenizer_of_others_is_not_trained():
    with pytest.raises(ConfigError, match="--tokenizer with train: .* measure another with `tokenizer report`"):
        check_tokenizer(config(), trains=True, foreign=True)


def test_tokenizer_sample_of_the_first_documents_has_no_weights():
    with pytest.raises(ConfigError, match="source_weights with sampling = first: .* set sampling: spread"):
        check_tokenizer(config(sampling="first", source_weights={"web": 2.0}), trains=True, foreign=False)
