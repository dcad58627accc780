"""Which code wrote this: package version and, in a git checkout, its commit."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

from megagpt import __version__


@functools.cache
def code_version() -> str:
    """For example `0.1.0+1a2b3c4d5e6f`, with `.changed` where the checkout differs from the commit."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return __version__
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=.changed", "--exclude=*"],
            cwd=root, capture_output=True, text=True, check=True, timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}+{described.stdout.strip()}"
