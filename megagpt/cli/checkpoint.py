"""megagpt checkpoint inspect | verify."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from megagpt.checkpoint.layout import INDEX, identity, read_json, read_state, verify


def add_arguments(parser: argparse.ArgumentParser, verb: str) -> None:
    parser.add_argument("action", choices=("inspect", "verify"), help="print what it holds, or compare every file with its SHA-256")
    parser.add_argument("checkpoint", type=Path, help="a folder step_<n>")


def run(options: argparse.Namespace, verb: str) -> int | None:
    state = read_state(options.checkpoint)
    if options.action == "verify":
        faults = verify(options.checkpoint)
        print("\n".join(faults) or f"{options.checkpoint}: whole")
        return 1 if faults else None
    print(f"{options.checkpoint}  [{identity(options.checkpoint)}]")
    print(json.dumps(state, indent=2, ensure_ascii=False))
    for kind, file in INDEX.items():
        tensors = read_json(options.checkpoint, file)
        numbers = sum(math.prod(facts["shape"]) for facts in tensors.values())
        print(f"\n{kind}: {len(tensors)} tensors, {numbers:,} numbers")
        for name, facts in tensors.items():
            print(f"  {name:<56} {'x'.join(map(str, facts['shape']))}")
    return None
