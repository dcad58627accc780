"""The steps quality and toxicity: what they keep, drop and down-weight, and GPT-3's way of keeping."""

import dataclasses

import numpy as np
import pytest
from datatrove.data import Document
from scipy.stats import ks_2samp

from megagpt.config.check import check_prepare
from megagpt.config.load import ConfigError
from megagpt.config.prepare import NgramsConfig, PrepareConfig, QualityConfig, ToxicityConfig, ToxicityRule, WindowsConfig
from megagpt.config.schema import RunConfig
from megagpt.data.split import share
from megagpt.prepare.classifier import Classifier, ClassifierError, save_classifier, sigmoid
from megagpt.prepare.ngrams import Ngrams
from megagpt.prepare.steps.build import build_steps
from megagpt.prepare.steps.quality import Quality, lomax
from megagpt.prepare.steps.toxicity import Toxicity

NGRAMS = Ngrams(NgramsConfig(hash_bits=10, character_sizes=[], max_words=1))
GOOD, BAD = 3.0, -4.0


@pytest.fixture
def folder(tmp_path):
    """A classifier that knows two words: a text of `good` alone has logit 3, of `bad` alone -4, any other -1."""
    good, bad = (NGRAMS.features([word]).numbers[0] for word in ("good", "bad"))
    weights = np.zeros(NGRAMS.num_features, np.float32)
    weights[[good, bad]] = GOOD + 1, BAD + 1
    known = Classifier("quality", NGRAMS, WindowsConfig(characters=50, most=4), weights, -1.0, 1.0, 0.0)
    save_classifier(known, tmp_path / "quality")
    save_classifier(dataclasses.replace(known, purpose="toxicity"), tmp_path / "toxicity")
    return tmp_path


def document(text: str, id: str = "1", kind: str = "web") -> Document:
    return Document(text=text, id=id, metadata={"source": "crawl", "kind": kind, "scores": {}, "notes": {}, "weight": 1.0})


def test_quality_by_threshold(folder):
    step = Quality(QualityConfig(classifier=str(folder / "quality"), keep="threshold", threshold=0.5))
    for text, logit, reason in (("good", GOOD, None), ("bad", BAD, "low_quality"), ("neither", -1, "low_quality")):
        one = document(text)
        assert step(one) == reason
        assert one.metadata["scores"] == {"quality": pytest.approx(sigmoid(logit), abs=1e-6)}


def test_quality_passes_kinds_that_are_not_named(folder):
    step = Quality(QualityConfig(classifier=str(folder / "quality"), keep="threshold", kinds=["web", "rows"]))
    book = document("bad", kind="books")
    assert step(book) is None and book.metadata["scores"] == {}
    assert step(document("bad", kind="rows")) == "low_quality"


@pytest.mark.parametrize("alpha", [1.0, 9.0])
def test_quality_pareto_keeps_a_score_as_often_as_the_closed_form_says(folder, alpha):
    step = Quality(QualityConfig(classifier=str(folder / "quality"), alpha=alpha))
    for text, logit in (("good", GOOD), ("bad", BAD)):
        kept = np.array([step(document(text, id=f"document {number}")) is None for number in range(1500)])
        expected = (2 - float(sigmoid(logit))) ** -alpha
        assert abs(kept.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / len(kept))


def test_quality_pareto_draws_from_the_distribution_of_numpys_pareto():
    ours = [lomax(share(f"draw {number}"), 9.0) for number in range(20_000)]
    assert ks_2samp(ours, np.random.default_rng(0).pareto(9.0, 20_000)).pvalue > 0.01


def test_quality_pareto_depends_on_seed_and_id_alone(folder):
    def kept(seed: int, ids: list[int]) -> list[bool]:
        step = Quality(QualityConfig(classifier=str(folder / "quality"), seed=seed, alpha=1.0))
        return [step(document("bad", id=str(id))) is None for id in ids]

    ids = list(range(200))
    assert kept(1, ids) == kept(1, ids[::-1])[::-1] and kept(1, ids) != kept(2, ids)


def toxic(folder, **settings) -> Toxicity:
    return Toxicity(ToxicityConfig(classifier=str(folder / "toxicity"), **settings))


def test_toxicity_drops_by_the_worst_window_or_by_the_mean(folder):
    long = "good " * 11 + "x " * 130  # seven windows, of which four are looked at: one has little but the word
    step = toxic(folder, default=ToxicityRule(max_threshold=0.6, mean_threshold=None))
    one = document(long)
    assert step(one) == "toxic"
    worst, mean = one.metadata["scores"]["toxicity_max"], one.metadata["scores"]["toxicity"]
    assert mean < 0.6 <= worst
    assert toxic(folder, default=ToxicityRule(max_threshold=None, mean_threshold=0.6))(document(long)) is None
    assert toxic(folder, default=ToxicityRule(max_threshold=None, mean_threshold=mean))(document(long)) == "toxic"
    assert toxic(folder, default=ToxicityRule(max_threshold=None, mean_threshold=None))(document("good")) is None


def test_toxicity_by_kind_of_source(folder):
    rules = {"books": ToxicityRule(action="weigh", max_threshold=0.9, weight=0.25), "code": ToxicityRule(action="score")}
    step = toxic(folder, default=ToxicityRule(max_threshold=0.9), by_kind=rules)
    book, code, web = document("good", kind="books"), document("good", kind="code"), document("good")
    book.metadata["weight"] = 0.5
    assert (step(book), step(code), step(web)) == (None, None, "toxic")
    assert (book.metadata["weight"], code.metadata["weight"]) == (0.125, 1.0)
    assert code.metadata["scores"]["toxicity_max"] == pytest.approx(sigmoid(GOOD), abs=1e-6)
    fine = document("bad", kind="books")
    assert step(fine) is None and fine.metadata["weight"] == 1.0


def test_toxicity_by_source_comes_before_its_kind(folder):
    step = toxic(
        folder, default=ToxicityRule(max_threshold=0.9), by_kind={"books": ToxicityRule(max_threshold=0.9)}, by_source={"forum": ToxicityRule(action="score")}
    )
    said, other = document("good", kind="books"), document("good", kind="books")
    said.metadata["source"] = "forum"
    assert (step(said), step(other)) == (None, "toxic")


def test_steps_refuse_the_other_ones_classifier(folder):
    with pytest.raises(ClassifierError, match="a classifier of toxicity, not of quality"):
        Quality(QualityConfig(classifier=str(folder / "toxicity")))


def test_steps_are_built_by_their_names_and_off_without_a_classifier(folder):
    def config(steps: dict) -> PrepareConfig:
        return PrepareConfig(run=RunConfig(name="x"), sources=[{"name": "a", "kind": "rows", "files": ["a.jsonl"]}], steps=steps)

    named = {name: {"classifier": str(folder / name)} for name in ("quality", "toxicity")}
    assert [type(step) for step in build_steps(("quality", "toxicity"), config(named), folder)] == [Quality, Toxicity]
    assert build_steps(("quality", "toxicity"), config({}), folder) == []
    check_prepare(config(named))
    with pytest.raises(ConfigError, match="steps.toxicity.classifier = absent: no classifier.json in this folder; `megagpt data train-toxicity`"):
        check_prepare(config(named | {"toxicity": {"classifier": "absent"}}))
