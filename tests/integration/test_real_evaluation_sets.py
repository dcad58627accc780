"""Real evaluation sets: planted items are all found, documents that never saw them are left alone, and whom real texts and labels name."""

from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from megagpt.config.prepare import DecontaminationConfig, EvaluationSetConfig, RepresentationConfig, ReweightingConfig, SourceConfig
from megagpt.data.records import Document, read_documents
from megagpt.prepare.document import to_flow
from megagpt.prepare.evaluation_sets import find_files, read_items
from megagpt.prepare.identity_terms import TermFinder, read_terms
from megagpt.prepare.ngram_index import NgramIndex
from megagpt.prepare.representation import Representation, table
from megagpt.prepare.reweighting import Weigher, effect, weights
from megagpt.prepare.steps.decontamination import Decontamination, build_index, touched
from tests.helpers.tiny_run import ROOT

SHARED = ROOT.parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the real data sets in {SHARED}")


def evaluation(name: str, files: str, *columns: str, ignore: str | None = None) -> EvaluationSetConfig:
    return EvaluationSetConfig(name=name, files=[str(SHARED / files)], columns=list(columns), ignore=ignore)


SOURCE = SourceConfig(name="web", kind="web", files=["pages"])
SETS = [
    evaluation("crows_pairs", "bias_crows_pairs/*.csv", "sent_more", "sent_less"),
    evaluation("bbq", "bias_bbq/*.jsonl.gz", "context", "question"),
    evaluation("winogender", "bias_winogender/all_sentences.tsv", "sentence"),
    evaluation("winobias", "bias_winobias/*stereotyped*", ignore=r"^\d+ "),
    evaluation("xstest", "safety_xstest/xstest_prompts.csv", "prompt"),
    evaluation("harmbench", "safety_prompts/harmbench_prompts.txt"),
    evaluation("real_toxicity_prompts", "safety_prompts/realtoxicityprompts/*.txt"),
    evaluation("mt_bench", "fastchat/mt_bench_question.jsonl", "turns"),
    evaluation("vicuna", "fastchat/vicuna_bench_question.jsonl", "turns"),
    evaluation("self_instruct_user", "sft_self_instruct/EVAL_ONLY_user_oriented_instructions.jsonl", "instruction", "instances"),
]
TOO_SHORT = {"crows_pairs": 156, "xstest": 175, "harmbench": 8, "real_toxicity_prompts": 87, "self_instruct_user": 2}
"""Items without a text of eight words: they cannot be told from common phrases."""


def corpus() -> list[str]:
    web = [document.text for document in read_documents(SHARED / "pretrain_c4/c4_demo.jsonl.gz")]
    return web + (SHARED / "pretrain_news/lee_background.cor").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    work = tmp_path_factory.mktemp("work")
    build_index(DecontaminationConfig(sets=SETS), work)
    return work


def test_every_planted_item_is_found_and_cut_out(work):
    """Ten items in each web page or news text; what is left has none of their n-grams."""
    drop = Decontamination(DecontaminationConfig(sets=SETS, action="drop"), work)
    cut = Decontamination(DecontaminationConfig(sets=SETS, max_pieces=1000), work)
    facts = NgramIndex.load(work / "evaluation_index").facts["sets"]
    assert {row["name"]: row["too_short"] for row in facts if row["too_short"]} == TOO_SHORT
    documents, notes, missed = corpus(), [], Counter()
    items = [(evaluation, number, item) for evaluation in SETS for number, item in enumerate(_items(evaluation))]
    for place in range(0, len(items), 10):
        text = documents[place // 10 % len(documents)]
        middle = len(text) // 2
        planted = [item for _, _, item in items[place : place + 10]]
        text = text[:middle] + "\n" + "\n".join(part for item in planted for part in item.texts) + "\n" + text[middle:]
        document = to_flow(Document(id=str(place), text=text), SOURCE)
        drop(document)
        note = document.metadata["notes"].get("decontamination", {"items": {}})
        notes.append(note)
        missed.update(evaluation.name for evaluation, number, _ in items[place : place + 10] if number not in note["items"].get(evaluation.name, ()))
        if place % 200 == 0 and cut(document) is None:
            cut(document)
            assert document.metadata["scores"]["decontamination"] == 0.0
    assert missed == TOO_SHORT
    report = touched(work, notes)
    assert {row["set"]: row["items"] - row["touched"] for row in report if row["items"] > row["touched"]} == TOO_SHORT


def _items(evaluation: EvaluationSetConfig):
    return [item for path in find_files(evaluation) for item in read_items(evaluation, path)]


def test_documents_that_never_saw_the_sets_are_left_alone(work):
    step = Decontamination(DecontaminationConfig(sets=SETS), work)
    found = []
    for number, text in enumerate(corpus()):
        document = to_flow(Document(id=str(number), text=text), SOURCE)
        step(document)
        if document.metadata["scores"]["decontamination"]:
            found.append((number, document.metadata["notes"]))
    assert not found  # of 600; one could still be a phrase of everyone's


RECALL = {"race-color": 0.6, "nationality": 0.4, "gender": 0.8, "religion": 0.88, "age": 0.5, "disability": 0.5, "sexual-orientation": 0.8}
"""Of CrowS-Pairs, the pairs of which a sentence names a group of the pair's category; others hint at it (first names, `a Mexican`)."""
CATEGORY = {"race-color": "origin", "nationality": "origin", "sexual-orientation": "sexual_orientation"}


def test_terms_find_who_the_pairs_are_about():
    finder, found, all_ = TermFinder(read_terms(None)), Counter(), Counter()
    with open(SHARED / "bias_crows_pairs/crows_pairs_anonymized.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            kind = row["bias_type"]
            places = [place for name in ("sent_more", "sent_less") for place in finder.find(finder.numbers(row[name]))[:, 0].tolist()]
            found[kind] += CATEGORY.get(kind, kind) in {finder.terms[place].category for place in places}
            all_[kind] += 1
    for kind, bound in RECALL.items():
        assert found[kind] / all_[kind] >= bound, kind


def test_dropping_labelled_tweets_hits_some_groups_more():
    """Tweets that annotators call hateful or offensive are dropped: the documents that name some groups are kept far less often."""
    config = RepresentationConfig()
    before, after, dropped = (Representation(config) for _ in range(3))
    with gzip.open(SHARED / "toxicity_tweets/train.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for row in rows:
        is_kept = row["label"] == "neither"
        before.add("tweets", row["text"])
        (after if is_kept else dropped).add("tweets", row["text"])
    rows = table(before.counts(), after.counts(), config, {"toxicity": dropped.counts()})
    flagged = {row.group: row.kept.ratio for row in rows if not row.term and row.kept.is_flagged}
    assert flagged.keys() == {"women", "gay_and_lesbian"}
    assert flagged["women"] == pytest.approx(0.51, abs=0.02) and flagged["gay_and_lesbian"] == pytest.approx(0.38, abs=0.02)
    assert all(row.steps == {"toxicity": row.kept} for row in rows)
    women = next(row for row in rows if row.group == "women" and not row.term)
    assert women.sentiment[0] < -0.5 < 0 < women.sentiment[1]  # insults go, and with them the words near women


def test_weights_bring_real_text_to_a_target():
    """In web pages and news three mentions in four are of men; weights between 0.2 and 5 make them as many as those of women."""
    reweighting = ReweightingConfig(targets={"gender": {"women": 1.0, "men": 1.0}}, min_weight=0.2, max_weight=5.0)
    config = RepresentationConfig(reweighting=reweighting)
    texts = corpus()
    before, after = Representation(config), Representation(config)
    for text in texts:
        before.add("all", text)
    weigher = Weigher(config, weights(before.counts(), config))
    for text in texts:
        after.add("all", text, weigher.weight_of(text))
    men, women = effect(before.counts(), after.counts(), config)
    assert men["share"] > 0.7
    assert women["weighted"] == pytest.approx(0.5, abs=0.01)
