"""megagpt data train-quality and train-toxicity on made-up text: what is written, the gate, and settings that make no sense."""

import json
import random
from pathlib import Path

import pytest
import yaml

from megagpt.cli.main import main
from megagpt.config.load import load_config
from megagpt.config.prepare import TrainQualityConfig, TrainToxicityConfig
from megagpt.prepare.classifier import load_classifier

CONFIGS = Path(__file__).parents[3] / "configs/data"
GOOD = "the history of a river and its towns is told by those who lived near it".split()
BAD = "click here login cart menu free offer next page share like buy now".split()
RUDE, KIND = "you are such a moron idiot".split(), "have a lovely day my friend".split()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = random.Random(1)

    def lines(vocabulary: list[str], number: int, length: int) -> list[str]:
        return [" ".join(words.choices(vocabulary + GOOD[:4], k=length)) for _ in range(number)]

    Path("good.txt").write_text("\n".join(lines(GOOD, 30, 120)))
    Path("better.txt").write_text("\n".join(lines(GOOD, 30, 150)))
    Path("bad.txt").write_text("\n".join([*lines(BAD, 40, 120), *lines(GOOD, 1, 120), "<b>bold</b> " * 40]))
    rows = [{"text": text, "label": "neither"} for text in [*lines(KIND, 80, 9), "finna have a black cat", "<script>x</script> women are here"]]
    rows += [{"text": text, "label": label} for label in ("hate", "offensive") for text in lines(RUDE, 50, 9)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sources = {"reference": [{"name": name, "files": [f"{name}.txt"], "document": "line"} for name in ("good", "better")],
               "raw": [{"name": "bad", "files": ["bad.txt"], "document": "line"}]}  # fmt: skip
    small = {"run": {"name": "x"}, "ngrams": {"hash_bits": 12}}
    Path("quality.yaml").write_text(yaml.safe_dump(small | sources))
    Path("toxicity.yaml").write_text(yaml.safe_dump(small | {"files": ["rows.jsonl"]}))
    return tmp_path


@pytest.mark.parametrize("purpose", ["quality", "toxicity"])
def test_train_writes_classifier_report_and_gate(folder, capsys, purpose):
    assert main(["data", f"train-{purpose}", "--config", f"{purpose}.yaml"]) == 0
    stage = folder / "runs/x" / purpose
    assert {path.name for path in stage.iterdir()} == {
        "classifier.json", "classifier.safetensors", "report.json", "report.html", "plots", "config.yaml", "config.original.yaml",
    }  # fmt: skip
    pictures = {"roc.png", "scores.png", "calibration.png"} | ({"slices.png", "sentences.png"} if purpose == "toxicity" else set())
    assert {path.name for path in (stage / "plots").iterdir()} == pictures
    report = json.loads((stage / "report.json").read_text())
    auc = report["held_out"]["roc_auc"]
    assert 0.9 < auc <= 1
    gates = json.loads((folder / "runs/x/gates.json").read_text())
    assert [(gate["stage"], gate["name"], gate["value"], gate["verdict"]) for gate in gates] == [(purpose, "held_out_roc_auc", auc, "passed")]
    assert json.loads((folder / "runs/x/manifest.json").read_text())[purpose]["output"] == str(Path("runs/x") / purpose)
    assert load_classifier(stage, purpose).facts["held_out_roc_auc"] == auc
    printed = capsys.readouterr().out
    assert f"ROC-AUC {auc:.4f}" in printed and f"runs/x/{purpose}/report.html" in printed
    before = {name: (stage / name).read_bytes() for name in ("classifier.json", "classifier.safetensors", "report.json", "report.html")}
    assert main(["data", f"train-{purpose}", "--config", f"{purpose}.yaml"]) == 0
    assert {name: (stage / name).read_bytes() for name in before} == before, "the same files give the same bytes"


def test_train_quality_shows_errors_and_sources_never_seen(folder):
    main(["data", "train-quality", "--config", "quality.yaml", "--set", "folds=2", "--set", "min_auc=null"])
    report = json.loads((folder / "runs/x/quality/report.json").read_text())
    assert report["sources"]["good"]["unseen_roc_auc"] > 0.9 and report["sources"]["bad"]["unseen_roc_auc"] is None
    assert report["sources"]["good"]["held_out"] + report["sources"]["better"]["held_out"] == report["held_out"]["texts"][1]
    page = (folder / "runs/x/quality/report.html").read_text()
    for failures in report["failures"]:
        for one in failures:
            assert one["source"] in page
    assert "<b>bold" not in page


def test_train_toxicity_compares_labels_as_they_are_with_the_mitigation(folder):
    main(["data", "train-toxicity", "--config", "toxicity.yaml"])
    report = json.loads((folder / "runs/x/toxicity/report.json").read_text())
    assert list(report["variants"]) == ["labels as they are", "mitigated"] and report["shipped"] == "mitigated"
    assert report["held_out"] == report["variants"]["mitigated"]["held_out"]
    assert report["variants"]["mitigated"]["slices"]["black"]["false_positives"]["texts"] == 1
    assert "black" in load_classifier(folder / "runs/x/toxicity", "toxicity").ngrams.ignored
    assert "<script>x" not in (folder / "runs/x/toxicity/report.html").read_text()
    main(["data", "train-toxicity", "--config", "toxicity.yaml", "--set", "fairness=null"])
    assert list(json.loads((folder / "runs/x/toxicity/report.json").read_text())["variants"]) == ["labels as they are"]
    assert load_classifier(folder / "runs/x/toxicity", "toxicity").ngrams.ignored == ()


def test_train_with_a_word_list_that_no_classifier_needs_later(folder):
    Path("list.txt").write_text("moron\nidiot\n")
    main(["data", "train-toxicity", "--config", "toxicity.yaml", "--set", "word_lists=[{name: mine, path: list.txt}]"])
    Path("list.txt").unlink()
    classifier = load_classifier(folder / "runs/x/toxicity", "toxicity")
    assert list(classifier.ngrams.lists) == ["mine"] and classifier.weights[-2] > 0
    assert "moron" not in (folder / "runs/x/toxicity/classifier.json").read_text()


def test_train_says_when_the_gate_fails(folder, capsys):
    words = random.Random(2)
    lines = [" ".join(words.choices(GOOD, k=100)) for _ in range(60)]
    Path("good.txt").write_text("\n".join(lines[:20]))
    Path("better.txt").write_text("\n".join(lines[20:40]))
    Path("bad.txt").write_text("\n".join(lines[40:]))
    assert main(["data", "train-quality", "--config", "quality.yaml", "--set", "min_auc=0.99"]) == 1
    assert "is below min_auc 0.99" in capsys.readouterr().out
    assert json.loads((folder / "runs/x/gates.json").read_text())[0]["verdict"] == "failed"


@pytest.mark.parametrize(
    ("purpose", "settings", "message"),
    [
        ("quality", ["ngrams.character_sizes=[]", "ngrams.max_words=0"], "a text has no features; max_words 2 would do"),
        ("quality", ["ngrams.character_sizes=[4,3]"], "must be different numbers from 1 to 8 in ascending order"),
        ("quality", ["raw=[{name: good, files: [bad.txt]}]"], "'good' is named twice"),
        ("quality", ["raw=[{name: bad, files: [absent.txt]}]"], "absent.txt: no such file"),
        ("toxicity", ["toxic=[hate, neither]"], "'neither' is named twice"),
        ("toxicity", ["word_lists=[{name: a, path: absent}]"], "absent: no such file"),
        ("toxicity", ["word_lists=[{name: a, path: x}, {name: a, path: y}]"], "'a' is named twice"),
    ],
)  # fmt: skip
def test_train_refuses_settings_that_make_no_sense(folder, capsys, purpose, settings, message):
    overrides = [word for setting in settings for word in ("--set", setting)]
    assert main(["data", f"train-{purpose}", "--config", f"{purpose}.yaml", *overrides]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (folder / "runs/x" / purpose / "classifier.json").exists()


def test_shipped_configurations_of_classifiers_are_valid():
    assert load_config(TrainQualityConfig, CONFIGS / "train_quality.yaml").windows.characters == 2000
    toxicity = load_config(TrainToxicityConfig, CONFIGS / "train_toxicity.yaml")
    assert toxicity.fairness == TrainToxicityConfig(run=toxicity.run, files=["x"]).fairness
