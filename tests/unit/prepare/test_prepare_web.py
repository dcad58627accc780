import gzip
import io
import zlib

import pytest
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from megagpt.prepare.readers import html, web
from tests.helpers.readers import only_document, only_problem, read, read_bytes

SENTENCE = "The river rises in the hills behind the town and runs for many miles through meadows before it meets the sea. "
PAGE = """<!DOCTYPE html><html><head><title>Rivers of {name}</title>{head}</head><body><nav><a href="/">Home</a> <a href="/x">Menu</a></nav>
<article><h1>Rivers</h1><p>1. {text}</p><p>2. {text}</p><ul><li>first item</li><li>second item</li></ul>
<table><tr><th>river</th><th>length</th></tr><tr><td>Test</td><td>64 km</td></tr></table><p>3. {text}</p></article>
<footer>Copyright, imprint, cookies</footer></body></html>"""


def page(name="Test", head="", text=SENTENCE * 3, encoding="utf-8") -> bytes:
    return PAGE.format(name=name, head=head, text=text).encode(encoding)


def response(
    url: str, body: bytes, kind="text/html; charset=utf-8", status="200 OK", headers=(), record="response", date="2024-01-02T03:04:05Z", packed=False
) -> bytes:
    """A WARC record; warcio's own writer makes it."""
    out = io.BytesIO()
    writer = WARCWriter(out, gzip=packed)
    http = StatusAndHeaders(status, [("Content-Type", kind), *headers], protocol="HTTP/1.1") if record in ("response", "revisit") else None
    known = {"warc_headers_dict": {"WARC-Date": date}, "warc_content_type": "" if http else kind}
    made = writer.create_warc_record(url, record, payload=io.BytesIO(body), http_headers=http, **known)
    writer.write_record(made)
    return out.getvalue()


def arc(*pages: bytes) -> bytes:
    head = b"1 0 Tester\nURL IP-address Archive-date Content-type Archive-length\n\n"
    records = [b"filedesc://t.arc 0.0.0.0 20140102030405 text/plain %d\n" % len(head) + head]
    for i, body in enumerate(pages):
        whole = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + body
        records.append(b"http://a.example/%d 1.2.3.4 20140102030405 text/html %d\n" % (i, len(whole)) + whole + b"\n")
    return b"\n".join(records)


def test_prepare_warc_page_keeps_text_tables_and_lists_without_the_frame(tmp_path):
    document = only_document(read_bytes(tmp_path, response("http://a.example/river", page()), "web", "a.warc", licence="stated"))
    assert (document.id, document.source, document.url, document.date) == (
        "corpus/a.warc#1",
        "corpus",
        "http://a.example/river",
        "2024-01-02T03:04:05Z",
    )
    assert (document.licence, document.meta) == ("stated", {"title": "Rivers of Test"})
    assert document.text.count(SENTENCE.strip()) == 9
    for kept in ("first item", "second item", "| river | length |", "| Test | 64 km |"):
        assert kept in document.text
    assert "Menu" not in document.text and "cookies" not in document.text


@pytest.mark.parametrize("packed", [False, True])
def test_prepare_warc_other_records_are_passed_over(tmp_path, packed):
    url = "http://a.example/"
    content = b"".join(
        [
            response(url, b"GET / HTTP/1.1\r\n\r\n", record="request", packed=packed),
            response(url, page(), status="404 Not Found", packed=packed),
            response(url, page(), status="302 Found", packed=packed),
            response(url, page(), status="206 Partial Content", packed=packed),
            response(url, b"\x89PNG" + bytes(100), kind="image/png", packed=packed),
            response(url, b"", record="revisit", packed=packed),
            response(url, page(), packed=packed),
            response("dns:a.example", b"20240102 1.2.3.4", kind="text/dns", record="resource", packed=packed),
            response(url + "text", b"Plain words.", kind="text/plain", packed=packed),
            response(url + "wet", "Schon extrahiert: für alle.".encode(), kind="text/plain", record="conversion", packed=packed),
            response(url + "saved", page(), kind="text/html", record="resource", packed=packed),
        ]
    )
    documents, problems = read_bytes(tmp_path, content, "web", "a.warc.gz" if packed else "a.warc")
    assert not problems
    assert [(document.id.split("#")[1], document.url[17:]) for document in documents] == [("7", ""), ("9", "text"), ("10", "wet"), ("11", "saved")]
    assert documents[1].text == "Plain words." and documents[2].text == "Schon extrahiert: für alle."


@pytest.mark.parametrize(
    ("kind", "head", "encoding"),
    [
        ("text/html; charset=utf-8", "", "utf-8"),
        ("text/html; charset=iso-8859-1", "", "utf-8"),  # a server that says what is wrong
        ("text/html; charset=windows-1252", "", "cp1252"),
        ("text/html", '<meta charset="windows-1252">', "cp1252"),
        ("text/html", '<meta http-equiv="Content-Type" content="text/html; charset=iso-8859-1">', "cp1252"),
        ("text/html", "", "utf-16"),
        ("text/html", "", "cp1252"),
        ("application/xhtml+xml", "", "utf-8"),
    ],
)
def test_prepare_warc_encodings(tmp_path, kind, head, encoding):
    text = "Die Größe des Flusses überrascht: Bäume säumen die Ufer, und das Café „am Wehr“ ist geöffnet. " * 4
    document = only_document(
        read_bytes(tmp_path, response("http://a.example/", page(head=head, text=text, encoding=encoding), kind=kind), "web", "a.warc")
    )
    assert document.text.count(text.strip()) == 3


def test_prepare_warc_transfer_and_content_encodings(tmp_path):
    packed, body = gzip.compress(page()), page()
    chunks = b"%x\r\n" % 50 + packed[:50] + b"\r\n%x\r\n" % len(packed[50:]) + packed[50:] + b"\r\n0\r\n\r\n"
    made = [
        response("http://a.example/1", packed, headers=[("Content-Encoding", "gzip")]),
        response("http://a.example/2", zlib.compress(body), headers=[("Content-Encoding", "deflate")]),
        response("http://a.example/3", chunks, headers=[("Content-Encoding", "gzip"), ("Transfer-Encoding", "chunked")]),
        response("http://a.example/4", body, headers=[("Content-Encoding", "gzip"), ("Transfer-Encoding", "chunked")]),  # stored unpacked
        response("http://a.example/5", packed[:-20], headers=[("Content-Encoding", "gzip")]),
        response("http://a.example/6", bytes(range(256)) * 9, headers=[("Content-Encoding", "br")]),
        response("http://a.example/7", gzip.compress(bytes(html.MAX_PAGE_BYTES + 1)), headers=[("Content-Encoding", "gzip")]),
    ]
    documents, problems = read_bytes(tmp_path, b"".join(made), "web", "a.warc")
    assert [document.url[-1] for document in documents] == list("1234") and len({document.text for document in documents}) == 1
    assert [str(problem) for problem in problems] == [
        "a.warc, record 5: packed content that is cut off",
        "a.warc, record 6: a page packed with br",
        "a.warc, record 7: a page of more than 8 MiB",
    ]


@pytest.mark.parametrize(
    ("head", "licence"),
    [
        ('<link rel="license" href="https://creativecommons.org/licenses/by-sa/4.0/">', "CC-BY-SA-4.0"),
        ('<meta name="DC.rights" content="http://creativecommons.org/publicdomain/zero/1.0/">', "CC0-1.0"),
        ('<link rel="stylesheet" href="https://creativecommons.org/licenses/by/4.0/">', ""),
        ('<link rel="license" href="/our/terms">', ""),
    ],
)
def test_prepare_warc_licence_that_the_page_names(tmp_path, head, licence):
    assert only_document(read_bytes(tmp_path, response("http://a.example/", page(head=head)), "web", "a.warc")).licence == licence


def test_prepare_warc_page_without_main_text_is_marked(tmp_path):
    document = only_document(read_bytes(tmp_path, response("http://a.example/", b"<html><body><script>x()</script></body></html>"), "web", "a.warc"))
    assert (document.text, document.meta) == ("", {"drop": "no_main_text"})


def test_prepare_warc_arc_files(tmp_path):
    for name, content in {
        "a.arc": arc(page("One"), page("Two")),
        "a.arc.gz": b"".join(map(gzip.compress, (arc(page("One")), arc(page("Two"))))),
    }.items():
        documents, _ = read_bytes(tmp_path, content, "web", name)
        assert [document.meta["title"] for document in documents] == ["Rivers of One", "Rivers of Two"]
        assert documents[0].date == "2014-01-02T03:04:05Z" and documents[0].url == "http://a.example/0"


GOOD = response("http://a.example/good", page("Good"))


def wrong_length(change: int) -> bytes:
    record = response("http://a.example/bad", page("Bad"))
    head, _, rest = record.partition(b"Content-Length: ")
    length, _, rest = rest.partition(b"\r\n")
    return head + b"Content-Length: %d\r\n" % (int(length) + change) + rest


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (b"garbage in between\r\n\r\n", "no record begins here 'garbage in between'"),
        (wrong_length(-7), "does not end where the record ends"),
        (wrong_length(+500), "does not end where the record ends"),
        (response("http://a.example/bad", page()).replace(b"Content-Length: ", b"Content-Length: x", 1), "the record's length is 'x"),
        (response("http://a.example/bad", b"<p>" * (html.MAX_TAGS + 1)), "more than 60000 tags"),
        (response("http://a.example/bad", b""), "a page of no bytes"),
        (b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: 20\r\n\r\nHTTP/1.1 200 OK\r\n\r\nx\r\n\r\n", "a record without its address"),
        (response("http://a.example/bad", b"a" * (html.MAX_PAGE_BYTES + 1)), "more than 8 MiB"),
        (response("http://a.example/bad", bytes(range(32)) * 100), "binary"),
    ],
)
def test_prepare_warc_goes_on_behind_damage(tmp_path, damage, reason):
    documents, problems = read_bytes(tmp_path, GOOD + damage + GOOD, "web", "a.warc")
    assert [document.url for document in documents] == ["http://a.example/good"] * 2
    assert len(problems) == 1 and reason in str(problems[0])


def test_prepare_warc_goes_on_where_warcio_fails(tmp_path, monkeypatch):
    read_headers = web.ArcWarcRecordLoader.load_http_headers

    def fail(self, kind, uri, stream, length):
        if uri.endswith("bad"):
            raise AttributeError("a header it was not written for")
        return read_headers(self, kind, uri, stream, length)

    monkeypatch.setattr(web.ArcWarcRecordLoader, "load_http_headers", fail)
    documents, problems = read_bytes(tmp_path, GOOD + response("http://a.example/bad", page()) + GOOD, "web", "a.warc")
    assert len(documents) == 2 and [problem.reason for problem in problems] == ["AttributeError: a header it was not written for"]


def test_prepare_warc_deeply_nested_page_costs_only_itself(tmp_path):
    deep = response("http://a.example/deep", b"<div>" * 90_000 + SENTENCE.encode() * 9)
    documents, problems = read_bytes(tmp_path, deep + GOOD, "web", "a.warc")
    assert documents[-1].meta["title"] == "Rivers of Good" and len(documents) + len(problems) == 2


def test_prepare_warc_cut_anywhere_gives_the_records_before(tmp_path):
    for end in (len(GOOD) + 20, len(GOOD) + 300, 2 * len(GOOD) - 10):
        documents, problems = read_bytes(tmp_path, (GOOD + GOOD)[:end], "web", "a.warc")
        assert len(documents) == 1 and len(problems) == 1, end
    packed = response("http://a.example/good", page("Good"), packed=True)
    documents, problems = read_bytes(tmp_path, (packed + packed)[:-20], "web", "a.warc.gz")
    assert len(documents) == 1 and "truncated gzip file" in str(problems[0])


def test_prepare_warc_damaged_gzip_member_costs_its_record(tmp_path):
    members = [response(f"http://a.example/{i}", page(str(i)), packed=True) for i in range(4)]
    members[1] = members[1][:120] + bytes(60) + members[1][180:]
    documents, problems = read_bytes(tmp_path, b"".join(members), "web", "a.warc.gz")
    assert [document.url[-1] for document in documents] == ["0", "2", "3"]
    assert len(problems) == 1 and "damaged gzip file" in str(problems[0])


def test_prepare_warc_one_gzip_member_for_all_records_is_told_and_read(tmp_path):
    documents, problems = read_bytes(tmp_path, gzip.compress(GOOD * 3), "web", "a.warc.gz")
    assert len(documents) == 3
    assert [str(problem) for problem in problems] == ["a.warc.gz: 3 records in 1 gzip members: a web archive has one for each; read as one stream"]


def test_prepare_warc_long_record_is_passed_over_in_pieces(tmp_path):
    import tracemalloc

    count = web.MAX_RECORD_BYTES + 1
    head = b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.example/film\r\nContent-Length: %d\r\n\r\n" % count
    path = tmp_path / "a.warc"
    with open(path, "wb") as file:
        file.write(head)
        file.seek(count, io.SEEK_CUR)
        file.write(b"\r\n\r\n" + GOOD)
    tracemalloc.start()
    documents, problems = read(path, "web")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(documents) == 1 and "a record of 32 MiB, more than 32 MiB" in str(problems[0])
    assert peak < 16 << 20


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"Just some words.\n", "neither WARC nor ARC: it begins with 'Just some words.'"),
        (gzip.compress(b"Just some words.\n"), "neither WARC nor ARC"),
        (b"WARC/1.0\r\n" + b"X-Long: a\r\n" * 200_000, "more than 1 MiB of headers"),
        (b"a" * 1_000_000, "neither WARC nor ARC"),
        (b"WARC/1.0\r\n\r\n", "the record's length is None"),
    ],
)
def test_prepare_warc_files_that_are_none(tmp_path, content, reason):
    assert reason in only_problem(read_bytes(tmp_path, content, "web", "a.warc"))
