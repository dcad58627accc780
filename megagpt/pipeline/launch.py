"""Start a command of megagpt on several ranks through the deepspeed launcher.

    python -m megagpt.pipeline.launch [--ranks N] [--hostfile F] STAGE --config FILE …      (what launch/run.sh calls)
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from megagpt.config.load import ConfigError


def launch_command(words: Sequence[str], num_ranks: int, hostfile: Path | None) -> list[str]:
    """`megagpt WORDS` on `num_ranks` ranks of this machine, or on one rank for each slot of the hosts.

    Raises:
        ConfigError: a hostfile that cannot be read.
    """
    from megagpt.runtime.distributed import free_port  # with torch, which reading a hostfile does without

    slots = {"localhost": num_ranks} if hostfile is None else read_hosts(hostfile)
    if len(slots) == 1 and slots.keys() <= {"localhost", "127.0.0.1", socket.gethostname()}:
        # The part of the deepspeed launcher that starts and watches the ranks of one machine. The part before it would ask even
        # this machine by ssh, and would leave the ranks running when it is killed.
        world = json.dumps({"localhost": list(range(*slots.values()))})
        launcher = ["megagpt.pipeline.ranks", "--world_info", base64.urlsafe_b64encode(world.encode()).decode(), "--master_addr", "127.0.0.1"]
    else:
        launcher = ["deepspeed.launcher.runner", "--hostfile", str(hostfile)]
    return [
        sys.executable, "-m", *launcher, "--log_level", "error", "--master_port", str(free_port()), "--no_local_rank", "--module", "megagpt", *words,
    ]


def read_hosts(hostfile: Path) -> dict[str, int]:
    """Names in a hostfile and their numbers of ranks: one `HOST slots=N` a line, `#` starts a comment.

    Raises:
        ConfigError: not a readable file of such lines, or a host in two of them.
    """
    try:
        lines = hostfile.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{hostfile}: cannot read the hostfile ({getattr(error, 'strerror', None) or error})") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if text := line.partition("#")[0].strip():
            match = re.fullmatch(r"(\S+)\s+slots=([1-9]\d*)", text)
            if match is None:
                raise ConfigError(f"{hostfile}:{number}: {text!r}: expected `HOST slots=N`")
            if match[1] in hosts:
                raise ConfigError(f"{hostfile}:{number}: {match[1]} is named twice; give all its slots in one line")
            hosts[match[1]] = int(match[2])
    if not hosts:
        raise ConfigError(f"{hostfile}: the hostfile names no host")
    return hosts


def main() -> int:
    """Become the launcher."""
    usage = "launch/run.sh STAGE --config FILE [--ranks N] [--hostfile F] [--set a.b=c …]"
    parser = argparse.ArgumentParser(prog="launch/run.sh", usage=usage, allow_abbrev=False)
    parser.add_argument("--ranks", type=int, metavar="N", help="ranks on this machine (default: one for each GPU, or 1)")
    parser.add_argument("--hostfile", type=Path, metavar="F", help="hosts, one `HOST slots=N` a line: one rank for each slot")
    options, words = parser.parse_known_args()
    if not words:
        parser.error("which stage?")
    if options.ranks is None and options.hostfile is None:
        import torch

        options.ranks = max(1, torch.cuda.device_count())
    try:
        command = launch_command(words, options.ranks, options.hostfile)
    except ConfigError as error:
        print(f"launch/run.sh: {error}", file=sys.stderr)
        return 2
    os.execv(command[0], command)


if __name__ == "__main__":
    raise SystemExit(main())
