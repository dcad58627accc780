"""URL filter: own lists, datatrove's lists, and URLs that are none."""

import tarfile

import pytest

from megagpt.config.prepare import UrlConfig
from megagpt.data.errors import DataError
from megagpt.prepare.steps.url import _ARCHIVE, Hashes, Url
from tests.helpers.flow import flowing


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Url:
    folder = tmp_path_factory.mktemp("lists")
    lists = {
        "domains": "# mine\nbad.example\nForum.Good.example\n\n", "urls": "https://good.example/one/page/\n", "words": "casino\n",
        "soft_words": "bet\nwin\n", "substrings": "free money\n",
    }  # fmt: skip
    for name, text in lists.items():
        (folder / name).write_text(text, encoding="utf-8")
    return Url(UrlConfig(datatrove_lists=False, **{name: [str(folder / name)] for name in lists}))


@pytest.fixture(scope="module")
def integrated() -> Url:
    return Url(UrlConfig())


def judged(step: Url, url: str, kind: str = "web") -> tuple[str | None, str | None]:
    document = flowing("text", kind, url=url)
    return step(document), document.metadata["notes"].get("url")


@pytest.mark.parametrize(
    ("url", "reason", "found"),
    [
        ("https://good.example/page", None, None),
        ("https://bad.example/page", "url_domain", "bad.example"),
        ("http://user@WWW.Bad.example:8080/page", "url_domain", "bad.example"),
        ("https://notbad.example/", None, None),
        ("https://forum.good.example/", "url_domain", "forum.good.example"),
        ("https://www.good.example/", None, None),
        ("http://good.example/one/page", "url_listed", "good.example/one/page"),
        ("http://good.example/one/page2", None, None),
        ("https://good.example/Casino-games", "url_word", "casino"),
        ("https://good.example/casinos", None, None),
        ("https://good.example/win", None, None),
        ("https://good.example/win/bet", "url_soft_words", "bet win"),
        ("https://good.example/xFree_Moneyx", "url_substring", "freemoney"),
        ("", None, None),
        ("casino/free money.txt", None, None),
        ("http://[::1/casino", None, None),
        ("https://bücher.example/\ud800", None, None),
    ],
)
def test_url_own_lists(own, url, reason, found):
    assert judged(own, url) == (reason, found)


def test_url_of_an_encyclopaedia_passes(own):
    assert judged(own, "https://good.example/Casino", "wikipedia") == (None, None)
    assert judged(own, "https://good.example/Casino", "rows") == ("url_word", "casino")


def test_url_lists_of_datatrove(integrated):
    with tarfile.open(_ARCHIVE) as archive:
        address, domain = (archive.extractfile(name).readline().decode().strip() for name in ("urls", "domains"))
    assert len(integrated._blocked_domains) > 4_500_000 and len(integrated._blocked_urls) > 19_000
    assert judged(integrated, f"https://www.{domain}/x") == ("url_domain", domain)
    assert judged(integrated, f"https://{address}/") == ("url_listed", address)
    assert judged(integrated, "https://some.example/bdsm") == ("url_word", "bdsm")
    assert judged(integrated, "https://www.iana.org/domains/reserved") == (None, None)
    assert judged(integrated, "https://en.wikipedia.org/wiki/Essex") == (None, None)


def test_url_hashes_are_a_set():
    entries = [f"host{number}.example" for number in range(1000)]
    hashes = Hashes(entry.encode() for entry in entries + entries)
    assert len(hashes) == 1000 and all(map(hashes.has, entries)) and not hashes.has("host1000.example") and not Hashes([]).has("")


def test_url_missing_and_binary_lists_are_refused(tmp_path):
    for field in ("domains", "urls", "words", "soft_words", "substrings"):
        with pytest.raises(DataError, match="no such file"):
            Url(UrlConfig(datatrove_lists=False, **{field: [str(tmp_path / "missing")]}))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="no UTF-8"):
        Url(UrlConfig(datatrove_lists=False, words=[str(tmp_path / "binary")]))
