"""The command line: a table of verbs, each imported only when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import os
import socket
import sys
import time
import warnings
from collections.abc import Sequence

from megagpt.runtime.errors import Foreseen
from megagpt.runtime.own_rank import rank_from_environment
from megagpt.runtime.stop_request import Interrupted, Stopped, let_through

EXIT_OK, EXIT_USAGE = 0, 2

VERBS = {
    "data": ("megagpt.cli.data", "raw sources -> clean documents, demonstrations, rankings, prompts"),
    "tokenizer": ("megagpt.cli.tokenizer", "train a tokenizer, or report on one"),
    "tokenize": ("megagpt.cli.tokenize", "documents -> .bin/.idx token files"),
    "pretrain": ("megagpt.cli.stages", "learn to predict the next token"),
    "sft": ("megagpt.cli.stages", "learn from demonstrations"),
    "reward": ("megagpt.cli.stages", "learn to score answers from K-way rankings"),
    "dpo": ("megagpt.cli.stages", "learn from the same rankings without a reward model (direct preference optimization)"),
    "rlhf": ("megagpt.cli.stages", "PPO with policy, reference, reward and value models"),
    "plan": ("megagpt.cli.plan", "memory, time and cost of a stage, and layouts that fit, before any device is reserved"),
    "run": ("megagpt.cli.run", "the whole chain of a pipeline file; finished stages are skipped"),
    "report": ("megagpt.cli.report", "report.html and the table of gates of a run"),
    "generate": ("megagpt.cli.generate", "answer prompts from a file"),
    "chat": ("megagpt.cli.chat", "talk to a model"),
    "checkpoint": ("megagpt.cli.checkpoint", "what is in a checkpoint; whether it is whole"),
    "convert": ("megagpt.cli.convert", "Hugging Face folders and GGUF files <-> checkpoints"),
}
WITHOUT_TORCH = {"plan", "tokenizer", "tokenize"}
"""Verbs that need no torch, and answer before it alone would be imported."""
RANK_0_FIRST_SECONDS = 40.0
"""Other ranks than 0 wait so long before they say what is wrong: where rank 0 says the same, its end is theirs through the launcher."""


class UsageError(Foreseen):
    """Words of the command line that do not fit the verb."""


class _Parser(argparse.ArgumentParser):
    """Wrong usage is an error like any other: one line, from one rank, instead of the usage text from each."""

    def error(self, message: str):
        raise UsageError(f"{self.prog.removeprefix('megagpt ')}: {message} (try {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code (0 done, 1 failed, 2 wrong usage or configuration, 75 stopped on request, 130 by Ctrl-C)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Launchers put their own option in front of the verb.
    words = [word for word in words if not word.startswith(("--local_rank=", "--local-rank="))]
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return EXIT_OK if words else EXIT_USAGE
    verb = words[0]
    if verb not in VERBS:
        from megagpt.config.load import nearest

        print(f"megagpt: unknown verb {verb!r}{nearest(verb, list(VERBS))}", file=sys.stderr)
        return EXIT_USAGE
    if VERBS[verb][0] != "megagpt.cli.stages":
        let_through()  # only stages have something to save
    try:
        if verb not in WITHOUT_TORCH:
            _quiet_libraries()
        module = importlib.import_module(VERBS[verb][0])
        parser = _Parser(prog=f"megagpt {verb}", description=VERBS[verb][1], formatter_class=argparse.RawDescriptionHelpFormatter)
        module.add_arguments(parser, verb)
        options = parser.parse_args(words[1:])
        return module.run(options, verb) or EXIT_OK
    except KeyboardInterrupt:
        return _report(Interrupted("stopped by Ctrl-C"))
    except Foreseen as error:  # anything else keeps its traceback
        return _report(error)


def _quiet_libraries() -> None:
    """Megatron-core and DeepSpeed warn on every rank at every import of what is not installed; we announce it ourselves, once."""
    warnings.filterwarnings("ignore", module=r"(megatron|deepspeed|torch\.utils\.cpp_extension)")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed guesses, and says so on every rank


def _report(error: Foreseen) -> int:
    """Say what is wrong, and how this process ends. Most errors are found by every rank, some (a missing mount, a damaged file) by one alone."""
    rank = rank_from_environment()
    if rank == 0:
        print(f"megagpt: {error}", file=sys.stderr, flush=True)
    elif not isinstance(error, Stopped):
        let_through()  # the launcher's signal ends the wait
        time.sleep(RANK_0_FIRST_SECONDS)
        print(f"megagpt: rank {rank} ({socket.gethostname()}): {error}", file=sys.stderr, flush=True)
    return error.exit_code


def _help() -> str:
    lines = ["usage: megagpt VERB --config FILE [--set a.b=c …] [--print-config] [--dry-run]", "", "verbs, in the order of work:"]
    lines += [f"  {verb:<11} {text}" for verb, (_, text) in VERBS.items()]
    lines += ["", "exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 75 stopped on request (the same command goes on), 130 by Ctrl-C"]
    lines += ["megagpt VERB --help explains every key of its configuration.", "Several ranks: deepspeed --no_local_rank --module megagpt VERB …, or launch/run.sh"]
    return "\n".join(lines)
