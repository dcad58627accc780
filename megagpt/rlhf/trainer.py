"""fit(): PPO with up to four models on their own grids; measured, saved, and watched by the doctor between the rounds."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megagpt.checkpoint.layout import find_checkpoint
from megagpt.checkpoint.load import Checkpoint
from megagpt.checkpoint.stage_output import StageOutput
from megagpt.config.check import check_model, check_rlhf, check_role
from megagpt.config.load import ConfigError
from megagpt.config.schema import RlhfConfig
from megagpt.config.show import content_hash, one_line
from megagpt.data.prompts import EncodedPrompt, load_prompts
from megagpt.data.token_data import TokenData
from megagpt.parallel.grid import Grid
from megagpt.parallel.groups import host_group
from megagpt.parallel.placement import build_grids
from megagpt.rlhf.doctor import DoctorStop, Finding
from megagpt.rlhf.evaluate import Evaluation, evaluate, reward_gain, win_rate
from megagpt.rlhf.four_models import Starts, build_four_models
from megagpt.rlhf.judge import Judge, JudgeError
from megagpt.rlhf.memory import MemoryMeter
from megagpt.rlhf.place import choose_placement
from megagpt.rlhf.ppo import Trainer
from megagpt.rlhf.pretrain_mix import open_pretrain_mix
from megagpt.rlhf.reward_function import load_reward_function, prompt_text
from megagpt.runtime import atomic
from megagpt.runtime.distributed import start, stop, world_size_from_environment
from megagpt.runtime.log import is_main_rank, left_out, say
from megagpt.runtime.metrics_file import read_metrics
from megagpt.runtime.run_folder import RunFolder
from megagpt.runtime.stage_run import StageRun
from megagpt.runtime.timeline import Span, Timeline, chrome_trace
from megagpt.tokenizer.tokenizer import Tokenizer

SAMPLES = 8
"""Answers that are kept of each evaluation."""
SHOWN = 3
"""Pairs of answers, before and after, in samples.json."""


def fit(config: RlhfConfig, original: str = "") -> Path:
    """Run PPO; returns the policy's last checkpoint. Called on every rank of the job.

    Args:
        original: the configuration file as it was written, kept beside the resolved one.

    Raises:
        ConfigError, CheckpointError, DataError: before any process group exists, unless the placement is left to the planner.
    """
    if config.placement.is_auto:
        config = choose_placement(config, start(config.run.device, config.run.timeout_seconds))
    grids = build_grids(config.placement, world_size_from_environment())
    check_rlhf(config, {role: grid.dp for role, grid in grids.items()})
    run = RunFolder(config.run)
    if config.reward_function is not None:
        load_reward_function(config.reward_function)  # now, where nobody waits for this rank
    if config.judge is not None and is_main_rank():
        Judge(config.judge)  # now: its key must be there, on the rank that asks
    starts = _open_starts(config, run, grids)
    tokenizer = starts.policy.tokenizer()
    files = [str(run.resolve(path)) for path in config.prompts.files]
    prompts = load_prompts(config.prompts.model_copy(update={"files": files}), tokenizer)
    texts = open_pretrain_mix(config, tokenizer)
    saved = {"": "policy"} | ({"value": "value"} if "value" in grids else {}) | ({"ema": "moving average"} if config.ppo.ema_decay is not None else {})
    parents = {"policy": starts.policy} | ({} if starts.reward is None else {"reward": starts.reward})
    output = StageOutput(
        config, tokenizer, parents, original=original, fixed=_fixed(config, prompts.train, texts, list(saved.values())), subfolders=tuple(saved)
    )

    world = start(config.run.device, config.run.timeout_seconds)
    output.open(world.device)
    models = build_four_models(config, grids, starts, world.device, [*prompts.train, *prompts.evaluation])
    trainer = Trainer(config, world, models, tokenizer, prompts.train, texts)
    say(f"[rlhf] {len(prompts.train)} prompts, {len(prompts.evaluation)} kept apart{left_out(prompts.dropped)}")
    stage = _Stage(config, output, starts, trainer, prompts.evaluation, tuple(saved))
    return stage.run()


class _Stage:
    """What happens around the rounds of PPO: resume, evaluations, checkpoints, and what the doctor orders."""

    def __init__(
        self, config: RlhfConfig, output: StageOutput, starts: Starts, trainer: Trainer, eval_prompts: list[EncodedPrompt], saved: tuple[str, ...]
    ) -> None:
        self.config, self.output, self.starts, self.trainer, self.eval_prompts = config, output, starts, trainer, eval_prompts
        self.models = trainer.models
        self.engines = [{"": self.models.policy, "value": self.models.value}.get(subfolder) for subfolder in saved]
        self.judge = Judge(config.judge) if config.judge is not None and is_main_rank() else None
        self.opening: dict[str, Any] | None = None
        """The evaluation before the first round; goes with every checkpoint, because the last one is compared with it."""

    def run(self) -> Path:
        """Resume, all rounds, verdict. Returns the last checkpoint of the policy."""
        config, trainer = self.config, self.trainer
        resumed = self._restored(self.output.resume(*self.engines)) or {"step": 0}
        trainer.load(resumed)
        total = max(config.ppo.steps, resumed["step"])
        with StageRun(config, self.output.folder, total, resumed["step"], trainer.world.device) as self.around:
            step, self.opening = resumed["step"], resumed.get("opening")
            memory = MemoryMeter(config, self.models, self.starts, trainer.world.device, self.output.folder, min(step + 2, total))
            trainer.timeline = Timeline(trainer.world.device, lambda name: _both(self.around.phase(name), memory.span(name)))
            if self.opening is None:
                self.opening, metrics = self.measure(0)
                self.treat(0, metrics)
            while step < total:
                step += 1
                memory.begin(step, trainer.questions(step).prompts)
                with self.around.step(step):
                    metrics = trainer.step(step)
                metrics |= memory.tell()
                self.around.record(step, metrics)
                if self.around.due(config.every.evaluate, step):
                    metrics |= self.measure(step)[1]
                went_back_to = self.treat(step, metrics)
                if went_back_to is not None:
                    step = went_back_to
                    continue
                if step % config.every.log == 0:
                    self.write_timeline()
                self.around.end_step(step, self.save, self.output.wait)
            closing, metrics = self.measure(total)
            self.look(total, metrics)
            checkpoint = self.save(total)
            self.output.wait()
            self.write_timeline()
        self._finish(checkpoint, closing)
        return checkpoint

    def measure(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """What is kept of an evaluation, and its metrics."""
        trainer, tokenizer = self.trainer, self.trainer.tokenizer
        with trainer.timeline.span("evaluation"):
            found = evaluate(self.models, self.config, self.eval_prompts, trainer.stop_ids, trainer.world.device, trainer.timeline)
        answers = _answers(tokenizer, found, SHOWN if self.config.judge is None else len(self.eval_prompts))
        kept = {"reward": found.reward, "reward_std": found.reward_std, "kl": found.kl, "answers": answers, "judged": found.judged}
        metrics = found.metrics()
        if self.opening is not None:
            metrics["eval_win_rate"] = kept["win_rate"] = win_rate(found.judged, self.opening["judged"])
        self.around.log.evaluation(step, metrics)
        if is_main_rank():
            _write_samples(self.output.folder / "samples.jsonl", step, _answers(tokenizer, found, SAMPLES))
        return kept, metrics

    def save(self, step: int) -> Path:
        """Policy, its average and the value model, each from its own grid. Returns where the policy lies."""
        models, policy = self.models, self.starts.policy.model_config
        facts = {**self.trainer.state(), "opening": self.opening}
        with self.trainer.timeline.span("save"):
            if models.policy is not None:
                self.output.save(step, models.policy, policy, head="lm", **facts)
            if models.average is not None:
                self.output.save(step, models.policy, policy, head="lm", subfolder="ema", average=models.average.canonical_parameters(), **facts)
            if models.value is not None:
                statistics = {"reward_mean": 0.0, "reward_std": 1.0}  # its numbers are on the normalised scale
                self.output.save(step, models.value, self.starts.of("value").model_config, head="scalar", subfolder="value", **facts, **statistics)
        return self.output.folder / "checkpoints" / f"step_{step}"

    def write_timeline(self) -> None:
        """`timeline.json`: what every rank did in the last rounds, for Perfetto and for the report. All ranks call this."""
        everyone: list[list[Span]] | None = [[] for _ in range(self.trainer.world.size)] if is_main_rank() else None
        dist.gather_object(self.trainer.timeline.spans, everyone, group=host_group(self.config.run.timeout_seconds))
        if everyone is not None:
            self.around.log.replace_file("timeline.json", chrome_trace(everyone))

    def look(self, step: int, metrics: dict[str, Any]) -> list[Finding]:
        """What the doctor says."""
        findings = self.trainer.doctor.examine(step, metrics)
        for finding in findings:
            self.around.log.remark(step, "doctor", f"{finding.check}: {finding.text}")
        return findings

    def treat(self, step: int, metrics: dict[str, Any]) -> int | None:
        """What is done about it. Returns the step of the checkpoint that the run went back to, if it did.

        Raises:
            DoctorStop: the run pauses, with a checkpoint on disk.
        """
        findings = self.look(step, metrics)
        if not findings or findings[0].action == "warn":
            return None
        first, trainer = findings[0], self.trainer
        if first.action == "rollback" and trainer.doctor.may_roll_back() and (state := self._restored(self.output.reload(*self.engines))) is not None:
            trainer.go_back(step, state)
            self.around.log.go_back(state["step"])
            self.around.log.remark(state["step"], "doctor", f"back from step {step}, and on with other prompts ({first.check}: {first.text})")
            return state["step"]
        if first.check != "finite" and step > 0:  # broken weights are not worth keeping
            self.save(step)
            self.output.wait()
        raise DoctorStop(f"step {step}: paused by the doctor ({first.check}: {first.text}); start again to go on, with doctor.{first.check}=warn to pass it")

    def _restored(self, state: dict[str, Any] | None) -> dict[str, Any] | None:
        """The state of a checkpoint that the engines have been put back to, once the policy's average is as well."""
        if state is not None and self.models.average is not None and (checkpoint := self.output.resumed("ema")) is not None:
            self.models.average.load(checkpoint)
        return state

    def _finish(self, checkpoint: Path, closing: dict[str, Any]) -> None:
        """Gates, answers before and after, and the word that the stage is done."""
        opening, gates, output = self.opening, self.config.gates, self.output
        if gates.min_reward_gain_std is not None:
            gain = reward_gain(opening, closing)
            output.gate("reward_gain_std", gain, f">= {gates.min_reward_gain_std}", gain >= gates.min_reward_gain_std)
        if gates.max_kl is not None:
            output.gate("kl", closing["kl"], f"<= {gates.max_kl}", closing["kl"] <= gates.max_kl)
        if is_main_rank():
            pairs = list(zip(opening["answers"], closing["answers"]))[:SHOWN]
            samples = [{"prompt": a["prompt"], **{when: {"text": it["text"], "score": it["score"]} for when, it in (("before", a), ("after", b))}} for a, b in pairs]
            atomic.write_json(output.folder / "samples.json", samples)
        judge = "reward model" if self.config.held_out_reward is None else "held-out reward model"
        say(f"[rlhf] answers preferred to those of the start by the {judge} on {closing['win_rate']:.0%} of {len(closing['judged'])} held-out prompts")
        output.finish(checkpoint, reward_before=opening["reward"], reward_after=closing["reward"], kl=closing["kl"], win_rate=closing["win_rate"])
        if self.config.judge is not None:
            stop()  # the other ranks have nothing to wait for, and a judge may take longer than any collective
        if self.judge is not None:
            self._ask_judge(opening["answers"], closing["answers"])

    def _ask_judge(self, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> None:
        """`judge.json`. The stage is done by now, whatever a server says."""
        questions = [(new["prompt"], new["text"], old["text"]) for new, old in zip(after, before)]  # fewer where a run got its judge later
        try:
            verdict = self.judge.compare(*map(list, zip(*questions)))
        except JudgeError as error:
            say(f"[rlhf] no verdict: {error}")
            return
        atomic.write_json(self.output.folder / "judge.json", {"model": self.config.judge.model, **verdict.as_json()})
        say(
            f"[rlhf] {self.config.judge.model} prefers the answers to those of the start on {verdict.win_rate:.0%} of {verdict.questions} held-out "
            f"prompts ({verdict.inconsistent} verdicts depend on the order, {verdict.unreadable} replies cannot be read)"
        )


@contextlib.contextmanager
def _both(first: AbstractContextManager, second: AbstractContextManager) -> Iterator[None]:
    with first, second:
        yield


def _open_starts(config: RlhfConfig, run: RunFolder, grids: dict[str, Grid]) -> Starts:
    """The checkpoints that the models start from, once each fits its grid, its context and its tokenizer."""
    policy = Checkpoint.open(find_checkpoint(config.policy, run)).language_model()
    reward, held_out = (
        None if name is None else Checkpoint.open(find_checkpoint(name, run)).reward_model() for name in (config.reward, config.held_out_reward)
    )
    starts = Starts(policy, reward, held_out)
    for judge in starts.judges.values():
        if starts.is_foreign(judge):
            judge.tokenizer()  # now: it must be there
    for role, grid in (grids | ({} if held_out is None else {"held_out": grids.get("reward", grids["reference"])})).items():
        start_from = starts.of(role)
        if role == "held_out":
            check_model(start_from.model_config, grid.tp, grid.pp, "held_out_reward")
        else:
            check_role(config, role, start_from.model_config, grid.tp, grid.pp)
        if not starts.is_foreign(start_from):  # what others read is counted in their own tokens, answer by answer
            _check_context(config, start_from, role)
    return starts


def _check_context(config: RlhfConfig, checkpoint: Checkpoint, role: str) -> None:
    longest, context = config.prompts.max_prompt_length + config.prompts.max_response_length, checkpoint.model_config.max_sequence_length
    if longest > context:
        raise ConfigError(f"prompts: max_prompt_length + max_response_length = {longest}: longer than the {role}'s context of {context}")


def _fixed(config: RlhfConfig, prompts: list[EncodedPrompt], texts: TokenData | None, models: list[str]) -> dict[str, Any]:
    """What a resumed run must have in common with the one before."""
    fixed = {
        "prompts": content_hash(repr([prompt.tokens for prompt in prompts])), "ppo": {"rollout_batch_size": config.ppo.rollout_batch_size},
        "policy_optimizer": {"name": config.policy_optimizer.name}, "value_optimizer": {"name": config.value_optimizer.name}, "models": models,
        "lora": one_line(config.lora), "value_lora": one_line(config.value_lora),
    }
    return fixed if texts is None else fixed | {"pretrain_mix": texts.fingerprint}


def _answers(tokenizer: Tokenizer, evaluation: Evaluation, count: int) -> list[dict[str, Any]]:
    """The first conversations of an evaluation."""
    rollout, found = evaluation.rollout, []
    for row in range(min(count, evaluation.scores.numel())):
        begin, end = int(rollout.prompt_lengths[row]), int(rollout.lengths[row])
        tokens = rollout.tokens[row, :end].tolist()
        prompt, text = prompt_text(tokens[:begin], tokenizer), tokenizer.decode(tokens[begin:])
        found.append({
            "prompt": prompt, "text": text, "score": float(evaluation.scores[row]), "kl": float(evaluation.kls[row]), "length": end - begin,
        })  # fmt: skip
    return found


def _write_samples(path: Path, step: int, answers: list[dict[str, Any]]) -> None:
    """Add what the policy says after a step; what a run that went back has said of later steps goes."""
    kept = [row for row in read_metrics(path)[0] if row["step"] < step]
    rows = kept + [{"step": step, **{name: value for name, value in answer.items() if name != "text"}, "answer": answer["text"]} for answer in answers]
    atomic.write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
