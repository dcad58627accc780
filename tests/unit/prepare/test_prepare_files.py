import pytest

from megagpt.config.prepare import SourceConfig
from megagpt.data.errors import DataError
from megagpt.prepare.readers.files import find_files


@pytest.fixture
def corpus(tmp_path):
    for name in ("b.txt", "a.txt", "deep/er/c.txt", "deep/d.md", ".hidden", ".git/config", "deep/.cache/e.txt"):
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "outside.txt").write_text("outside")
    return tmp_path / "corpus"


def found(root, *entries):
    return [str(path.relative_to(root)) for path in find_files(SourceConfig(name="s", kind="books", files=[str(root / entry) for entry in entries]))]


ALL = ["a.txt", "b.txt", "deep/d.md", "deep/er/c.txt"]


def test_prepare_files_of_a_folder_are_sorted_and_not_hidden(corpus):
    assert found(corpus, "") == ALL


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.txt", ["a.txt", "b.txt"]),
        ("**/*.txt", ["a.txt", "b.txt", "deep/er/c.txt"]),
        ("deep/**", ["deep/d.md", "deep/er/c.txt"]),
        ("*/*/[a-c].txt", ["deep/er/c.txt"]),
    ],
)
def test_prepare_files_of_a_pattern(corpus, pattern, names):
    assert found(corpus, pattern) == names


def test_prepare_files_named_twice_are_one(corpus):
    (corpus / "link.txt").symlink_to(corpus / "b.txt")
    assert found(corpus, "b.txt", "", "*.txt", "link.txt", "deep/../b.txt") == ALL


def test_prepare_files_links_in_a_folder_are_not_followed(corpus):
    (corpus / "round").symlink_to(corpus)
    (corpus / "deep/round").symlink_to(corpus / "deep")
    (corpus / "self").symlink_to(corpus / "self")
    (corpus / "nothing").symlink_to(corpus / "missing")
    (corpus / "out.txt").symlink_to(corpus.parent / "outside.txt")
    (corpus / "up").symlink_to(corpus.parent)
    assert found(corpus, "") == found(corpus, "**/*") == ALL
    assert found(corpus, "out.txt") == ["out.txt"]  # named itself


def test_prepare_files_special_files_are_left_out(corpus):
    import os

    os.mkfifo(corpus / "pipe")  # opening it would wait for ever
    assert found(corpus, "") == ALL
    with pytest.raises(DataError, match="neither a file nor a folder"):
        found(corpus, "pipe")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("a.tx", "source s: no such file or folder; did you mean a.txt?"),
        ("dep/c.txt", "there is no folder"),
        ("*.warc", "a pattern that matches no file"),
        ("missing/**/*.txt", "a pattern that matches no file"),
        ("empty", "a folder without files"),
    ],
)
def test_prepare_files_entry_without_files_is_refused_in_one_line(corpus, entry, message):
    (corpus / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        found(corpus, "", entry)
    assert message in str(caught.value) and entry in str(caught.value) and "\n" not in str(caught.value)
