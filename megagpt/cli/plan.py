"""megagpt plan: memory, time and cost of a stage before any device is reserved. No torch."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

from megagpt.config.load import ConfigError, load_config, load_data
from megagpt.config.prepare import PrepareConfig
from megagpt.config.schema import RlhfConfig, StageConfig
from megagpt.pipeline.launch import read_hosts
from megagpt.plan import data, ppo, stage
from megagpt.plan.hardware import FOLDER, Hardware, load_hardware
from megagpt.plan.parents import read_stage
from megagpt.plan.propose import nothing_fits, propose_stage, words_of
from megagpt.plan.propose_ppo import propose_ppo
from megagpt.plan.show import table


def add_arguments(parser: argparse.ArgumentParser, verb: str) -> None:
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="configuration of a pretrain, sft, reward or rlhf stage")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override one key; may be repeated")
    known = ", ".join(sorted(path.stem for path in FOLDER.glob("*.yaml")))
    parser.add_argument("--hardware", default="a100-80gb", metavar="NAME|FILE", help=f"{known}, or a file like theirs (default: %(default)s)")
    parser.add_argument("--ranks", type=int, metavar="N", help="devices of the job (default: what the layout says)")
    parser.add_argument("--hostfile", type=Path, metavar="F", help="hosts, one `HOST slots=N` a line: proposes layouts for them, best first")
    parser.add_argument("--price", type=float, metavar="P", help="of one device for one hour, in your currency")
    parser.add_argument("--size", metavar="100TB", help="raw input of a data preparation (stage: prepare); --ranks are its cores, --price that of a core")
    parser.add_argument("--measured", type=Path, metavar="FOLDER", help="run folder of a data preparation to extrapolate from (default: figures of our own)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def run(options: argparse.Namespace, verb: str) -> int | None:
    _check(options)
    if load_data(options.config).get("stage") == "prepare":
        return _prepare(options)
    config, hardware = read_stage(options.config, options.set), load_hardware(options.hardware)
    if options.price is not None:
        hardware = hardware.model_copy(update={"price_per_device_hour": options.price})
    if options.hostfile is None:
        plan, proposals = _Planner(config, options.config.parent, hardware).of_ranks(options.ranks)
    else:
        slots = read_hosts(options.hostfile)
        hardware = hardware.model_copy(update={"devices_per_node": math.gcd(*slots.values())})
        planner = _Planner(config, options.config.parent, hardware)
        plan, proposals = planner.of_ranks(sum(slots.values())) if planner.is_auto else _on_hosts(planner, sum(slots.values()), options.hostfile)
    facts = ppo.as_json(plan) if isinstance(plan, ppo.PpoPlan) else stage.as_json(plan)
    words = [words_of(proposal) for proposal in proposals]
    print(json.dumps(facts | {"layouts": words}) if options.json else table(facts, words))
    return None


def _prepare(options: argparse.Namespace) -> None:
    if options.size is None:
        raise ConfigError("--size is missing: how much raw input, as --size 100TB")
    config = load_config(PrepareConfig, options.config, options.set)
    plan = data.plan_data(config, data.parse_size(options.size), options.ranks or 1, data.read_measured(options.measured))
    print(json.dumps(data.as_json(plan)) if options.json else "\n".join(data.lines(plan, options.price)))


def _check(options: argparse.Namespace) -> None:
    """Refuse numbers that mean nothing."""
    if options.price is not None and not 0 <= options.price < math.inf:
        raise ConfigError(f"--price {options.price:g}: must be a finite number from 0")
    if options.ranks is not None and options.ranks < 1:
        raise ConfigError(f"--ranks {options.ranks}: must be at least 1")
    if options.ranks is not None and options.hostfile is not None:
        raise ConfigError(f"--ranks {options.ranks} with --hostfile: the hosts' slots are the ranks; leave one of them out")


@dataclass(frozen=True)
class _Planner:
    """The two ways to plan, one for a single model and one for four, behind one call."""

    config: StageConfig | RlhfConfig
    folder: Path
    hardware: Hardware

    @property
    def is_auto(self) -> bool:
        """The placement is left to the planner."""
        return isinstance(self.config, RlhfConfig) and self.config.placement.is_auto

    def of_ranks(self, ranks: int | None) -> tuple[stage.StagePlan | ppo.PpoPlan, list]:
        """The configured layout; where the planner chooses, its choice, with all that it was chosen from."""
        if not self.is_auto:
            return self.plan(ranks), []
        if ranks is None:
            raise ConfigError("placement = auto: say how many devices the job has, by --ranks or --hostfile")
        models = ppo.models_of(self.config, self.folder)
        proposals = propose_ppo(self.config, models, self.hardware, ranks, micro_batches=(self.config.ppo.micro_batch_size,))
        if not proposals:
            raise ConfigError(nothing_fits(self.config, models, self.hardware, ranks))
        return proposals[0], proposals

    def plan(self, ranks: int | None) -> stage.StagePlan | ppo.PpoPlan:
        make = ppo.plan_ppo if isinstance(self.config, RlhfConfig) else stage.plan_stage
        return make(self.config, self.folder, self.hardware, ranks)

    def propose(self, ranks: int) -> list[stage.StagePlan] | list[ppo.PpoPlan]:
        if isinstance(self.config, RlhfConfig):
            return propose_ppo(self.config, ppo.models_of(self.config, self.folder), self.hardware, ranks)
        return propose_stage(self.config, stage.model_of(self.config, self.folder), self.hardware, ranks)


def _on_hosts(planner: _Planner, ranks: int, hostfile: Path) -> tuple[stage.StagePlan | ppo.PpoPlan, list]:
    """The configured layout on these hosts and better ones; one line where it does not fit, with what would."""
    proposals = planner.propose(ranks)
    try:
        plan = planner.plan(ranks)
        if plan.fits:
            return plan, proposals
        device = planner.hardware
        obstacle = f"needs {plan.bytes_per_rank / 1e9:.1f} GB a rank, and a device of {device.name} has {device.memory_bytes / 1e9:.0f}"
    except ConfigError as error:
        obstacle = str(error).partition("; ")[0]  # without its own advice, which knows nothing of memory
    if proposals:
        raise ConfigError(f"{hostfile}: {ranks} ranks: {obstacle}; {words_of(proposals[0])} would do")
    more = next((factor * ranks for factor in (2, 4, 8, 16, 32) if planner.propose(factor * ranks)), None)
    advice = f"{more} ranks would do" if more else f"nor on {32 * ranks} ranks"
    raise ConfigError(f"{hostfile}: {ranks} ranks: {obstacle}; no layout fits here; {advice}")
