"""A sample of documents that is spread over all of them: what a tokenizer learns from and is measured on."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from megagpt.data.records import Document
from megagpt.data.split import share

PIECE_CHARACTERS = 8192
"""Documents are cut into pieces of at most so many characters, so that one book is not half of a sample."""


def first_documents(documents: Iterable[Document], characters: int) -> Iterator[Document]:
    """Documents from the first on, until there are so many characters; reads no further."""
    left = characters
    for document in documents:
        yield document if len(document.text) <= left else replace(document, text=document.text[:left])
        left -= len(document.text)
        if left <= 0:
            return


def spread_documents(documents: Iterable[Document], characters: int, source_weights: Mapping[str, float]) -> Iterator[Document]:
    """About so many characters of all documents, never more; in their order. All of them, whole, where they have no more.

    Pieces of documents are drawn without replacement, each as likely as the weight of its source: of u ~ U(0, 1) by a hash of source, id and
    piece, those of the smallest -ln(u) / weight are taken (Efraimidis & Spirakis 2006, "Weighted random sampling with a reservoir"). So neither
    the order of the documents nor the other ones decide which number a piece draws. One pass; memory holds the sample.

    Args:
        characters: in the sample at most.
        source_weights: of sources; 1 where a source is not named, 0 leaves it out.
    """
    heap: list[tuple[float, int, Document]] = []  # the piece that would go first is on top
    held, bound = 0, math.inf  # a piece has drawn less than the bound, or the sample was full without it
    for number, (place, document) in enumerate(_pieces(documents)):
        weight = source_weights.get(document.source, 1.0)
        if not weight:
            continue
        drawn = -math.log1p(-share(f"sample {document.source} {document.id} {place}")) / weight
        if drawn >= bound:
            continue
        heapq.heappush(heap, (-drawn, number, document))
        held += len(document.text)
        while held > characters and len(heap) > 1:
            negative, _, left_out = heapq.heappop(heap)
            held, bound = held - len(left_out.text), -negative
    chosen = sorted(((number, document) for _, number, document in heap), key=lambda one: one[0])
    return first_documents(_joined(chosen), characters)  # which cuts where one piece alone is too long


def _pieces(documents: Iterable[Document]) -> Iterator[tuple[int, Document]]:
    """(place in its document, piece); cut behind a line or a word where one ends near the limit."""
    for document in documents:
        text, start, place = document.text, 0, 0
        while len(text) - start > PIECE_CHARACTERS:
            stop = start + PIECE_CHARACTERS
            middle = start + PIECE_CHARACTERS // 2
            stop = next((found + 1 for end in "\n " if (found := text.rfind(end, middle, stop)) >= 0), stop)
            yield place, replace(document, text=text[start:stop])
            start, place = stop, place + 1
        yield place, replace(document, text=text[start:]) if start else document


def _joined(pieces: list[tuple[int, Document]]) -> Iterator[Document]:
    """Neighbours of one document as one text again."""
    for _, run in itertools.groupby(enumerate(pieces), key=lambda one: (one[1][0] - one[0], one[1][1].source, one[1][1].id)):
        documents = [document for _, (_, document) in run]
        yield documents[0] if len(documents) == 1 else replace(documents[0], text="".join(document.text for document in documents))
