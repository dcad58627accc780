"""Documents are dropped by where they were found: blocked domains, addresses and words of URLs.

datatrove's URLFilter asks for tldextract and pyahocorasick, and keeps its 4.6 million domains as a set of strings: 0.6 GB in every process. Its lists
are read here straight from its package into sorted 64-bit hashes (36 MiB; one of 10^10 other hosts would be taken for one on the list with a
probability of 0.2 %). A domain blocks all that is below it, which makes the registered domain needless; addresses are compared without `https://`,
as the list has them, and words without regard to case.
"""

from __future__ import annotations

import re
import tarfile
from array import array
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from datatrove.data import Document
from datatrove.utils._import_utils import ASSETS_PATH
from xxhash import xxh3_64_intdigest

from megagpt.config.prepare import UrlConfig
from megagpt.data.errors import DataError, require_file

_ARCHIVE = Path(ASSETS_PATH) / "url_filterblacklistsv0_3_0.tar.gz"
_NOT_ALPHANUMERIC = re.compile(r"[\W_]+")
_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]*://|^//", re.IGNORECASE)


class Url:
    """Reasons `url_domain`, `url_listed`, `url_word`, `url_soft_words`, `url_substring`; what was found in the note `url`."""

    name = "url"

    def __init__(self, config: UrlConfig) -> None:
        """Raises:
        DataError: a list is missing, empty or no UTF-8 text.
        """
        self.config = config
        for path in (*config.domains, *config.urls):
            require_file(Path(path))
        self._words = _words(config, "words", "banned_words.txt")
        self._soft_words = _words(config, "soft_words", "soft_banned_words.txt")
        self._substrings = sorted(_words(config, "substrings", "banned_subwords.txt"))

    def __call__(self, document: Document) -> str | None:
        if document.metadata["kind"] not in self.config.kinds:
            return None
        url = document.metadata["url"].strip()
        found = self._find(url, domains) if (domains := _domains(url)) else None
        if found is None:
            return None
        reason, document.metadata["notes"]["url"] = found
        return reason

    def _find(self, url: str, domains: list[str]) -> tuple[str, str] | None:
        """(reason, what was found)"""
        if blocked_domain := next(filter(self._blocked_domains.has, domains), None):
            return "url_domain", blocked_domain
        if self._blocked_urls.has(address := _address(url)):
            return "url_listed", address
        words = set(_NOT_ALPHANUMERIC.split(url.lower()))
        if blocked := words & self._words:
            return "url_word", min(blocked)
        if len(soft := words & self._soft_words) > self.config.max_soft_words:
            return "url_soft_words", " ".join(sorted(soft))
        squeezed = _NOT_ALPHANUMERIC.sub("", url.lower())
        blocked_part = next((part for part in self._substrings if part in squeezed), None)
        return None if blocked_part is None else ("url_substring", blocked_part)

    @cached_property
    def _blocked_domains(self) -> Hashes:
        """Read when the first document with a URL comes."""
        own = (domain.lower().strip(".").encode() for path in self.config.domains for domain in _lines(Path(path)))
        return Hashes(chain(own, self._integrated("domains")))

    @cached_property
    def _blocked_urls(self) -> Hashes:
        own = (_address(url).encode() for path in self.config.urls for url in _lines(Path(path)))
        return Hashes(chain(own, self._integrated("urls")))

    def _integrated(self, name: str) -> Iterator[bytes]:
        """Entries of a list in datatrove's package, which are lower case and bare already."""
        if self.config.datatrove_lists:
            with tarfile.open(_ARCHIVE, "r:gz") as archive:
                yield from map(bytes.strip, archive.extractfile(name))  # type: ignore[arg-type]


class Hashes:
    """A set of strings that only knows whether it has one: 8 bytes for each, sorted."""

    def __init__(self, entries: Iterable[bytes]) -> None:
        hashes = np.sort(np.frombuffer(array("Q", map(xxh3_64_intdigest, entries)), dtype=np.uint64))
        self._sorted = hashes[np.append(True, hashes[1:] != hashes[:-1])[: len(hashes)]]

    def __len__(self) -> int:
        return len(self._sorted)

    def has(self, entry: str) -> bool:
        wanted = np.uint64(xxh3_64_intdigest(entry.encode(errors="replace")))
        place = int(np.searchsorted(self._sorted, wanted))
        return place < len(self._sorted) and self._sorted[place] == wanted


def _words(config: UrlConfig, field: str, datatrove_file: str) -> set[str]:
    """Lower case, letters and digits only."""
    files = [Path(path) for path in getattr(config, field)] + ([Path(ASSETS_PATH) / datatrove_file] if config.datatrove_lists else [])
    return {_NOT_ALPHANUMERIC.sub("", line.lower()) for path in files for line in _lines(path)} - {""}


def _lines(path: Path) -> Iterator[str]:
    """Entries of a list: no blank lines, no comments."""
    require_file(path)
    try:
        with path.open(encoding="utf-8") as lines:
            yield from (line.strip() for line in lines if line.strip() and not line.startswith("#"))
    except UnicodeDecodeError as error:
        raise DataError(path, "is no UTF-8 text; a list has one entry a line") from error


def _domains(url: str) -> list[str]:
    """`https://a.b.org/c` gives `a.b.org`, `b.org`, `org`; nothing where there is no host (paths, names)."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:  # brackets that hold no IPv6 address
        return []
    labels = host.strip(".").split(".")
    return [".".join(labels[first:]) for first in range(len(labels))] if host else []


def _address(url: str) -> str:
    """Host in lower case and path, without scheme and the slash at the end."""
    host, slash, path = _SCHEME.sub("", url.strip()).partition("/")
    return f"{host.lower()}{slash}{path}".rstrip("/")
