"""Ends of data preparation that were foreseen."""

from __future__ import annotations

from megagpt.runtime.errors import Foreseen


class PrepareError(Foreseen):
    """A task that could not be done. The message is one line; the same command goes on where it stopped."""

    exit_code = 1
