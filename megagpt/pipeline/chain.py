"""Run the stages of a pipeline one after the other, each as a job of its own; skip those whose inputs did not change."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from megagpt.config.chain import STAGES, PipelineConfig, PipelineStep
from megagpt.config.load import ConfigError, apply_overrides, build_config, load_data
from megagpt.config.prepare import PrepareConfig
from megagpt.config.schema import Frozen
from megagpt.pipeline.launch import launch_command, read_hosts
from megagpt.prepare.shards import plan_shards
from megagpt.runtime import atomic
from megagpt.runtime.run_folder import RunFolder
from megagpt.runtime.stop_request import EXIT_STOPPED, listening, requested

TEXT_STAGES = ("data", "prepare", "tokenizer", "tokenize")
"""One process on this machine, whatever the hostfile."""
VERB_WORDS = {"data": ["data", "run"], "prepare": ["data", "run"], "tokenizer": ["tokenizer", "train"]}
"""Verbs that take a second word; the others are called like their stage."""
OPERATIONAL = {"run": {"device", "timeout_seconds", "resume", "wandb_project"}, "every": True, "profile": True}
"""Settings on which no result depends but by rounding: where a step runs, how it is watched, when it prints, evaluates and saves."""
POLL_SECONDS = 0.2


def run_chain(config: PipelineConfig, folder: Path, *, stage_overrides: list[str], hostfile: Path | None, dry_run: bool) -> int:
    """Run every step that is not finished; returns the first non-zero exit code, or 0. SIGTERM and SIGUSR1 are handed on to the running step.

    Args:
        folder: where the pipeline file lies; its stage files are relative to it.
        stage_overrides: `stage.a.b=c` texts.
        hostfile: handed to the deepspeed launcher.

    A step is finished when `finished.json` in its folder carries the hash of its resolved configuration (without what is only
    operational) and of all that came before it. The file is written after the step's own process ended well, so a killed step runs again, and with it
    all that comes after it.

    Raises:
        ConfigError: the hostfile or any stage's configuration is wrong; found before the first stage starts.
    """
    run = RunFolder(config.run)
    resolved = [(step, *_resolve(step, config, folder, stage_overrides)) for step in config.steps]
    if hostfile is not None:
        read_hosts(hostfile)
    with contextlib.nullcontext() if dry_run else _only_one(run), listening():
        key = ""
        for number, (step, stage_config, overrides) in enumerate(resolved, 1):
            before, key = key, _key(key, stage_config)
            marker = run.path / step.stage / "finished.json"
            head = f"[{number}/{len(resolved)}] {step.stage}"
            if marker.exists() and json.loads(marker.read_text(encoding="utf-8"))["key"] == key:
                print(f"{head}: finished before, skipped", flush=True)
                continue
            if dry_run:
                print(f"{head}: {shlex.join(_command(step, folder, overrides, hostfile))}", flush=True)
                continue
            if requested():
                print(f"{head}: not started, since a stop was requested; the same command goes on here", file=sys.stderr, flush=True)
                return EXIT_STOPPED
            print(f"{head}: {step.num_ranks} rank{'s' * (step.num_ranks > 1)}", flush=True)
            if _begin(run, [later.stage for later, *_ in resolved[number - 1 :]], before):
                overrides = [*overrides, "run.resume=auto"]  # under run.resume=never the same command would not go on
            run.forget(step.stage)
            began = time.perf_counter()
            code = _run_step(_command(step, folder, overrides, hostfile))
            if code == EXIT_STOPPED or (code != 0 and requested()):
                print(f"{head}: stopped on request; the same command goes on here", file=sys.stderr, flush=True)
                return EXIT_STOPPED
            if code == 0 and step.stage not in run.manifest:
                code = 1  # what every stage does last was not done: a launcher over several hosts answers 0 when it was killed
            if code != 0:
                print(f"{head}: failed with exit code {code}; the same command starts again here", file=sys.stderr, flush=True)
                return code if code > 0 else 128 - code
            seconds = round(time.perf_counter() - began, 1)
            atomic.write_json(run.stage(step.stage) / "finished.json", {"key": key, "seconds": seconds})
            print(f"{head}: done in {seconds:.0f} s", flush=True)
    return 0


def _resolve(step: PipelineStep, config: PipelineConfig, folder: Path, stage_overrides: list[str]) -> tuple[Frozen, list[str]]:
    """A step's configuration with the pipeline's run section, and the `--set` texts that lead to it."""
    path = folder / step.config
    overrides = [f"run.{name}={json.dumps(value)}" for name, value in config.run.model_dump(mode="json").items()]
    for text in stage_overrides:
        stage, separator, rest = text.partition(".")
        if not separator or stage not in STAGES:
            raise ConfigError(f"--stage-set {text}: expected STAGE.key=value with STAGE one of {', '.join(STAGES)}")
        if stage == step.stage:
            overrides.append(rest)
    return build_config(STAGES[step.stage], apply_overrides(load_data(path), overrides), str(path)), overrides


def _key(before: str, stage_config: Frozen) -> str:
    """Hash of all that a step's result depends on: the steps before it, its configuration, its source folder's files."""
    parts = [before, stage_config.model_dump_json(exclude=OPERATIONAL)]
    source = Path(getattr(stage_config, "source", ""))
    if getattr(stage_config, "source", None) and source.is_dir():
        parts += [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in sorted(source.rglob("*")) if path.is_file()]
    if isinstance(stage_config, PrepareConfig):
        parts.append(plan_shards(stage_config)["key"])
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _begin(run: RunFolder, stages: list[str], before: str) -> bool:
    """Make way for the first of the stages: nothing that it or a later one left is finished any more. True: it goes on.

    A stage that was interrupted goes on from its checkpoints, also under a changed configuration of its own (it refuses what
    does not fit). One that was finished, or whose predecessors (their hash is `before`) have changed, starts from nothing, and
    what it left is kept as `<stage>.old` until that happens again.
    """
    path, stage = run.path / "started.json", stages[0]
    finished = [name for name in stages if (run.path / name / "finished.json").exists()]
    started = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    started |= dict.fromkeys(finished)
    atomic.write_json(path, started)
    for name in finished:
        (run.path / name / "finished.json").unlink()
    if started.get(stage, before) != before and (run.path / stage).exists():
        aside = run.path / f"{stage}.old"
        shutil.rmtree(aside, ignore_errors=True)
        (run.path / stage).rename(aside)
        print(f"{stage}: starts from nothing, since its inputs are not what they were; what it had left is now {aside}", flush=True)
    atomic.write_json(path, {**started, stage: before})
    return started.get(stage) == before


def _run_step(command: list[str]) -> int:
    """The exit code of a step; when this process is asked to stop, so is the step."""
    process, asked = subprocess.Popen(command, preexec_fn=_die_with_parent), False
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(POLL_SECONDS)
        if requested() and not asked:
            process.terminate()
            asked = True


def _command(step: PipelineStep, folder: Path, overrides: list[str], hostfile: Path | None) -> list[str]:
    """The command line of a step: the deepspeed launcher for several ranks or hosts, plain Python for one and for work on text."""
    words = [*VERB_WORDS.get(step.stage, [step.stage]), "--config", str(folder / step.config)]
    words += [word for text in overrides for word in ("--set", text)]
    if step.stage in TEXT_STAGES or (hostfile is None and step.num_ranks == 1):
        return [sys.executable, "-m", "megagpt", *words]
    return launch_command(words, step.num_ranks, hostfile)


@contextlib.contextmanager
def _only_one(run: RunFolder) -> Iterator[None]:
    """Two chains in one run folder would overwrite each other."""
    run.path.mkdir(parents=True, exist_ok=True)
    with open(run.path / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"run.name = {run.path.name}: another `megagpt run` works in {run.path}; wait for it or choose another name") from None
        yield


def _die_with_parent() -> None:
    """The stage ends when this process is killed, even by SIGKILL (Linux: prctl PR_SET_PDEATHSIG)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
        if os.getppid() == 1:
            os._exit(1)
