"""Licences by what they are called, by their address, and by their own words; all as SPDX identifiers (https://spdx.org/licenses)."""

from __future__ import annotations

import re

_SPDX = re.compile(r"SPDX-License-Identifier:\s*\(?([A-Za-z0-9.+-]+(?:\s+(?:OR|AND|WITH)\s+[A-Za-z0-9.+-]+)*)\)?")
_CREATIVE_COMMONS = re.compile(r"creativecommons\.org/(?:licenses/([a-z-]+)/([0-9.]+)|publicdomain/(zero|mark)/([0-9.]+))", re.IGNORECASE)
_TITLE_CHARACTERS = 2000
"""GNU licences name each other; which one a text is stands at its beginning."""

_GNU = (
    ("AGPL-3.0", r"gnu affero general public license.{0,120}version 3"),
    ("LGPL-3.0", r"gnu lesser general public license.{0,120}version 3"),
    ("LGPL-2.1", r"gnu lesser general public license.{0,120}version 2\.1"),
    ("LGPL-2.0", r"gnu (library|lesser) general public license.{0,120}version 2"),
    ("GPL-3.0", r"gnu general public license.{0,120}version 3"),
    ("GPL-2.0", r"gnu general public license.{0,120}version 2"),
)
_BY_WORDS = (
    ("PSF-2.0", r"python software foundation license version 2|psf license agreement for python"),
    ("Unlicense", r"this is free and unencumbered software released into the public domain"),
    ("CC0-1.0", r"cc0 1\.0 universal"),
    ("CC-BY-SA-4.0", r"attribution-sharealike 4\.0 international"),
    ("CC-BY-4.0", r"attribution 4\.0 international"),
    ("Apache-2.0", r"apache license,? version 2\.0"),
    ("MPL-2.0", r"mozilla public license,? (version|v\.) ?2\.0"),
    ("BSD-3-Clause", r"redistribution and use in source and binary forms.*neither the names? of"),
    ("BSD-2-Clause", r"redistribution and use in source and binary forms"),
    ("MIT", r"permission is hereby granted, free of charge, to any person obtaining a copy"),
    ("ISC", r"permission to use, copy, modify, and(/or)? distribute this software for any purpose"),
)


def from_text(text: str) -> str:
    """Of the text of a licence file, or of the notice at the head of a source file; empty where it is none of the common ones."""
    if named := _SPDX.search(text):
        return " ".join(named[1].split())
    words = re.sub(r"[\s*#/;]+", " ", text.lower())
    for rules, part in ((_GNU, words[:_TITLE_CHARACTERS]), (_BY_WORDS, words)):
        for identifier, pattern in rules:
            if re.search(pattern, part):
                return identifier
    return ""


def from_url(url: str) -> str:
    """Of the address of a Creative Commons licence; empty where it is none."""
    if not (found := _CREATIVE_COMMONS.search(url)):
        return ""
    if found[3]:
        return f"{'CC0' if found[3].lower() == 'zero' else 'PDM'}-{found[4].strip('.')}"
    return f"CC-{found[1].upper().strip('-')}-{found[2].strip('.')}"
