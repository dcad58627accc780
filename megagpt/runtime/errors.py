"""Ends of the program that were foreseen."""


class Foreseen(Exception):
    """Whatever ends a command in a way that its user should read as one line, not as a traceback."""

    exit_code = 2
    """0 done, 1 failed, 2 wrong usage or configuration, 75 stopped on request (the same command goes on), 130 stopped by Ctrl-C."""
