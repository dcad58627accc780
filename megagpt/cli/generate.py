"""megagpt generate: answers to the prompts of a file, under any layout."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from megagpt.config.load import ConfigError
from megagpt.config.schema import ParallelConfig, RunConfig


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the model is and how it samples; shared with `chat`."""
    parser.add_argument("--checkpoint", required=True, metavar="PATH", help="checkpoint folder, stage folder, or stage name with --run")
    parser.add_argument("--run", default="default", metavar="NAME", help="run below runs/ that --checkpoint names a stage of")
    parser.add_argument("--tensor-parallel-size", type=int, default=1, metavar="N")
    parser.add_argument("--pipeline-parallel-size", type=int, default=1, metavar="N")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="longest answer in tokens (default 128)")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 is greedy (default 0.7)")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="sample from the K likeliest tokens only (default 0: all)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="sample from the likeliest tokens that reach probability P (default 1: all)")
    parser.add_argument("--seed", type=int, default=1234)


def add_arguments(parser: argparse.ArgumentParser, verb: str) -> None:
    add_model_arguments(parser)
    parser.add_argument("--prompts", required=True, metavar="FILE", help="prompt records (JSONL, JSONL.gz or parquet)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSONL to write (default: standard output)")
    samples = "answers to each prompt, which is computed once for all (default 1); with K > 1: ranking records without ranks, for annotators; equal and empty answers are left out"
    parser.add_argument("--num-samples", type=int, default=1, metavar="K", help=samples)
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="rows decoded at the same time (default 32)")


def sampling_of(options: argparse.Namespace):
    """How to sample."""
    from megagpt.generation.sample import Sampling

    for name in ("max_new_tokens", "num_samples", "batch_size"):
        if getattr(options, name, 1) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be 1 or more")
    try:
        return Sampling(options.temperature, options.top_k, options.top_p, options.seed)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def find_model(options: argparse.Namespace):
    """The checkpoint, and the grid of this job's ranks; nothing is started yet."""
    from megagpt.checkpoint.layout import find_checkpoint
    from megagpt.checkpoint.load import Checkpoint
    from megagpt.config.check import check_model
    from megagpt.parallel.placement import stage_grid
    from megagpt.runtime.distributed import world_size_from_environment
    from megagpt.runtime.run_folder import RunFolder

    parallel = ParallelConfig(tensor_parallel_size=options.tensor_parallel_size, pipeline_parallel_size=options.pipeline_parallel_size)
    grid = stage_grid(parallel, world_size_from_environment())
    if grid.dp > 1:
        raise ConfigError(f"{grid.size} ranks for tensor {grid.tp} x pipeline {grid.pp}: generation uses one replica")
    checkpoint = Checkpoint.open(find_checkpoint(options.checkpoint, RunFolder(RunConfig(name=options.run)))).language_model()
    check_model(checkpoint.model_config, grid.tp, grid.pp, "checkpoint")
    return checkpoint, grid


def _check_output(output: Path | None) -> None:
    """Answers that took hours must find a place."""
    if output is not None and output.is_dir():
        raise ConfigError(f"--output {output}: is a folder; name a file in it")
    if output is not None and not output.parent.is_dir():
        raise ConfigError(f"--output {output}: {output.parent} is no folder; make it first")


def start_model(checkpoint, grid):
    """Join the job and load the model on its ranks."""
    from megagpt.checkpoint.load import load_model
    from megagpt.parallel.groups import build_groups
    from megagpt.runtime.distributed import start

    world = start()
    return load_model(checkpoint, build_groups(grid), world.device, scalar_head=False, dropout=0.0).eval()


def run(options: argparse.Namespace, verb: str) -> int | None:
    from megagpt.data.errors import DataError
    from megagpt.data.records import read_prompts
    from megagpt.generation.generate import generate
    from megagpt.runtime import atomic
    from megagpt.runtime.distributed import stop
    from megagpt.runtime.log import is_main_rank, left_out
    from megagpt.tokenizer.chat import encode_chat, stop_ids

    sampling = sampling_of(options)
    _check_output(options.output)
    dropped: Counter[str] = Counter()
    prompts = read_prompts(options.prompts, dropped)
    checkpoint, grid = find_model(options)
    tokenizer, context = checkpoint.tokenizer(), checkpoint.model_config.max_sequence_length
    encoded = [encode_chat(tokenizer, prompt.prompt, add_generation_prompt=True)[0] for prompt in prompts]
    for prompt, tokens in zip(prompts, encoded):
        if len(tokens) + options.max_new_tokens > context:
            raise DataError(prompt.where, f"{len(tokens)} tokens + max_new_tokens {options.max_new_tokens} is longer than the context of {context}")
    model = start_model(checkpoint, grid)
    if is_main_rank():
        print(f"{len(prompts)} prompts{left_out(dropped)}", file=sys.stderr, flush=True)
    rows = [(number, sample) for number in range(len(prompts)) for sample in range(options.num_samples)]
    said = 0

    def report(ended: int) -> None:
        nonlocal said
        if is_main_rank() and (ended - said >= options.batch_size or ended == len(rows)):
            said = ended
            print(f"{ended}/{len(rows)} answers", file=sys.stderr, flush=True)

    generated = generate(
        model, [encoded[number] for number, _ in rows], max_new_tokens=options.max_new_tokens, stop_ids=stop_ids(tokenizer), sampling=sampling,
        prompt_ids=[number for number, _ in rows], sample_numbers=[sample for _, sample in rows], max_rows=options.batch_size, on_ended=report,
    )
    answers = [tokenizer.decode(tokens) for tokens in generated.tokens]
    lines, alike = [], 0
    for number, prompt in enumerate(prompts):
        given = answers[number * options.num_samples : (number + 1) * options.num_samples]
        if options.num_samples > 1:
            given = [answer for answer in dict.fromkeys(given) if answer.strip()]  # as rankings want them: different, and none empty
            if len(given) < 2:
                alike += 1
                continue
            record = {"prompt": list(prompt.prompt), "answers": given, "ranks": [None] * len(given)}
        else:
            record = {"id": prompt.id, "messages": [*prompt.prompt, {"role": "assistant", "content": given[0]}]}
        lines.append(json.dumps(record, ensure_ascii=False))
    if is_main_rank():
        if alike:
            print(f"{alike} prompts are left out: no two different answers", file=sys.stderr, flush=True)
        text = "".join(f"{line}\n" for line in lines)
        atomic.write_text(options.output, text) if options.output else print(text, end="")
    stop()
    return None
