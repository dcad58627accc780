"""A miniature run on disk: texts of a toy world, a tokenizer, and the command line as a user calls it."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from megagpt.tokenizer.tokenizer import Tokenizer
from megagpt.tokenizer.train import train_tokenizer

ROOT = Path(__file__).resolve().parents[2]
WHO, DOES = ("cat", "dog", "fox", "owl", "hen", "cow", "ram", "bee"), ("see", "find", "like", "call", "hear", "help")

# ---------------------------------------------------------------- the toy world: who does what to whom is a fixed rule


def facts() -> list[tuple[str, str, str]]:
    """(who, does, whom), 48 of them."""
    return [(who, does, WHO[(3 * i + 2 * j + 1) % len(WHO)]) for (i, who), (j, does) in itertools.product(enumerate(WHO), enumerate(DOES))]


def documents(count: int = 120) -> list[dict]:
    """Six sentences each, in a different order."""
    sentences = [f"The {who} {does}s the {whom}." for who, does, whom in facts()]
    return [{"id": f"d{i}", "text": " ".join(sentences[(7 * i + 5 * j * (1 + i % 9)) % len(sentences)] for j in range(6))} for i in range(count)]


def question(who: str, does: str) -> list[dict]:
    return [{"role": "user", "content": f"What does the {who} {does}?"}]


def demonstrations() -> list[dict]:
    return [{"messages": [*question(who, does), {"role": "assistant", "content": f"The {whom}."}]} for who, does, whom in facts()]


def rankings() -> list[dict]:
    """K = 2, 3 and 4, some with a tie and some with an answer that nobody ranked."""
    kinds = [[0, 1], [0, 1, 2], [0, 1, 1, 2], [0, 1, None, 2]]
    return [
        {"prompt": question(who, does), "answers": [f"The {whom}.", "The sun.", "It is the moon.", "No no no."][: len(ranks)], "ranks": ranks}
        for (who, does, whom), ranks in zip(facts(), itertools.cycle(kinds))
    ]


def prompts() -> list[dict]:
    return [{"id": f"{who}-{does}", "prompt": question(who, does)} for who, does, _ in facts()]


def write_rows(path: Path, rows: Iterable[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_source(folder: Path) -> Path:
    """A folder as `megagpt data run` takes it."""
    folder.mkdir(parents=True)
    for make in (documents, demonstrations, rankings, prompts):
        write_rows(folder / f"{make.__name__}.jsonl", make())
    return folder


# ---------------------------------------------------------------- tokenizer


def toy_tokenizer(folder: Path, vocab_size: int = 290) -> Tokenizer:
    """The number of ids is divisible by no tensor-parallel size from 3 on; 290 leaves little more than the single bytes."""
    texts = [document["text"] for document in documents(20)] + [message["content"] for row in demonstrations() for message in row["messages"]]
    return train_tokenizer(texts, vocab_size, folder)


# ---------------------------------------------------------------- the command line


def megagpt(*words: object, cwd: Path = ROOT, timeout: float = 300, **environment: object) -> subprocess.CompletedProcess:
    """`python -m megagpt WORDS` in a process of its own; output is text."""
    return command(sys.executable, "-m", "megagpt", *words, cwd=cwd, timeout=timeout, **environment)


def command(*words: object, cwd: Path = ROOT, timeout: float = 300, **environment: object) -> subprocess.CompletedProcess:
    """A command with megagpt on its path; the process and its children are killed after `timeout` seconds."""
    process = start(*words, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment_of(**environment))
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill_group(process)
        out, err = process.communicate()
        raise AssertionError(f"{process.args} ran longer than {timeout} s\n{out[-3000:]}\n{err[-3000:]}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start(*words: object, **settings) -> subprocess.Popen:
    """A command in a session of its own, so that it and all that it started can be killed at once. It ends when pytest does, however that ends."""
    settings = {"stdin": subprocess.DEVNULL, "env": environment_of()} | settings
    return subprocess.Popen([str(word) for word in words], start_new_session=True, preexec_fn=end_with_parent, **settings)


def end_with_parent() -> None:
    """In the new process: ask the kernel for a SIGTERM at the end of its parent (prctl PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def environment_of(**more: object) -> dict[str, str]:
    """This environment with megagpt importable from everywhere and without a GPU."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""} | {name: str(value) for name, value in more.items()}


def kill_group(process: subprocess.Popen) -> None:
    """kill -9 of a process that was started in a session of its own, and of all that it started."""
    os.killpg(process.pid, signal.SIGKILL)


def finished(result: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
    """The same, once it is sure that it ended well."""
    assert result.returncode == 0, f"{result.args} ended with {result.returncode}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    return result
