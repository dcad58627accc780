"""megagpt chat: a conversation in the terminal."""

from __future__ import annotations

import argparse

from megagpt.cli.generate import add_model_arguments, find_model, sampling_of, start_model
from megagpt.config.load import ConfigError
from megagpt.runtime.distributed import world_size_from_environment


def add_arguments(parser: argparse.ArgumentParser, verb: str) -> None:
    add_model_arguments(parser)
    parser.add_argument("--system", metavar="TEXT", help="system message at the start")


def run(options: argparse.Namespace, verb: str) -> int | None:
    from megagpt.generation.generate import generate
    from megagpt.runtime.distributed import stop
    from megagpt.tokenizer.chat import encode_chat, stop_ids

    if world_size_from_environment() > 1:
        raise ConfigError("megagpt chat runs on one rank; use megagpt generate for several")
    sampling = sampling_of(options)
    checkpoint, grid = find_model(options)
    tokenizer = checkpoint.tokenizer()
    model = start_model(checkpoint, grid)
    start = [{"role": "system", "content": options.system}] if options.system else []
    messages = list(start)
    print("Write a message and press Enter; /new starts over, an empty line or Ctrl-D ends.")
    while True:
        try:
            text = input("you> ").strip()
        except (EOFError, KeyboardInterrupt):
            break
        if not text:
            break
        if text == "/new":
            messages = list(start)
            continue
        messages.append({"role": "user", "content": text})
        prompt = encode_chat(tokenizer, messages, add_generation_prompt=True)[0]
        room = model.shape.config.max_sequence_length - len(prompt)
        if room < 1:
            print("The conversation is longer than the model's context; /new starts over.")
            messages.pop()
            continue
        # The number of turns so far is the sample number, so that the same question is not answered in the same words.
        answer = generate(
            model, [prompt], max_new_tokens=min(options.max_new_tokens, room), stop_ids=stop_ids(tokenizer), sampling=sampling, sample_numbers=[len(messages)]
        )
        content = tokenizer.decode(answer.tokens[0]).strip()
        print(f"assistant> {content}")
        messages.append({"role": "assistant", "content": content})
    stop()
    return None
