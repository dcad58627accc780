"""The scorer equals scikit-learn's pipeline; what is written is read back, and what is damaged is named."""

import dataclasses
import json
import time

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from megagpt.config.prepare import NgramsConfig, TrainQualityConfig, WindowsConfig
from megagpt.config.schema import RunConfig
from megagpt.prepare.classifier import FACTS, WEIGHTS, Classifier, ClassifierError, cut, load_classifier, save_classifier, sigmoid
from megagpt.prepare.ngrams import Ngrams, WordList
from megagpt.prepare.training.fit import Fitted, balanced, features_of, fit, to_classifier
from megagpt.runtime.atomic import sha256_file

CONFIG = TrainQualityConfig(run=RunConfig(name="x"), reference=[{"name": "a", "files": ["a"]}], raw=[{"name": "b", "files": ["b"]}])
NGRAMS = Ngrams(NgramsConfig(hash_bits=14), ignored=("grey",), lists={"rude": WordList.of(["bum", "silly billy"])})
WORDS = "tree house grey silly billy bum water under over 12 green, moon! river bank stone".split()


def texts_and_labels(number: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, number)
    odds = np.where(labels[:, None] == 1, np.linspace(1, 3, len(WORDS)), np.linspace(3, 1, len(WORDS)))
    texts = [" ".join(random.choice(WORDS, size=random.integers(3, 30), p=row / row.sum())) for row in odds]
    return texts, labels


def trained() -> Classifier:
    texts, labels = texts_and_labels(400)
    ones = np.ones(len(labels))
    fitted = fit(features_of(NGRAMS, texts, "test"), labels, np.arange(400) / 400, CONFIG, ones, ones)
    return to_classifier(fitted, "quality", NGRAMS, CONFIG, {"texts": 400})


def test_classifier_scores_equal_scikit_learns_pipeline():
    texts, labels = texts_and_labels(300)
    unseen = texts_and_labels(200, seed=1)[0] + ["", "never seen words here", "bum" * 40]
    pipeline = make_pipeline(FunctionTransformer(lambda some: features_of(NGRAMS, some, "test")), LogisticRegression(C=3.0, max_iter=500))
    pipeline.fit(texts, labels)
    model = pipeline[-1]
    ours = Classifier("quality", NGRAMS, WindowsConfig(), model.coef_[0].astype(np.float32), float(model.intercept_[0]), 1.0, 0.0)
    expected = pipeline.predict_proba(unseen)[:, 1]
    np.testing.assert_allclose(sigmoid(ours.logits(unseen)), expected, atol=1e-6, rtol=0)
    np.testing.assert_allclose([ours.score(text) for text in unseen], expected, atol=1.1e-6, rtol=0)  # rounded to six digits
    assert expected.std() > 0.1


def test_classifier_calibration_equals_platts_on_the_tenth_that_is_kept():
    texts, labels = texts_and_labels(400)
    features, keys, ones = features_of(NGRAMS, texts, "test"), np.arange(400) / 400, np.ones(400)
    fitted = fit(features, labels, keys, CONFIG, ones, ones)
    weights = balanced(labels[40:], ones[40:])
    model = LogisticRegression(C=CONFIG.inverse_regularisation, tol=1e-4, max_iter=200).fit(features[40:], labels[40:], sample_weight=weights)
    logits = model.decision_function(features[:40])[:, None]
    platt = LogisticRegression(C=np.inf, tol=1e-8).fit(logits, labels[:40], sample_weight=balanced(labels[:40], ones[:40]))
    np.testing.assert_allclose(fitted.probabilities(features[:40]), platt.predict_proba(logits)[:, 1], atol=5e-3)


def test_classifier_calibration_recovers_a_known_line():
    random = np.random.default_rng(3)
    logits = random.normal(size=40_000)
    labels = (random.random(40_000) < sigmoid(2 * logits - 1)).astype(int)
    from scipy.sparse import csr_matrix

    # One feature of value x, of which training makes a x + b; scale (a x + b) + offset must be 2 x - 1, less the log odds that balancing takes away.
    fitted = fit(csr_matrix(logits[:, None]), labels, random.random(40_000), CONFIG, np.ones(40_000), np.ones(40_000))
    line = fitted.scale * float(fitted.weights[0]), fitted.scale * fitted.intercept + fitted.offset
    share = labels.mean()
    assert line == pytest.approx((2, -1 - np.log(share / (1 - share))), abs=0.15)


def test_balanced_weights_give_each_class_its_share():
    labels, weights = np.array([0, 0, 0, 1]), np.array([1.0, 2.0, 3.0, 5.0])
    result = balanced(labels, weights, prior=0.25)
    assert result.sum() == pytest.approx(4) and result[3] == pytest.approx(1)
    assert result[1] / result[0] == pytest.approx(2)


@pytest.mark.parametrize("length", [0, 1, 49, 50, 51, 100, 101, 799, 800, 801, 12_345])
def test_classifier_windows_cover_a_text_or_sample_it_evenly(length):
    windows, text = WindowsConfig(characters=50, most=16), "".join(chr(33 + i % 90) for i in range(length))
    parts = cut(text, windows)
    assert 1 <= len(parts) <= 16 and all(len(part) <= 50 for part in parts)
    if length <= 800:
        assert "".join(parts) == text and max(map(len, parts)) - min(map(len, parts)) <= 1
    else:
        assert parts[0] == text[:50] and parts[-1] == text[-50:] and len(parts) == 16
    assert cut(text, windows, 1) == [text[:50]]


def test_classifier_scores_a_huge_document_as_fast_as_a_long_one():
    classifier = trained()
    huge = "tree house moon " * 2_000_000
    classifier.score(huge[:40_000])
    began = time.process_time()
    score = classifier.score(huge)
    assert time.process_time() - began < 0.5 and 0 <= score <= 1
    assert classifier.score(huge) == score


def test_classifier_is_read_back_as_it_was(tmp_path):
    classifier = trained()
    save_classifier(classifier, tmp_path / "a")
    save_classifier(trained(), tmp_path / "b")
    read = load_classifier(tmp_path / "a", "quality")
    unseen = texts_and_labels(50, seed=2)[0]
    assert [read.score(text) for text in unseen] == [classifier.score(text) for text in unseen]
    assert read.facts == {"texts": 400} and read.ngrams.ignored == ("grey",) and read.windows == classifier.windows
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [FACTS, WEIGHTS]
    for name in (FACTS, WEIGHTS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), "training again gives the same bytes"


def change_facts(folder, **changes):
    facts = json.loads((folder / FACTS).read_text())
    (folder / FACTS).write_text(json.dumps(facts | changes))


def change_weights(folder, **changes):
    tensors = {name: tensor for name, tensor in (load_file(folder / WEIGHTS) | changes).items() if tensor is not None}
    save_file(tensors, folder / WEIGHTS)
    change_facts(folder, weights_sha256=sha256_file(folder / WEIGHTS))


NAN = np.full(NGRAMS.num_features, np.nan, np.float32)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / FACTS).unlink(), f"{FACTS}: No such file or directory; `megagpt data train-quality` writes it"),
        (lambda folder: (folder / WEIGHTS).unlink(), f"{WEIGHTS}: No such file"),
        (lambda folder: (folder / FACTS).write_text("{"), f"{FACTS}: damaged .JSONDecodeError"),
        (lambda folder: (folder / FACTS).write_text("[" * 100_000), f"{FACTS}: damaged"),
        (lambda folder: (folder / FACTS).write_text("[]"), "format None, this version reads 1"),
        (lambda folder: (folder / FACTS).write_bytes(b"\xff\xfe"), f"{FACTS}: damaged"),
        (lambda folder: (folder / FACTS).write_text(" " * (5 << 20)), f"{FACTS}: more than 4 MiB"),
        (lambda folder: change_facts(folder, format=2), "format 2, this version reads 1"),
        (lambda folder: change_facts(folder, purpose="toxicity"), "a classifier of toxicity, not of quality; `megagpt data train-quality` makes one"),
        (lambda folder: change_facts(folder, ngrams={"hash_bits": 60}), "hash_bits.*less than or equal to 24"),
        (lambda folder: change_facts(folder, intercept=None), f"{FACTS}: damaged .TypeError"),
        (lambda folder: change_facts(folder, scale=float("inf")), "not all weights are finite"),
        (lambda folder: change_facts(folder, lists=["rude", "other"]), "tensor 'list.other' is missing"),
        (lambda folder: change_facts(folder, ngrams=NgramsConfig().model_dump()), r"weights are float32 \[16386\], the features need float32 \[262146\]"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"\0" * 100), f"{WEIGHTS}: not the file that {FACTS} was written with"),
        (lambda folder: change_weights(folder, weights=None), "tensor 'weights' is missing"),
        (lambda folder: change_weights(folder, weights=NAN), "not all weights are finite"),
        (lambda folder: change_weights(folder, weights=NAN.astype(np.float64)), "weights are float64"),
        (lambda folder: ((folder / WEIGHTS).write_bytes(b"{}" * 9), change_facts(folder, weights_sha256=sha256_file(folder / WEIGHTS))), f"{WEIGHTS}: damaged"),
    ],
)  # fmt: skip
def test_damaged_classifier_is_refused_with_what_is_wrong(tmp_path, damage, message):
    save_classifier(dataclasses.replace(untrained(), facts={}), tmp_path)
    load_classifier(tmp_path, "quality")
    damage(tmp_path)
    with pytest.raises(ClassifierError, match=message) as error:
        load_classifier(tmp_path, "quality")
    assert "\n" not in str(error.value) and error.value.exit_code == 2


def untrained() -> Classifier:
    return to_classifier(Fitted(np.zeros(NGRAMS.num_features, np.float32), 0.0, 1.0, 0.0), "quality", NGRAMS, CONFIG, {})
