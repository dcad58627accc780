import sysconfig
from pathlib import Path

import pytest

from megagpt.prepare.readers import licences
from megagpt.prepare.readers.code import language_of
from tests.helpers.readers import only_document, only_problem, read, read_bytes

MIT = """Copyright (c) 2020 A. Writer

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation files (the "Software"),
to deal in the Software without restriction, including without limitation the rights to use, copy, modify, merge"""
BSD2 = (
    "Redistribution and use in source and binary forms, with or without modification, are permitted provided that the following conditions are met:"
)
BSD3 = BSD2 + "\n3. Neither the name of the copyright holder nor the names of its contributors may be used to endorse"
GPL3 = (
    """                    GNU GENERAL PUBLIC LICENSE
                       Version 3, 29 June 2007
"""
    + "x " * 1000
    + "use the GNU Lesser General Public License instead of this License. GNU Affero General Public License version 3"
)
APACHE_NOTICE = """# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
"""
GPL_NOTICE = """/* This program is free software; you can redistribute it and/or modify
 * it under the terms of the GNU General Public License as published by
 * the Free Software Foundation; either version 2 of the License, or
 */
"""
SOURCE = 'def add(first, second):\n    """The sum."""\n    return first + second\n'


@pytest.mark.parametrize(
    ("text", "identifier"),
    [
        (MIT, "MIT"),
        (BSD2, "BSD-2-Clause"),
        (BSD3, "BSD-3-Clause"),
        (GPL3, "GPL-3.0"),
        (GPL_NOTICE, "GPL-2.0"),
        (APACHE_NOTICE, "Apache-2.0"),
        ("                  GNU LESSER GENERAL PUBLIC LICENSE\n                       Version 2.1, February 1999", "LGPL-2.1"),
        ("GNU AFFERO GENERAL PUBLIC LICENSE\nVersion 3, 19 November 2007", "AGPL-3.0"),
        ("Mozilla Public License Version 2.0\n====", "MPL-2.0"),
        ("PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2\n---", "PSF-2.0"),
        ("This is free and unencumbered software released into the public domain.", "Unlicense"),
        ("Creative Commons Legal Code\n\nCC0 1.0 Universal", "CC0-1.0"),
        ("// SPDX-License-Identifier: (MIT OR Apache-2.0)", "MIT OR Apache-2.0"),
        ("/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */", "GPL-2.0-only WITH Linux-syscall-note"),
        ("All rights reserved.", ""),
        ("", ""),
    ],
)
def test_prepare_code_licences_by_their_words(text, identifier):
    assert licences.from_text(text) == identifier


@pytest.mark.parametrize(
    ("url", "identifier"),
    [
        ("https://creativecommons.org/licenses/by-nc-sa/3.0/de/", "CC-BY-NC-SA-3.0"),
        ("//creativecommons.org/publicdomain/mark/1.0/", "PDM-1.0"),
        ("http://creativecommons.org/publicdomain/zero/1.0", "CC0-1.0"),
        ("https://a.example/licenses/by/4.0/", ""),
    ],
)
def test_prepare_code_licences_by_their_address(url, identifier):
    assert licences.from_url(url) == identifier


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("a.py", "Python"),
        ("A.PY", "Python"),
        ("x.tar.cpp", "C++"),
        ("CMakeLists.txt", "CMake"),
        ("Makefile", "Makefile"),
        ("a.d.ts", "TypeScript"),
        ("a.txt", None),
        ("LICENSE", None),
    ],
)
def test_prepare_code_languages_by_name(name, language):
    assert language_of(name) == language


def repository(tmp_path):
    for name, content in {
        "repo/LICENSE": MIT,
        "repo/src/a.py": SOURCE,
        "repo/vendored_gpl/COPYING.txt": GPL3,
        "repo/vendored_gpl/b.c": "int x;\n",
        "repo/src/c.py": APACHE_NOTICE + SOURCE,
        "other/d.py": SOURCE,
        "repo/src/odd/LICENSE": "All rights reserved.",
        "repo/src/odd/e.py": SOURCE,
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path


def test_prepare_code_licence_of_the_file_else_of_the_nearest_folder(tmp_path):
    root = repository(tmp_path)

    def licence(name, **source):
        return only_document(read(root / name, "code", name, **source)).licence

    assert licence("repo/src/a.py") == "MIT"
    assert licence("repo/vendored_gpl/b.c") == "GPL-3.0"
    assert licence("repo/src/c.py") == "Apache-2.0"
    assert licence("other/d.py", licence="stated") == "stated"
    assert licence("repo/src/odd/e.py") == ""  # another licence than that of the repository, which none is


def test_prepare_code_folders_above_the_source_are_not_asked(tmp_path):
    root = repository(tmp_path)
    assert only_document(read(root / "repo/src/a.py", "code", "src/a.py")).licence == "MIT"
    assert only_document(read(root / "repo/src/a.py", "code", "a.py")).licence == ""


def test_prepare_code_document_of_a_source_file(tmp_path):
    document = only_document(read_bytes(tmp_path, SOURCE.replace("\n", "\r\n").encode(), "code", "a.py"))
    assert (document.id, document.text, document.url) == ("corpus/a.py", SOURCE, "a.py")
    assert document.meta == {"language": "Python", "generated": False, "minified": False}


LONG_LINE = "var " + ",".join(f"a{i}=function(b,c){{return b+c}}" for i in range(400)) + ";\n"


@pytest.mark.parametrize(
    ("name", "content", "drop"),
    [
        ("a.py", "# Generated by the protocol buffer compiler.  DO NOT EDIT!\n" + SOURCE, "generated_code"),
        ("a.go", "// Code generated by stringer; DO NOT EDIT.\npackage a\n", "generated_code"),
        ("a.js", "/**\n * @generated\n */\nlet x = 1;\n", "generated_code"),
        ("a_pb2.py", SOURCE, "generated_code"),
        ("a.py", SOURCE + "\n# do not edit this by hand, said nobody\n", "generated_code"),
        ("a.py", SOURCE * 30 + "# generated by hand\n", None),
        ("a.py", 'print("generated by a program")\n' + SOURCE, None),
        ("a.js", LONG_LINE, "minified_code"),
        ("a.min.js", "let x = 1;\n", "minified_code"),
        ("a.css", "a{b:c}\n" * 5 + "x" * 1001 + "\n", "minified_code"),
        ("a.c", "static char x[] = {" + "\n{0},{,},{-},{+}," * 200 + "};\n", "minified_code"),
        ("package-lock.json", "{}\n", "lock_file"),
        ("a.csv", "a,b\n1,2\n", "not_code"),
        ("a.py", "\n \n", "no_text"),
        ("a.so", bytes(range(256)) * 10, "binary_file"),
        ("a.py", SOURCE, None),
        ("run", "#!/usr/bin/env python3\n" + SOURCE, None),
        ("run2", "#!/bin/bash\necho x\n", None),
        ("run3", "no code\n", "not_code"),
    ],
)
def test_prepare_code_files_of_no_use_are_marked(tmp_path, name, content, drop):
    document = only_document(read_bytes(tmp_path, content if isinstance(content, bytes) else content.encode(), "code", name))
    assert document.meta.get("drop") == drop
    assert document.meta.get("language", "") == {"run": "Python", "run2": "Shell"}.get(name, language_of(name) or "")


def test_prepare_code_of_other_projects_inside_is_marked(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(SOURCE)
    assert only_document(read(path, "code", "repo/node_modules/x/a.py")).meta["drop"] == "vendored_code"


def test_prepare_code_files_that_give_nothing(tmp_path):
    assert "the file is empty" in only_problem(read_bytes(tmp_path, b"", "code", "a.py"))
    path = tmp_path / "big.py"
    with open(path, "wb") as file:
        file.truncate(1 << 30)  # sparse
    assert "more than 16 MiB" in only_problem(read(path, "code"))


def test_prepare_code_of_the_standard_library_is_kept():
    """Written by people: no rule may take it for something else."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = [path for name in ("json", "email", "asyncio", "http") for path in sorted((folder / name).glob("*.py")) if path.stat().st_size]
    drops = {path.name: drop for path in files if (drop := only_document(read(path, "code")).meta.get("drop"))}
    assert len(files) > 50 and not drops
