"""megagpt checkpoint inspect | verify."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from megagpt.checkpoint.layout import INDEX, identity, read_state, verify


def add_arguments(parser: argparse.ArgumentParser, verb: str) -> None:
    parser.add_argument("action", choices=("inspect", "verify"), help="print what it holds, or compare every file with its SHA-256")
    parser.add_argument("checkpoint", type=Path, help="a folder step_<n>")


def run(options: argparse.Namespace, verb: str) -> int | None:
    state = read_state(options.checkpoint)
    if options.action == "verify":
        faults = verify(options.checkpoint)
        print("\n".join(faults) or f"{options.checkpoint}: whole")
        return 1 if faults else None
    index = json.loads((options.checkpoint / INDEX).read_text(encoding="utf-8"))
    print(f"{options.checkpoint}  [{identity(options.checkpoint)}]")
    print(json.dumps(state, indent=2, ensure_ascii=False))
    for name, facts in index.items():
        print(f"{name:<48} {'x'.join(map(str, facts['shape']))}")
    return None
