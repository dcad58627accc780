"""The run folder: where each stage writes, and the manifest that ties the stages together."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from megagpt.config.schema import RecordsConfig, RecordSource, RunConfig
from megagpt.runtime import atomic


class RunFolder:
    """`<root>/<name>/` of one run.

    manifest.json maps each stage to {"config", "parents", "output", "finished"}: what went in (hashes), what came out.
    gates.json is the list of checks with a bound: {"stage", "name", "value", "bound", "verdict"}.
    """

    def __init__(self, run: RunConfig) -> None:
        self.path = Path(run.root) / run.name

    def stage(self, stage: str) -> Path:
        """Folder of a stage, made on first use."""
        folder = self.path / stage
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def resolve(self, path: str, suffix: str = "") -> Path:
        """A path from a configuration: as it stands, or within the run folder where it does not exist as it stands.

        Args:
            suffix: what must be appended for a file to exist (`.idx` for the prefix of a token file).
        """
        within = self.path / path
        if not Path(path + suffix).exists() and within.with_name(within.name + suffix).exists():
            return within
        return Path(path)

    def resolve_records(self, records: RecordsConfig) -> RecordsConfig:
        """The same with every file resolved."""

        def resolved(sources: list[RecordSource]) -> list[RecordSource]:
            return [source.model_copy(update={"path": str(self.resolve(source.path))}) for source in sources]

        valid = None if records.valid is None else resolved(records.valid)
        return records.model_copy(update={"train": resolved(records.train), "valid": valid})

    # ------------------------------------------------------------ manifest

    @property
    def manifest(self) -> dict[str, dict[str, Any]]:
        return _read(self.path / "manifest.json", {})

    def record(self, stage: str, **facts: Any) -> None:
        """Write a finished stage into the manifest. One process of the job calls this."""
        self.path.mkdir(parents=True, exist_ok=True)
        entry = {**atomic.without_nan(facts), "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        atomic.write_json(self.path / "manifest.json", {**self.manifest, stage: entry})

    def forget(self, stage: str) -> None:
        """Take out what an earlier run of the stage left in manifest and gates; called when the stage starts again."""
        if stage in self.manifest:
            atomic.write_json(self.path / "manifest.json", {name: entry for name, entry in self.manifest.items() if name != stage})
        if any(gate["stage"] == stage for gate in self.gates):
            atomic.write_json(self.path / "gates.json", [gate for gate in self.gates if gate["stage"] != stage])

    # ------------------------------------------------------------ gates

    @property
    def gates(self) -> list[dict[str, Any]]:
        return _read(self.path / "gates.json", [])

    def gate(self, stage: str, name: str, value: float, bound: str, passed: bool) -> None:
        """Record one check, replacing an earlier verdict of the same name."""
        kept = [gate for gate in self.gates if (gate["stage"], gate["name"]) != (stage, name)]
        verdict = {"stage": stage, "name": name, "value": value, "bound": bound, "verdict": "passed" if passed else "failed"}
        self.path.mkdir(parents=True, exist_ok=True)
        atomic.write_json(self.path / "gates.json", [*kept, atomic.without_nan(verdict)])


def _read(path: Path, default: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default
