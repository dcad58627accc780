import gzip
import io
import zipfile

import pytest

from megagpt.prepare.readers import epub
from tests.helpers.readers import only_document, only_problem, read_bytes

GUTENBERG = """The Project Gutenberg EBook of A Little Book, by A. Writer\r
\r
Title: A Little Book\r
Author: A. Writer\r
Release Date: May 1, 1999 [eBook #1234]\r
Language: English\r
\r
*** START OF THE PROJECT GUTENBERG EBOOK A LITTLE BOOK ***\r
\r
CHAPTER I\r
\r
It was a day.\r
{more}\r
*** END OF THE PROJECT GUTENBERG EBOOK A LITTLE BOOK ***\r
\r
START: FULL LICENSE of many pages\r
"""
JAPANESE = (
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗いじめじめした所でニャーニャー泣いていた事だけは記憶している。" * 5
)
RUSSIAN = "Все люди рождаются свободными и равными в своём достоинстве и правах. Они наделены разумом и совестью. " * 4
POLISH = "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw. Powinni postępować wspólnie, łagodnie i życzliwie. " * 4
CZECH = "Všichni lidé rodí se svobodní a sobě rovní co do důstojnosti a práv. Příliš žluťoučký kůň úpěl ďábelské ódy. " * 4
GERMAN = "Die Größe des Flusses überrascht: Bäume säumen die Ufer, und das Café „am Wehr“ ist geöffnet. " * 4
CHINESE = "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。" * 5
KOREAN = "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 인간은 이성과 양심을 부여받았다. " * 5
FRENCH = "Où êtes-vous allé cet été ? À la forêt, près du château où naquit la reine. Ça, c'était déjà très loin d'ici. " * 5


def test_prepare_books_frame_of_project_gutenberg_is_used_and_removed(tmp_path):
    document = only_document(read_bytes(tmp_path, GUTENBERG.format(more="So it went.").encode(), "books", "little.txt"))
    assert document.text == "CHAPTER I\n\nIt was a day.\nSo it went."
    assert (document.id, document.url, document.date) == ("corpus/little.txt", "https://www.gutenberg.org/ebooks/1234", "May 1, 1999")
    assert document.licence == "Public domain in the USA"
    assert document.meta == {"title": "A Little Book", "author": "A. Writer", "language": "English"}


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        *((RUSSIAN, name) for name in ("cp1251", "koi8_r")),
        *((POLISH, name) for name in ("cp1250", "iso8859_2")),
        (CZECH, "cp1250"),
        (GERMAN, "cp1252"),
        (CHINESE, "gb18030"),
        (KOREAN, "cp949"),
        (JAPANESE, "utf-8"),
        (JAPANESE, "shift_jis"),
        (JAPANESE, "euc_jp"),
        (JAPANESE, "utf-16"),
        (FRENCH, "latin-1"),
        (FRENCH, "utf-8-sig"),
        (FRENCH, "utf-16-be"),
        (FRENCH, "utf-32"),
    ],
)
def test_prepare_books_encodings(tmp_path, text, encoding):
    content = text.encode(encoding)
    if encoding == "utf-16-be":
        content = b"\xfe\xff" + content
    assert only_document(read_bytes(tmp_path, content, "books", "a.txt", licence="CC0-1.0")).text == text
    assert only_document(read_bytes(tmp_path, gzip.compress(content), "books", "a.txt.gz")).text == text


def test_prepare_books_marks_of_aozora_bunko_are_removed(tmp_path):
    rule = "-" * 40
    text = f"題名\n著者\n\n{rule}\n【テキスト中に現れる記号について】\n\n《》：ルビ\n{rule}\n\n吾輩《わがはい》は｜猫《ねこ》である［＃改行］。\n\n底本：「全集」\n入力：某\n"
    assert only_document(read_bytes(tmp_path, text.encode("shift_jis"), "books", "a.txt")).text.split() == ["題名", "著者", "吾輩は猫である。"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b" \n\n", "no text"),
        ("a.txt", b"", "the file is empty"),
        ("a.txt", bytes(range(256)) * 40, "binary, not text"),
        ("a.txt", b"\xff\xfe" + bytes([0, 0xD8]) * 50, "is not UTF-16"),
        ("a.txt.gz", gzip.compress(FRENCH.encode())[:-12], "truncated gzip file"),
        ("a.txt", GUTENBERG[: GUTENBERG.index("CHAPTER")].encode(), "nothing between the header and the footer"),
        ("a.epub", b"no archive", "not an EPUB file"),
        ("a.epub", b"PK\x03\x04 no archive", "damaged zip archive"),
    ],
)
def test_prepare_books_files_that_give_nothing(tmp_path, name, content, reason):
    assert reason in only_problem(read_bytes(tmp_path, content, "books", name))


CONTAINER = """<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container">
<rootfiles><rootfile full-path="OEBPS/book.opf"/></rootfiles></container>"""
PACKAGE = """<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata>
<dc:title>The Book</dc:title><dc:creator>A. Writer</dc:creator><dc:language>en</dc:language><dc:date>2001-02-03</dc:date>
<dc:rights>https://creativecommons.org/licenses/by/4.0/</dc:rights></metadata>
<manifest><item id="n" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>
<item id="c2" href="text/two.xhtml" media-type="application/xhtml+xml"/>
<item id="c1" href="text/one%20.xhtml" media-type="application/xhtml+xml"/><item id="css" href="a.css" media-type="text/css"/></manifest>
<spine><itemref idref="n"/><itemref idref="c1"/><itemref idref="c2"/><itemref idref="css"/><itemref idref="missing"/></spine></package>"""
CHAPTER = """<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title>x</title></head>
<body><h1>{0}</h1><p>Text of <i>{0}</i>.</p></body></html>"""
PARTS = {
    "mimetype": "application/epub+zip",
    "META-INF/container.xml": CONTAINER,
    "OEBPS/book.opf": PACKAGE,
    "OEBPS/nav.xhtml": CHAPTER.format("Contents"),
    "OEBPS/text/one .xhtml": CHAPTER.format("One"),
    "OEBPS/text/two.xhtml": CHAPTER.format("Two"),
}


def archive(parts, change=None) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in parts.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if change:
                change(info)
            file.writestr(info, content)
    return out.getvalue()


def test_prepare_epub_chapters_in_the_order_of_the_spine(tmp_path):
    document = only_document(read_bytes(tmp_path, archive(PARTS), "books", "a.epub"))
    assert document.text == "One\n\nText of One.\n\nTwo\n\nText of Two."
    assert (document.id, document.licence, document.date) == ("corpus/a.epub", "CC-BY-4.0", "2001-02-03")
    assert document.meta == {"title": "The Book", "author": "A. Writer", "language": "en"}


ENCRYPTION = """<encryption xmlns="urn:oasis:names:tc:opendocument:xmlns:container">
<EncryptedData xmlns="http://www.w3.org/2001/04/xmlenc#"><EncryptionMethod Algorithm="{}"/></EncryptedData></encryption>"""


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"../escape.xhtml": "x"}, "unsafe archive: a part with the name '../escape.xhtml'"),
        ({"OEBPS/../../escape": "x"}, "unsafe archive"),
        ({"/etc/passwd": "x"}, "unsafe archive"),
        ({"C:/x": "x"}, "unsafe archive"),
        ({"..\\escape": "x"}, "unsafe archive"),
        ({"OEBPS/bomb.xhtml": "0" * 20_000_000}, "unpacks from"),
        ({"META-INF/encryption.xml": ENCRYPTION.format("http://www.w3.org/2001/04/xmlenc#aes256-cbc")}, "encrypted (DRM)"),
        ({"META-INF/container.xml": "<container/>"}, "names no package"),
        ({"META-INF/container.xml": "no xml"}, "is no XML"),
        ({"OEBPS/book.opf": "<package/>"}, "an EPUB without text"),
    ],
)
def test_prepare_epub_unsafe_and_broken_archives_are_refused(tmp_path, parts, reason):
    assert reason in only_problem(read_bytes(tmp_path, archive(PARTS | parts), "books", "a.epub"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.epub"] and not (tmp_path.parent / "escape.xhtml").exists()


def test_prepare_epub_links_are_refused_and_disguised_fonts_are_not(tmp_path):
    def link(info):
        info.external_attr = (0o120777 << 16) if info.filename.endswith("two.xhtml") else 0

    assert "is a link" in only_problem(read_bytes(tmp_path, archive(PARTS, link), "books", "a.epub"))
    fonts = {"META-INF/encryption.xml": ENCRYPTION.format("http://www.idpf.org/2008/embedding")}
    assert only_document(read_bytes(tmp_path, archive(PARTS | fonts), "books", "b.epub")).text.startswith("One")


def test_prepare_epub_external_entities_are_not_read(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("SECRET")
    evil = f'<!DOCTYPE package [<!ENTITY x SYSTEM "file://{secret}">]>' + PACKAGE.replace("The Book", "&x;")
    entities = "".join(f"<!ENTITY a{i} '{f'&a{i - 1};' * 10}'>" for i in range(1, 12))
    laughs = f"<!DOCTYPE package [<!ENTITY a0 'ha'>{entities}]>" + PACKAGE.replace("The Book", "&a11;")
    for package in (evil, laughs):
        documents, problems = read_bytes(tmp_path, archive(PARTS | {"OEBPS/book.opf": package}), "books", "a.epub")
        assert all("SECRET" not in str(item) and len(str(item)) < 5000 for item in (*documents, *problems))
    chapter = f'<!DOCTYPE html [<!ENTITY x SYSTEM "file://{secret}">]>' + CHAPTER.format("One &x;")
    document = only_document(read_bytes(tmp_path, archive(PARTS | {"OEBPS/text/one .xhtml": chapter}), "books", "a.epub"))
    assert "SECRET" not in document.text


def test_prepare_epub_broken_chapter_costs_the_chapter(tmp_path, monkeypatch):
    documents, problems = read_bytes(tmp_path, archive(PARTS | {"OEBPS/text/one .xhtml": bytes(range(32)) * 99}), "books", "a.epub")
    assert [document.text for document in documents] == ["Two\n\nText of Two."]
    assert [str(problem) for problem in problems] == ["a.epub, chapter 1 (OEBPS/text/one .xhtml): binary, not text"]
    content = bytearray(archive(PARTS))
    place = content.index(b"two.xhtml") + 20
    content[place : place + 40] = bytes(40)
    documents, problems = read_bytes(tmp_path, bytes(content), "books", "b.epub")
    assert documents[0].text == "One\n\nText of One." and "damaged part" in str(problems[0])
    monkeypatch.setattr(epub, "MAX_BOOK_BYTES", 1200)
    assert "more than 1200 bytes in one book" in str(read_bytes(tmp_path, archive(PARTS), "books", "c.epub")[1][0])
