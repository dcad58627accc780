import gzip
import io
import re
import shutil
import subprocess
from collections import Counter

import pytest
from pypdf import PdfReader, PdfWriter

from megagpt.prepare.readers.pdf import to_flowing_text
from megagpt.prepare.readers.troff_text import split_arguments, to_plain
from tests.helpers.readers import only_document, only_problem, read_bytes

LATEX = r"""\documentclass[a4paper]{article} % a comment
\usepackage{graphicx}
\newcommand{\dropped}{not seen}
\title{On \emph{Rivers}}
\date{May 2020}
\begin{document}
\maketitle
\begin{abstract}We study rivers~\cite{a,b}.\end{abstract}
\section{Introduction}\label{sec:a}
% a whole line
Let $E = mc^2$ and 50\% of it\footnote{A note.} (see \ref{sec:a}). Na\"ive \'etude --- ``quoted''.
\begin{equation}
a_i = \sum_j b_{ij}
\end{equation}
\begin{figure}\includegraphics{x}\caption{Gone}\end{figure}
\subsection*{Lists}
\begin{itemize}
\item one
\item two
\end{itemize}
\begin{tabular}{ll}gone & gone\end{tabular}
\begin{thebibliography}{9}\bibitem{a} Gone.\end{thebibliography}
\end{document}
Gone.
"""


def test_prepare_latex_body_sections_and_mathematics(tmp_path):
    document = only_document(read_bytes(tmp_path, LATEX.encode(), "papers", "a.tex"))
    assert (document.id, document.date, document.meta) == ("corpus/a.tex", "May 2020", {"title": "On Rivers"})
    assert document.text.startswith("On Rivers\n\nWe study rivers.\n\nIntroduction\n\nLet $E = mc^2$ and 50% of it (A note.)")
    assert "Naïve étude — “quoted”." in document.text and "\\begin{equation}\na_i = \\sum_j b_{ij}\n\\end{equation}" in document.text
    assert document.text.endswith("Lists\n\n- one\n- two") and "one" not in document.text.replace("- one", "")
    for gone in ("comment", "dropped", "gone", "Gone", "\\cite", "label"):
        assert gone not in document.text


def test_prepare_latex_part_of_a_document_and_what_is_not_closed(tmp_path):
    part = only_document(read_bytes(tmp_path, b"\\chapter{Two}\nText with {a group and $x^2$.", "papers", "two.tex"))
    assert part.text.startswith("Two\n\nText with a group") and "x^2" in part.text
    assert "no text" in only_problem(read_bytes(tmp_path, b"\\documentclass{a}\\begin{document}\\end{document}", "papers", "a.tex"))
    assert "nested too deeply" in only_problem(read_bytes(tmp_path, b"{" * 100_000, "papers", "deep.tex"))


def pdf(*pages: list[str]) -> bytes:
    """One page for each list of lines, written by hand as PDF 1.4 has it."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>"]
    kids = []
    for lines in pages:
        shown = b" T* ".join(b"(" + line.encode("cp1252").replace(b"(", rb"\(").replace(b")", rb"\)") + b") Tj" for line in lines)
        stream = b"BT /F1 10 Tf 12 TL 50 700 Td " + shown + b" ET"
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
        kids.append(b"%d 0 R" % (len(objects) + 1))
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Resources << /Font << /F1 3 0 R >> >> /Contents %d 0 R >>" % len(objects)
        )
    objects[1] = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(kids), len(kids))
    out, places = io.BytesIO(b"%PDF-1.4\n"), []
    out.seek(0, io.SEEK_END)
    for i, content in enumerate(objects, 1):
        places.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (i, content))
    start = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(places) + 1) + b"".join(b"%010d 00000 n \n" % place for place in places))
    out.write(b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(places) + 1, start))
    return out.getvalue()


PAGES = [
    ["Annals of Rivers", f"Page {'ABCD'[i]} begins with a well-known line that is exam-", f"ple {word} text and", f"goes on to {word}.", f"{i + 1}"]
    for i, word in enumerate(("red", "green", "blue", "black"))
]


def test_prepare_pdf_text_without_headers_and_hyphens(tmp_path):
    document = only_document(read_bytes(tmp_path, pdf(*PAGES), "papers", "a.pdf"))
    assert document.text == "\n".join(
        f"Page {name} begins with a well-known line that is example {word} text and goes on to {word}."
        for name, word in zip("ABCD", ("red", "green", "blue", "black"), strict=True)
    )


def test_prepare_pdf_lines_flow_together():
    text = to_flowing_text(["The well-\nknown hydro-\ngraphy of 1990-\n1995 by Smith-\nJones.\nA well-known title\n\nNext paragraph."])
    assert text == "The well-known hydrography of 1990-1995 by Smith-Jones.\nA well-known title\n\nNext paragraph."
    header = [f"{i}\nRivers {i}\nA line of page {word}.\n" for i, word in enumerate(("one", "two", "three", "four"))]
    assert to_flowing_text(header).split("\n") == ["A line of page one.", "A line of page two.", "A line of page three.", "A line of page four."]


def test_prepare_pdf_encrypted_and_damaged(tmp_path):
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf(*PAGES))))
    writer.encrypt("secret", algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    assert only_problem(read_bytes(tmp_path, out.getvalue(), "papers", "a.pdf")) == "a.pdf: encrypted"
    assert "damaged PDF" in only_problem(read_bytes(tmp_path, b"no PDF at all", "papers", "a.pdf"))
    assert "no text on its pages" in only_problem(read_bytes(tmp_path, pdf([]), "papers", "a.pdf"))
    for end in range(0, len(pdf(*PAGES)), 97):  # cut anywhere: something or a problem, never an exception
        documents, problems = read_bytes(tmp_path, pdf(*PAGES)[:end], "papers", "cut.pdf")
        assert documents or problems
    bomb = pdf(["x"]).replace(b"(x) Tj", b"(" + b"y" * (2 << 20) + b") Tj")
    assert "characters on a page" in str(read_bytes(tmp_path, bomb, "papers", "long.pdf")[1][0])


JATS = """<?xml version="1.0"?>
<!DOCTYPE article [<!ENTITY x SYSTEM "file://{secret}">]>
<article xmlns:xlink="http://www.w3.org/1999/xlink" xml:lang="en"><front><article-meta><article-id pub-id-type="doi">10.1/abc</article-id>
<title-group><article-title>Rivers &amp; <italic>Seas</italic></article-title></title-group>
<pub-date pub-type="collection"><year>2020</year></pub-date><pub-date pub-type="epub"><day>5</day><month>3</month><year>2019</year></pub-date>
<permissions><license xlink:href="http://creativecommons.org/licenses/by/4.0/"><license-p>Open.</license-p></license></permissions>
<abstract><p>The short form.</p></abstract></article-meta></front>
<body><sec><title>Methods</title><p>We measured <xref>1</xref> rivers&x;, <inline-formula><tex-math>x^2</tex-math></inline-formula> each.</p>
<fig><caption><p>gone</p></caption></fig><table-wrap><table><tr><td>gone</td></tr></table></table-wrap>
<list><list-item><p>one</p></list-item><list-item><p>two</p></list-item></list></sec></body>
<back><ref-list><ref>gone</ref></ref-list></back></article>"""


def test_prepare_jats_letters_that_the_document_type_names(tmp_path):
    content = b'''<!DOCTYPE article PUBLIC "-//NLM//DTD" "journal.dtd" [<!ENTITY own "secret">]>
    <article><body><p>caf&eacute; and <i>&alpha;</i>-helix &own;&amp; more</p></body></article>'''
    assert only_document(read_bytes(tmp_path, content, "papers", "a.xml")).text == "caf\u00e9 and \u03b1-helix & more"


def test_prepare_jats_title_abstract_and_body(tmp_path):
    (tmp_path / "secret").write_text("SECRET")
    document = only_document(read_bytes(tmp_path, JATS.format(secret=tmp_path / "secret").encode(), "papers", "a.nxml"))
    assert document.text == "Rivers & Seas\n\nThe short form.\n\nMethods\n\nWe measured 1 rivers, x^2 each.\n\n- one\n\n- two"
    assert (document.url, document.licence, document.date) == ("https://doi.org/10.1/abc", "CC-BY-4.0", "2019-03-05")
    assert document.meta == {"title": "Rivers & Seas", "language": "en"}


HTML = """<html><head><title>A Manual</title><link rel="license" href="http://creativecommons.org/licenses/by/4.0/"><style>gone</style></head><body>
<div class="navheader">gone</div><div class="toc"><p>gone</p></div><h1>One <a href="#one">¶</a></h1><p>Text   with
<b>bold</b>&nbsp;words.</p><pre>line one
    line two</pre><ol><li>first<ul><li>inner</li></ul></li><li><p>second</p></li></ol>
<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table><dl><dt>term</dt><dd>meaning</dd></dl><script>gone()</script></body></html>"""


def test_prepare_html_manual_keeps_its_structure(tmp_path):
    document = only_document(read_bytes(tmp_path, gzip.compress(HTML.encode()), "papers", "a.html.gz"))
    assert document.text == (
        "One\n\nText with bold words.\n\nline one\n    line two\n\n1. first\n  - inner\n2. second\n\na | b\n1 | 2\n\nterm\nmeaning"
    )
    assert (document.meta, document.licence, document.id) == ({"title": "A Manual"}, "CC-BY-4.0", "corpus/a.html.gz")


def test_prepare_markdown_and_plain_text(tmp_path):
    content = "---\ntitle: Rivers\ndate: 2020-01-02\nlicense: https://creativecommons.org/licenses/by-sa/4.0/\n---\n# One\n\n<!-- gone -->Text.\n"
    document = only_document(read_bytes(tmp_path, content.encode(), "papers", "a.md"))
    assert (document.text, document.licence, document.date, document.meta) == ("# One\n\nText.", "CC-BY-SA-4.0", "2020-01-02", {"title": "Rivers"})
    assert only_document(read_bytes(tmp_path, b"---\nno: [yaml\n---\nText.\n", "papers", "b.md")).text == "Text."
    assert only_document(read_bytes(tmp_path, b"Title\n=====\n\n``code``\n", "papers", "a.rst")).text == "Title\n=====\n\n``code``"


MAN = r""".\" a comment
'\" t
.TH RIVER 1 "2020-01-02" "rivers 1.0" "User Commands"
.de XX
gone
..
.ds Nm river tool
.SH NAME
river \- flow to the sea
.SH SYNOPSIS
.B river
[\fB\-v\fR] [\fIfile\fR]
.SH "THE DESCRIPTION"
.if t gone
.if n .B shown
.ie \n(.g The \fB\*(Nm\fP flows\(emalways.
.el \{\
gone
.\}
Second sentence\c
\&.
.PP
New paragraph.
.TP
.BR \-a ", " \-\-all
All of it.
.IP \(bu 2
Item.
.IP "word" 4
Its meaning.
.nf
keep   this
  so
.fi
.TS
tab(;) allbox;
l l.
a;b
T{
long cell
T};d
.TE
.SS Sub
See \(lqthis\(rq and \[u00E9]\('a.
"""
MDOC = r""".Dd January 2, 2020
.Dt RIVER 1
.Os
.Sh NAME
.Nm river
.Nd flow to the sea
.Sh SYNOPSIS
.Nm
.Op Fl av
.Op Fl -depth Ar metres
.Op Ar
.Sh DESCRIPTION
The
.Nm
utility flows, see
.Xr sea 7 ,
.Pq or not .
.Bl -tag -width x
.It Fl a , Fl Fl all
All of
.Ar it .
.El
.Bd -literal
keep   this
.Ed
.Bl -bullet
.It
First.
.El
Call
.Fn flow "int speed" ;
.Dq quoted Ns s .
"""


def test_prepare_man_page_of_man_macros(tmp_path):
    document = only_document(read_bytes(tmp_path, gzip.compress(MAN.encode()), "papers", "river.1.gz"))
    assert (document.date, document.meta) == ("2020-01-02", {"title": "RIVER", "section": "1"})
    assert document.text == (
        "NAME\n\nriver - flow to the sea\n\nSYNOPSIS\n\nriver [-v] [file]\n\nTHE DESCRIPTION\n\n"
        "shown The river tool flows—always. Second sentence .\n\n"
        "New paragraph.\n\n-a, --all\nAll of it.\n\n- Item.\n\nword\nIts meaning.\n"
        "keep   this\n  so\na | b\nlong cell | d\n\nSub\n\nSee “this” and éá."
    )


def test_prepare_man_page_of_mdoc_macros(tmp_path):
    document = only_document(read_bytes(tmp_path, MDOC.encode(), "papers", "river.1"))
    assert (document.date, document.meta) == ("January 2, 2020", {"title": "RIVER", "section": "1"})
    assert document.text == (
        "NAME\n\nriver — flow to the sea\n\nSYNOPSIS\n\nriver [-av] [--depth metres] [file ...]\n\nDESCRIPTION\n\n"
        "The river utility flows, see sea(7), (or not).\n-a, --all\nAll of it.\nkeep   this\n- First.\nCall flow(int speed); “quoteds”."
    )


def test_prepare_man_page_that_points_to_another_is_marked(tmp_path):
    document = only_document(read_bytes(tmp_path, b".so man1/river.1\n", "papers", "brook.1"))
    assert (document.text, document.meta) == ("", {"drop": "alias"})


def test_prepare_troff_escapes_and_arguments():
    assert to_plain(r"\fBa\fP\-b\~c\s-1d\s0\h'1i'e\(co\[->]\e\"gone") == "a-b cde©→\\"
    assert split_arguments(r'one "two words" "with ""quotes""" th\ ree "" \" gone') == ["one", "two words", 'with "quotes"', r"th\ ree", ""]


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff to compare with")
@pytest.mark.parametrize("source", [MAN, MDOC], ids=["man", "mdoc"])
def test_prepare_man_page_has_the_words_of_groff(tmp_path, source):
    command = ["groff", "-t", "-mandoc", "-Tascii", "-P-c", "-P-b", "-P-u", "-rLL=500n"]
    shown = subprocess.run(command, input=source.encode(), capture_output=True, check=True).stdout.decode()
    body = "\n".join(shown.strip().splitlines()[1:-1])  # without header and footer
    text = only_document(read_bytes(tmp_path, source.encode(), "papers", "river.1")).text
    ours, theirs = (Counter(re.findall(r"[A-Za-z]{2,}", part)) for part in (text, body))
    if not theirs:
        pytest.skip("groff is here without its macros")
    assert (ours & theirs).total() / max(ours.total(), theirs.total()) > 0.95


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.docx", b"x", "no paper by its name; expected one of .tex, .pdf"),
        ("a.1", b"plain words", "no man page"),
        ("a.xml", b"<html/>", "no article of JATS: its root is <html>"),
        ("a.xml", b"words", "no XML"),
        ("a.xml", b"<a>" * 5000, "no XML"),
        ("a.html", b"", "the file is empty"),
        ("a.html", b"<script>x</script>", "no text"),
        ("a.html", bytes(range(32)) * 99, "binary"),
        ("a.md.gz", gzip.compress(b"words" * 99)[:-9], "truncated gzip file"),
        ("a.rst", b"\n", "no text"),
    ],
)
def test_prepare_papers_that_give_nothing(tmp_path, name, content, reason):
    assert reason in only_problem(read_bytes(tmp_path, content, "papers", name))
