"""Decontamination against hand-made cases and against a search by tuples of words."""

import json
import random

import numpy as np
import pytest

from megagpt.config.load import ConfigError
from megagpt.config.prepare import DecontaminationConfig, EvaluationSetConfig, SourceConfig
from megagpt.data.errors import DataError
from megagpt.data.records import Document
from megagpt.prepare.document import to_flow
from megagpt.prepare.evaluation_sets import read_items
from megagpt.prepare.ngram_index import NgramIndex, gram_hashes, word_hashes
from megagpt.prepare.steps.decontamination import Decontamination, build_index, count_documents, cut, mark_common, touched
from megagpt.prepare.word_numbers import WORD

ITEM = "In which year did the old lighthouse keeper of the northern island finally see the comet return?"
"""17 words: 5 13-grams."""
SHORT = "Name every river that flows through the quiet valley."
"""9 words: searched for as a whole."""


def words(count: int, seed: int = 0) -> str:
    """Text that shares nothing with the items, of 6 characters a word and its space."""
    return " ".join(f"w{number:04d}" for number in random.Random(seed).choices(range(10000), k=count))


def step(work, lines=(ITEM, SHORT), **settings):
    (work / "items.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = DecontaminationConfig(**{"sets": [EvaluationSetConfig(name="quiz", files=[str(work / "items.txt")])]} | settings)
    build_index(config, work)
    return Decontamination(config, work)


def seen(step, text):
    document = to_flow(Document(id="1", text=text), SourceConfig(name="web", kind="web", files=["pages"]))
    reason = step(document)
    return reason, document.text, document.metadata["scores"]["decontamination"], document.metadata["notes"].get("decontamination")


def test_decontamination_cuts_the_match_and_its_surroundings(tmp_path):
    before, after = words(100, 1), words(100, 2)
    reason, text, score, notes = seen(step(tmp_path), f"{before} {ITEM} {after}")
    # 200 characters before the item: its space, 33 words (197), and two of the 34th, which goes whole. After its last word: "? " and 33 words.
    assert text == f"{before[: 6 * 66 - 1]}\n\n{after[6 * 33 :]}"
    assert (reason, score) == (None, 1.0)
    assert notes == {"items": {"quiz": [0]}, "cut": len(before) + len(ITEM) + len(after) + 2 - len(text)}


def test_decontamination_sees_neither_case_nor_punctuation_nor_the_kind_of_apostrophe(tmp_path):
    find = step(tmp_path, ["Don't the keeper's sons -- all nine of them -- sail home on Sundays, too?"])
    assert seen(find, "dont, THE keeper’s sons all nine of them: sail home on sundays too")[2] == 1.0
    assert seen(find, "dont, THE keeper’s sons all ten of them: sail home on sundays too")[2] == 0.0


def test_decontamination_drops_where_nothing_long_enough_is_left(tmp_path):
    find = step(tmp_path)
    assert seen(find, f"{words(30)} {ITEM} {words(30)}")[0] == "contaminated"
    assert seen(find, f"{words(60)} {ITEM} {words(60)}")[0] == "contaminated"  # 160 characters on each side
    assert seen(find, f"{words(100)} {ITEM} {words(30)}")[0] is None


def test_decontamination_drops_what_falls_into_too_many_pieces(tmp_path):
    find = step(tmp_path, max_pieces=3)
    parts = [words(150, seed) for seed in range(4)]
    assert seen(find, f" {ITEM} ".join(parts[:3]))[0] is None
    assert seen(find, f" {ITEM} ".join(parts))[0] == "contaminated"


def test_decontamination_drop_leaves_the_text(tmp_path):
    text = f"{words(200)} {ITEM}"
    assert seen(step(tmp_path, action="drop"), text) == ("contaminated", text, 1.0, {"items": {"quiz": [0]}})


def test_decontamination_share_is_of_the_item(tmp_path):
    part = " ".join(ITEM.split()[:14])  # 2 of its 5 n-grams
    text = f"{words(100, 1)} {part} {words(100, 2)}"
    assert seen(step(tmp_path, min_share=0.4), text)[2:] == (0.4, {"items": {"quiz": [0]}, "cut": len(part) + 2 * 6 * 34})
    assert seen(step(tmp_path, min_share=0.41), text) == (None, text, 0.4, None)


def test_decontamination_short_items_are_found_as_a_whole_only(tmp_path):
    find = step(tmp_path, [SHORT, "Too few words to be found."])
    assert seen(find, SHORT.lower())[2] == 1.0
    assert seen(find, " ".join(SHORT.split()[:8]))[2] == 0.0
    assert seen(find, "Too few words to be found.")[2] == 0.0
    assert NgramIndex.load(tmp_path / "evaluation_index").facts["sets"] == [{"name": "quiz", "items": 2, "too_short": 1, "grams": 1}]


def test_decontamination_counts_every_ideograph_as_a_word(tmp_path):
    question = "北方岛屿的老灯塔看守人哪一年看到彗星"
    assert len(WORD.findall(question)) == 18
    assert seen(step(tmp_path, [question]), f"他问：{question}？")[2] == 1.0


def reference(items: list[str], text: str, n: int, min_words: int) -> dict[int, float]:
    """Item -> share of its n-grams in the text, by sets of tuples."""
    def grams(words, length):
        return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}

    shares = {}
    for number, item in enumerate(items):
        length = min(n, len(item.split()))
        if length >= min_words:
            mine = grams(item.split(), length)
            if found := mine & grams(text.split(), length):
                shares[number] = len(found) / len(mine)
    return shares


@pytest.mark.parametrize("seed", range(5))
def test_decontamination_agrees_with_brute_force(tmp_path, seed):
    """Few different words, so that n-grams repeat in items, between items, and at places that overlap."""
    random_ = random.Random(seed)
    items = [" ".join(random_.choices("abc", k=random_.randint(1, 9))) for _ in range(60)]
    find = step(tmp_path, items, n=5, min_words=3)
    index = NgramIndex.load(tmp_path / "evaluation_index")
    for length in (0, 1, 2, 3, 7, 40):
        text = " ".join(random_.choices("abcd", k=length))
        found, shares = index.shares(index.find(word_hashes()(text)).grams)
        expected = reference(items, text, 5, 3)
        assert dict(zip(found.tolist(), shares.tolist(), strict=True)) == pytest.approx(expected)
        assert seen(find, text)[2] == pytest.approx(max(expected.values(), default=0), abs=1e-4)


def test_decontamination_cuts_all_that_is_in_any_window():
    """Characters that survive are those of no match and no window, by a loop over characters."""
    random_ = random.Random(3)
    text = " ".join("x" * random_.randint(1, 5) for _ in range(300))
    spans = [word.span() for word in WORD.finditer(text)]
    positions = np.array(random_.sample(range(295), 6))
    gone = [False] * len(text)
    for position in positions.tolist():
        low, high = spans[position][0] - 11, spans[position + 3][1] + 11
        for first, last in spans:
            low, high = (min(low, first) if first < low < last else low), (max(high, last) if first < high < last else high)
        for place in range(max(low, 0), min(high, len(text))):
            gone[place] = True
    expected = "".join("\n" if is_gone else character for character, is_gone in zip(text, gone, strict=True))
    assert cut(text, positions, np.full(6, 4), 11) == [piece.strip() for piece in expected.split("\n") if piece.strip()]


def test_decontamination_hash_of_every_length_is_the_polynomial():
    hashes = [word_hashes()(word).item() for word in "one two three four".split()]
    base, start = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03
    for length, found in gram_hashes(np.array(hashes, np.uint64), [1, 3, 4, 5]):
        expected = []
        for place in range(5 - length):
            value = start
            for number in hashes[place : place + length]:
                value = (value * base + number) % 2**64
            expected.append(value)
        assert found.tolist() == expected
    assert length == 4


def test_decontamination_ignores_what_many_documents_share(tmp_path):
    phrase = "this is the thirteen word phrase that every single notice has in it"
    find = step(tmp_path, [phrase, ITEM], max_documents=2)
    config = find._config
    documents = [f"{words(9, seed)} {phrase}" for seed in range(3)] + [f"{ITEM} {ITEM}"]
    index = NgramIndex.load(tmp_path / "evaluation_index")
    counts = [count_documents(index, part) for part in (documents[:2], documents[2:])]
    assert sorted(sum(counts).tolist()) == [1] * 5 + [3]
    assert mark_common(config, tmp_path, counts) == 1
    find = Decontamination(config, tmp_path)
    assert seen(find, documents[0])[2] == 0.0
    assert seen(find, documents[3])[2] == 1.0
    again = count_documents(NgramIndex.load(tmp_path / "evaluation_index"), documents)
    assert (again == sum(counts)).all()  # a phase that is done again counts what was marked before
    assert seen(step(tmp_path, [phrase, ITEM]), documents[0])[2] == 1.0  # without max_documents nothing is common


def test_decontamination_report_names_the_items_that_were_touched(tmp_path):
    find = step(tmp_path, [ITEM, SHORT, "Too short."])
    notes = [seen(find, text)[3] for text in (ITEM, f"{ITEM} {SHORT}", words(50))]
    file = str(tmp_path / "items.txt")
    assert touched(tmp_path, [note for note in notes if note]) == [{
        "set": "quiz", "items": 3, "too_short": 1, "touched": 2, "documents": 2,
        "most": [{"file": file, "line": 1, "documents": 2}, {"file": file, "line": 2, "documents": 1}],
    }]  # fmt: skip


def test_decontamination_items_are_numbered_within_their_set(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"q": f"{words(14, seed)}"}) + "\n" for seed in range(3)))
    (tmp_path / "b.jsonl").write_text(json.dumps({"q": words(14, 9)}) + "\n" + json.dumps({"q": ITEM}) + "\n")
    sets = [EvaluationSetConfig(name=name, files=[str(tmp_path / f"{name}.jsonl")], columns=["q"]) for name in "ab"]
    config = DecontaminationConfig(sets=sets)
    build_index(config, tmp_path)
    assert seen(Decontamination(config, tmp_path), f"{words(14, 2)}. {ITEM}")[3] == {"items": {"a": [2], "b": [1]}}


def test_decontamination_index_is_built_again_only_where_something_changed(tmp_path):
    step(tmp_path)
    files = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "evaluation_index").iterdir()}
    step(tmp_path)
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "evaluation_index").iterdir()} == files
    find = step(tmp_path, [words(20)])
    assert seen(find, ITEM)[2] == 0.0 and seen(find, words(20))[2] == 1.0
    assert not list(tmp_path.glob(".*"))


def test_decontamination_index_is_the_same_bytes_each_time(tmp_path):
    contents = []
    for name in ("one", "two"):
        (tmp_path / "items.txt").write_text(f"{ITEM}\n{SHORT}\n")
        config = DecontaminationConfig(sets=[EvaluationSetConfig(name="quiz", files=[str(tmp_path / "items.txt")])])
        folder = build_index(config, tmp_path / name)
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1] and "grams.npy" in contents[0]


def test_decontamination_without_a_single_n_gram_finds_nothing(tmp_path):
    assert seen(step(tmp_path, ["short"]), ITEM) == (None, ITEM, 0.0, None)


@pytest.mark.parametrize(
    "name, content, columns, texts",
    [
        ("rows.jsonl", '{"turns": ["a", ["b"]], "id": 3, "more": {"x": "c"}}', ["turns", "more"], ("a", "b", "c")),
        ("rows.jsonl", '{"text": "a"}', [], ("a",)),
        ("rows.jsonl", '{"id": "7", "prompt": [{"role": "user", "content": "a"}]}', [], ("a",)),
        ("rows.jsonl", '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}', [], ("a", "b")),
        ("rows.jsonl", '{"prompt": "a", "answers": ["b", "c"], "ranks": [0, 1]}', [], ("a", "b", "c")),
        ("rows.jsonl", '{"prompt": "a", "chosen": "b", "rejected": "c"}', [], ("a", "b", "c")),
        ("rows.csv", 'x,y\n1,"a, ""b"""\n', ["y"], ('a, "b"',)),
        ("rows.tsv", "x\ty\n1\ta\n", ["y"], ("a",)),
        ("lines.txt", "1 a\n", [], ("a",)),
        ("lines.txt", "e\u0301a\n", [], ("\u00e9a",)),
    ],
)
def test_evaluation_set_files_give_the_texts_of_items(tmp_path, name, content, columns, texts):
    (tmp_path / name).write_text(content, encoding="utf-8")
    config = EvaluationSetConfig(name="set", files=[str(tmp_path / name)], columns=columns, ignore=r"^\d+ ")
    [item] = read_items(config, tmp_path / name)
    assert item.texts == texts and (item.set, item.path, item.line) == ("set", str(tmp_path / name), 1)


@pytest.mark.parametrize(
    "name, content, columns, message",
    [
        ("rows.jsonl", '{"question": "a"}', ["questions"], "rows.jsonl:1: no column 'questions'; did you mean question?"),
        ("rows.jsonl", '{"question": "a"}', [], "name the columns that are its text"),
        ("rows.jsonl", '"a"\n[1]', ["question"], "rows.jsonl:1: columns are named, and the row is a str"),
        ("rows.csv", "x,y\n1,2\n", [], "columns of the evaluation set set must name what is its text, of x, y"),
        ("rows.jsonl", "", [], "the file is empty"),
    ],
)
def test_evaluation_set_files_that_cannot_be_read_stop_the_work(tmp_path, name, content, columns, message):
    (tmp_path / name).write_text(content)
    config = EvaluationSetConfig(name="set", files=[str(tmp_path / name)], columns=columns)
    with pytest.raises(DataError) as error:
        build_index(DecontaminationConfig(sets=[config]), tmp_path)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "evaluation_index").exists() and not list(tmp_path.glob(".*"))


def test_decontamination_settings_that_contradict_each_other_are_refused(tmp_path):
    missing = EvaluationSetConfig(name="set", files=[str(tmp_path / "none*.jsonl")])
    with pytest.raises(DataError, match="no file of the evaluation set set"):
        build_index(DecontaminationConfig(sets=[missing]), tmp_path)
    with pytest.raises(ConfigError, match="two are called set"):
        build_index(DecontaminationConfig(sets=[missing, missing]), tmp_path)
    with pytest.raises(ConfigError, match="min_words = 8: must be at most n = 5"):
        build_index(DecontaminationConfig(sets=[missing], n=5), tmp_path)
    with pytest.raises(ConfigError, match=r"ignore = '\(' of set: missing \)"):
        build_index(DecontaminationConfig(sets=[EvaluationSetConfig(name="set", files=["x"], ignore="(")]), tmp_path)
