"""Signals that ask a stage to stop: noted once, the same on every path, back to their default action afterwards."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from megagpt.cli import main as command_line
from megagpt.runtime import stop_request
from megagpt.runtime.stop_request import SIGNALS, Interrupted, Stopped, ending, hold_back, let_through, listening, requested
from tests.helpers.tiny_run import environment_of


@pytest.mark.parametrize("number", SIGNALS)
def test_stop_request_is_noted_and_forgotten_after_the_block(number):
    before = signal.getsignal(number)
    with listening():
        assert not requested()
        os.kill(os.getpid(), number)
        assert requested()
        os.kill(os.getpid(), SIGNALS[0])  # on another path
        assert requested()
    assert not requested() and signal.getsignal(number) == before


@pytest.mark.parametrize(("number", "error", "code"), [(signal.SIGTERM, Stopped, 75), (signal.SIGINT, Interrupted, 130)])
def test_stop_request_of_work_with_nothing_to_save_ends_it_where_it_is(number, error, code):
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match="^goes on$") as raised, ending("goes on"):
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
        finally:
            os.kill(os.getpid(), number)  # on another path, while things are put away
            assert requested()
    assert type(raised.value) is error and raised.value.exit_code == code
    assert not requested() and signal.getsignal(number) == before


def test_stop_request_that_a_launcher_held_back_is_delivered():
    hold_back()
    try:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)  # other threads of pytest hold nothing back
        assert signal.SIGUSR1 in signal.sigpending()
        with listening():
            assert requested()
    finally:
        let_through()


@pytest.mark.parametrize(("seconds", "code"), [(0.0, 0), (6.0, -signal.SIGTERM)])
def test_stop_request_a_later_signal_ends_the_process(seconds, code):
    script = f"""
import os, signal, time
from megagpt.runtime import stop_request
now = time.monotonic
with stop_request.listening():
    os.kill(os.getpid(), signal.SIGUSR1)
    stop_request.time.monotonic = lambda: now() + {seconds}
    os.kill(os.getpid(), signal.SIGTERM)
"""
    assert subprocess.run([sys.executable, "-c", script], env=environment_of(), check=False, timeout=60).returncode == code


def test_stop_request_becomes_exit_code_75(monkeypatch, capsys):
    def run(*_):
        raise Stopped("stopped on request after step 7; the same command goes on")

    monkeypatch.setattr("megagpt.cli.report.run", run)
    monkeypatch.setattr("megagpt.cli.report.add_arguments", lambda *_: None)
    monkeypatch.delenv("RANK", raising=False)
    assert command_line.main(["report"]) == stop_request.EXIT_STOPPED == 75
    assert capsys.readouterr().err == "megagpt: stopped on request after step 7; the same command goes on\n"
