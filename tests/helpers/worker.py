"""What one worker process of `spawn.py` does: join the process group, then answer calls until its pipe closes."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import importlib.util
import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from types import ModuleType

import torch

from megagpt.runtime import distributed
from tests.helpers.transport import from_bytes, to_bytes

COLLECTIVE_TIMEOUT_SECONDS = 900  # never reached: the time limit of the call ends the pool long before
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def serve(pipe: int, parent: int, stack_file: str) -> None:
    """`pipe`: file descriptor of this end; `parent`: process id of pytest; `stack_file`: where SIGUSR1 writes this process's stacks."""
    _die_with(parent)
    faulthandler.register(signal.SIGUSR1, file=open(stack_file, "w"), all_threads=True)
    connection = Connection(pipe)
    try:
        distributed.start(timeout_seconds=COLLECTIVE_TIMEOUT_SECONDS)
    except BaseException:
        connection.send_bytes(to_bytes(("raised", traceback.format_exc())))
        return
    connection.send_bytes(to_bytes(("started", None)))
    while True:
        num_modules = len(sys.modules)
        try:
            call = from_bytes(connection.recv_bytes())  # sleeps in the kernel while idle
        except EOFError:
            os._exit(0)  # pytest closed the pipe; the ordinary exit could wait for other ranks
        _answer(connection, *call)
        gc.collect()  # after the answer, while pytest compares: engines and their groups are reference cycles
        if len(sys.modules) > num_modules:
            gc.freeze()  # half a million objects of imported modules, at which every collection would look for 0.3 s


def _answer(connection: Connection, path: str, module: str, name: str, payload: bytes) -> None:
    """Send "loaded" once the function is there, then "returned" with its result; in place of either, "raised" with the traceback."""
    _reset()
    try:
        function = getattr(_load(path, module), name)
        connection.send_bytes(to_bytes(("loaded", None)))
        args, kwargs = from_bytes(payload)
        answer = to_bytes(("returned", function(*args, **kwargs)))
    except BaseException:  # SystemExit too: a worker ends only by its pipe
        answer = to_bytes(("raised", traceback.format_exc()))
    connection.send_bytes(answer)


def _die_with(parent: int) -> None:
    """Ask the kernel to kill this process when pytest ends, however it ends: a rank stuck in a collective never reads its pipe."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the request was made
        os._exit(1)


def _reset() -> None:
    """Undo what a case may have left behind in this process."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    torch.set_num_threads(1)


_versions: dict[str, tuple[str, int]] = {}  # module name -> the file and modification time that sys.modules holds


def _load(path: str, name: str) -> ModuleType:
    """The module `name` from the file `path`, imported again only where the file changed.

    By path, since pytest's importmode=importlib puts no test folder on sys.path; under the name that pytest uses, so that objects of its
    classes can be pickled in both directions.
    """
    version = (path, os.stat(path).st_mtime_ns)
    module = sys.modules.get(name)
    if module is not None and _versions.setdefault(name, version) == version:
        return module
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    _versions[name] = version
    return module
