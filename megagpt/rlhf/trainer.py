"""fit(): rollout, score, advantages, update, log; PPO with up to four models on their own grids (Ouyang et al. 2022)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from megagpt.checkpoint.layout import find_checkpoint
from megagpt.checkpoint.load import Checkpoint
from megagpt.checkpoint.stage_output import StageOutput
from megagpt.config.check import check_model, check_rlhf, check_role
from megagpt.config.load import ConfigError
from megagpt.config.schema import RlhfConfig
from megagpt.config.show import content_hash, one_line
from megagpt.data.order import step_rows
from megagpt.data.prompts import EncodedPrompt, load_prompts
from megagpt.data.token_data import TokenData
from megagpt.engine.schedule import learning_rate
from megagpt.parallel.placement import build_grids
from megagpt.parallel.route import share_numbers
from megagpt.rlhf.doctor import Doctor, DoctorStop, Finding, correlation
from megagpt.rlhf.evaluate import Evaluation, evaluate, win_rate
from megagpt.rlhf.experience import Experience
from megagpt.rlhf.four_models import FourModels, Starts, build_four_models
from megagpt.rlhf.kl import KlController
from megagpt.rlhf.pretrain_mix import PretrainMix, open_pretrain_mix
from megagpt.rlhf.reward_function import load_reward_function
from megagpt.rlhf.rollout import roll_out
from megagpt.rlhf.running import RunningMoments
from megagpt.rlhf.score import score
from megagpt.rlhf.update import MIX_SUM, POLICY_SUMS, VALUE_SUMS, policy_loss_of, update, value_loss_of
from megagpt.runtime import atomic
from megagpt.runtime.distributed import World, start, world_size_from_environment
from megagpt.runtime.log import is_main_rank, left_out, say
from megagpt.runtime.metrics_file import read_metrics
from megagpt.runtime.run_folder import RunFolder
from megagpt.runtime.stage_run import StageRun
from megagpt.tokenizer.chat import stop_ids as chat_stop_ids
from megagpt.tokenizer.tokenizer import Tokenizer

SAMPLES = 8
"""Answers that are kept of each evaluation."""


def fit(config: RlhfConfig, original: str = "") -> Path:
    """Run PPO; returns the policy's last checkpoint. Called on every rank of the job.

    Args:
        original: the configuration file as it was written, kept beside the resolved one.

    Raises:
        ConfigError, CheckpointError, DataError: before any process group exists.
    """
    grids = build_grids(config.placement, world_size_from_environment())
    check_rlhf(config, {role: grid.dp for role, grid in grids.items()})
    run = RunFolder(config.run)
    if config.reward_function is not None:
        load_reward_function(config.reward_function)  # now, where nobody waits for this rank
    policy_start = Checkpoint.open(find_checkpoint(config.policy, run)).language_model()
    reward_start = None if config.reward is None else Checkpoint.open(find_checkpoint(config.reward, run)).reward_model()
    held_out = None if config.held_out_reward is None else Checkpoint.open(find_checkpoint(config.held_out_reward, run)).reward_model()
    starts = Starts(policy_start, reward_start, held_out)
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
    tokenizer = policy_start.tokenizer()
    files = [str(run.resolve(path)) for path in config.prompts.files]
    prompts = load_prompts(config.prompts.model_copy(update={"files": files}), tokenizer)
    texts = open_pretrain_mix(config, tokenizer)

    fixed = {
        "prompts": content_hash(repr([prompt.tokens for prompt in prompts.train])), "ppo": {"rollout_batch_size": config.ppo.rollout_batch_size},
        "policy_optimizer": {"name": config.policy_optimizer.name}, "value_optimizer": {"name": config.value_optimizer.name},
        "lora": one_line(config.lora), "value_lora": one_line(config.value_lora),
    }
    saved = {"": "policy"} | ({"value": "value"} if "value" in grids else {}) | ({"ema": "moving average"} if config.ppo.ema_decay is not None else {})
    if texts is not None:
        fixed["pretrain_mix"] = texts.fingerprint
    fixed["models"] = list(saved.values())
    parents = {"policy": policy_start} | ({} if reward_start is None else {"reward": reward_start})
    output = StageOutput(config, tokenizer, parents, original=original, fixed=fixed, subfolders=tuple(saved))

    world = start(config.run.device, config.run.timeout_seconds)
    folder = output.open(world.device)
    models = build_four_models(config, grids, starts, world.device, [*prompts.train, *prompts.evaluation])
    trainer = Trainer(config, world, models, tokenizer, prompts.train, texts)
    eval_prompts = prompts.evaluation
    total = config.ppo.steps
    say(f"[rlhf] {len(prompts.train)} prompts, {len(eval_prompts)} kept apart{left_out(prompts.dropped)}")
    engines = [{"": models.policy, "value": models.value}.get(subfolder) for subfolder in saved]

    def restored(state: dict[str, Any] | None) -> dict[str, Any] | None:
        """The state of a checkpoint that the engines have been put back to, once the policy's average is as well."""
        if state is not None and models.average is not None and (checkpoint := output.resumed("ema")) is not None:
            models.average.load(checkpoint)
        return state

    resumed = restored(output.resume(*engines)) or {"step": 0}
    total = max(total, resumed["step"])
    trainer.load(resumed)

    def save(step: int) -> Path:
        with around.phase("save"):
            return _save(output, models, policy_start, starts.of("value"), step, {**trainer.state(), "opening": opening})

    def measure(step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """What is kept of an evaluation, and its metrics."""
        with around.phase("evaluation"):
            found = evaluate(models, config, eval_prompts, trainer.stop_ids, world.device)
        kept = {"reward": found.reward, "reward_std": found.reward_std, "kl": found.kl, "answers": _answers(tokenizer, found), "judged": found.judged}
        metrics = found.metrics()
        if opening is not None:
            metrics["eval_win_rate"] = kept["win_rate"] = win_rate(found.judged, opening["judged"])
        around.log.evaluation(step, metrics)
        if is_main_rank():
            _write_samples(folder / "samples.jsonl", step, _answers(tokenizer, found, SAMPLES))
        return kept, metrics

    def look(step: int, metrics: dict[str, Any]) -> list[Finding]:
        """What the doctor says."""
        findings = trainer.doctor.examine(step, metrics)
        for finding in findings:
            around.log.remark(step, "doctor", f"{finding.check}: {finding.text}")
        return findings

    def treat(step: int, metrics: dict[str, Any]) -> int | None:
        """What is done about it. Returns the step of the checkpoint that the run went back to, if it did."""
        findings = look(step, metrics)
        if not findings or findings[0].action == "warn":
            return None
        first = findings[0]
        if first.action == "rollback" and trainer.doctor.may_roll_back() and (state := restored(output.reload(*engines))) is not None:
            trainer.go_back(step, state)
            around.log.go_back(state["step"])
            say(f"[rlhf] doctor: back to step {state['step']}, and on with other prompts")
            return state["step"]
        if first.check != "finite" and step > 0:  # broken weights are not worth keeping
            save(step)
            output.wait()
        raise DoctorStop(f"step {step}: paused by the doctor ({first.check}: {first.text}); start again to go on, with doctor.{first.check}=warn to pass it")

    with StageRun(config, folder, total, resumed["step"], world.device) as around:
        step, opening = resumed["step"], resumed.get("opening")
        if opening is None:
            opening, metrics = measure(0)
            treat(0, metrics)
        while step < total:
            step += 1
            with around.step(step):
                metrics = trainer.step(step, around.phase)
            around.record(step, metrics)
            if around.due(config.every.evaluate, step):
                metrics |= measure(step)[1]
            went_back_to = treat(step, metrics)
            if went_back_to is not None:
                step = went_back_to
                continue
            around.end_step(step, save, output.wait)
        closing, metrics = measure(total)
        look(total, metrics)
        checkpoint = save(total)
        output.wait()
    _judge(output, config, opening, closing)
    if is_main_rank():
        pairs = zip(opening["answers"], closing["answers"], strict=True)
        samples = [{"prompt": a["prompt"], **{when: {"text": it["text"], "score": it["score"]} for when, it in (("before", a), ("after", b))}} for a, b in pairs]
        atomic.write_json(folder / "samples.json", samples)
    judge = "reward model" if held_out is None else "held-out reward model"
    say(f"[rlhf] answers preferred to those of the start by the {judge} on {closing['win_rate']:.0%} of {len(closing['judged'])} held-out prompts")
    output.finish(checkpoint, reward_before=opening["reward"], reward_after=closing["reward"], kl=closing["kl"], win_rate=closing["win_rate"])
    return checkpoint


class Trainer:
    """State of the PPO loop beside the models: which prompts come next, beta, and the moments of the scores."""

    def __init__(
        self, config: RlhfConfig, world: World, models: FourModels, tokenizer: Tokenizer, prompts: list[EncodedPrompt], texts: TokenData | None = None
    ) -> None:
        self.config, self.world, self.models, self.tokenizer, self.prompts = config, world, models, tokenizer, prompts
        self.kl = KlController(config.kl)
        self.scores = RunningMoments() if config.ppo.normalise_reward == "running" else None
        self.doctor = Doctor(config.doctor)
        self.skipped_rounds = 0
        """Rounds of prompts that were passed over after going back."""
        self.stop_ids = chat_stop_ids(tokenizer)
        self.mix = None
        if models.policy is not None and texts is not None:
            self.mix = PretrainMix(config.pretrain_mix, config.ppo, texts, models.policy, world.device)
        self._seconds: dict[str, float] = {}

    def state(self) -> dict[str, Any]:
        """What a resume needs beside the models."""
        known = {"kl_coefficient": self.kl.coefficient, "skipped_rounds": self.skipped_rounds, "doctor": self.doctor.state()}
        return known | ({} if self.scores is None else {"score_moments": self.scores.state()})

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state()`; what it lacks stays as it is."""
        self.skipped_rounds = state.get("skipped_rounds", self.skipped_rounds)
        if "doctor" in state:
            self.doctor.load(state["doctor"])
        self._load_moments(state)

    def go_back(self, step: int, state: dict[str, Any]) -> None:
        """The models are those of an earlier step again: so is the rest, but the prompts since then are passed over, and the doctor remembers."""
        self._load_moments(state)
        self.skipped_rounds += step - state["step"]
        self.doctor.went_back()

    def _load_moments(self, state: dict[str, Any]) -> None:
        self.kl.coefficient = state.get("kl_coefficient", self.kl.coefficient)
        if self.scores is not None:
            self.scores = RunningMoments(**state.get("score_moments", {}))

    def step(self, step: int, phase: Callable[[str], AbstractContextManager] = nullcontext) -> dict[str, float]:
        """One round: sample, score, update. Returns its metrics, the same on every rank."""
        seed, ppo = self.config.run.seed, self.config.ppo
        with self._phase(phase, "rollout"):
            samples = ppo.samples_per_prompt
            chosen = step_rows(seed, step - 1 + self.skipped_rounds, ppo.rollout_batch_size // samples, len(self.prompts))
            rows = [self.prompts[item] for _, item in chosen for _ in range(samples)]
            numbers = [epoch * samples + sample for epoch, _ in chosen for sample in range(samples)]
            rollout = roll_out(
                self.models, self.config, [p.tokens for p in rows], [p.number for p in rows], numbers,
                stop_ids=self.stop_ids, seed=seed, device=self.world.device,
            )
        with self._phase(phase, "score"):
            experience = score(self.models, rollout, self.config, self.kl.coefficient, self.world.device, self.scores)
        with self._phase(phase, "update"):
            updates = self._update(experience, step)
        metrics = {**_describe(experience), **updates, "kl_coefficient": self.kl.coefficient, **self._seconds}
        self.kl.update(metrics["kl"], ppo.rollout_batch_size)
        if step % self.config.every.log == 0:
            self._peek(experience)
        return metrics

    def _update(self, experience: Experience, step: int) -> dict[str, float]:
        """Policy and value learn at the same time where they live on different ranks, one after the other where they share."""
        config, ppo, seed = self.config, self.config.ppo, self.config.run.seed
        found: dict[str, dict[str, float] | None] = {"policy": None, "value": None}
        texts = (MIX_SUM,) if config.pretrain_mix is not None else ()
        reported = {"policy": (*POLICY_SUMS, *texts, "grad_norm", "updates", "first_ratio_error"), "value": (*VALUE_SUMS, "grad_norm")}
        learns = [role for role in reported if role in self.models.grids and (role == "value" or step > ppo.value_warmup_steps)]
        if self.models.policy is not None and "policy" in learns:
            lr = learning_rate(config.policy_optimizer, step, ppo.steps)
            loss = policy_loss_of(self.models.policy, config, self.kl.coefficient)
            after = self.models.average.update if self.models.average is not None else lambda: None
            found["policy"] = update(self.models.policy, experience, ppo, loss, POLICY_SUMS, lr=lr, seed=seed, step=step, after_step=after, mix=self.mix)
        if self.models.value is not None:
            lr = learning_rate(config.value_optimizer, step, ppo.steps)
            found["value"] = update(self.models.value, experience, ppo, value_loss_of(ppo), VALUE_SUMS, lr=lr, seed=seed, step=step)
        metrics = {}
        for role in learns:
            names = reported[role]
            known = None if found[role] is None else [found[role][name] for name in names]
            shared = share_numbers(known, len(names), self.models.grids[role], self.world.device)
            metrics |= {name if name.startswith(role) else f"{role}_{name}": value for name, value in zip(names, shared)}
        return metrics

    def _peek(self, experience: Experience) -> None:
        """One decoded sample: the fastest way to see what the numbers mean."""
        rollout, length = experience.rollout, int(experience.rollout.lengths[0])
        text = self.tokenizer.decode(rollout.tokens[0, :length].tolist(), show_special=True)
        say(f"[rlhf] sample (score {float(experience.scores[0]):+.2f}, kl {float(experience.kl[0]):.2f}): {text!r}")

    @contextmanager
    def _phase(self, phase: Callable[[str], AbstractContextManager], name: str) -> Iterator[None]:
        began = time.perf_counter()
        with phase(name):
            yield
        self._seconds[f"{name}_seconds"] = time.perf_counter() - began


def _describe(experience: Experience) -> dict[str, float]:
    """Metrics of a scored rollout, before the update."""
    mask, rollout = experience.mask, experience.rollout
    count = mask.sum()
    metrics = {
        "reward": float(experience.scores.mean()),
        "reward_std": float(experience.scores.std()),
        "kl": float(experience.kl.mean()),
        "length": float(rollout.response_lengths.mean()),
        "stopped": float(rollout.stopped.float().mean()),
        "logprob": float((experience.logprobs * mask).sum() / count),
        "sampler_gap": experience.sampler_gap,
        "reward_length_correlation": correlation(experience.scores.tolist(), rollout.response_lengths.tolist()),
        "outside_response": float(sum((x * (1 - mask)).abs().sum() for x in (experience.advantages, experience.returns) if x is not None)),
    }
    return metrics if experience.values is None else {**metrics, "explained_variance": _explained_variance(experience.values, experience.returns, mask)}


def _explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> float:
    """1 - sum (R - V)^2 / sum (R - mean R)^2."""
    mean = (returns * mask).sum() / mask.sum()
    residual, spread = (((returns - other).square() * mask).sum() for other in (values, mean))
    return float(1.0 - residual / spread.clamp(min=1e-12))


def _check_context(config: RlhfConfig, checkpoint: Checkpoint, role: str) -> None:
    longest, context = config.prompts.max_prompt_length + config.prompts.max_response_length, checkpoint.model_config.max_sequence_length
    if longest > context:
        raise ConfigError(f"prompts: max_prompt_length + max_response_length = {longest}: longer than the {role}'s context of {context}")


def _save(output: StageOutput, models: FourModels, policy: Checkpoint, reward: Checkpoint, step: int, facts: dict[str, Any]) -> Path:
    """Policy, its average and the value model, each from its own grid. Returns where the policy lies."""
    if models.policy is not None:
        output.save(step, models.policy, policy.model_config, head="lm", **facts)
    if models.average is not None:
        output.save(step, models.policy, policy.model_config, head="lm", subfolder="ema", average=models.average.canonical_parameters(), **facts)
    if models.value is not None:
        statistics = {"reward_mean": models.reward_mean, "reward_std": models.reward_std}
        output.save(step, models.value, reward.model_config, head="scalar", subfolder="value", **facts, **statistics)
    return output.folder / "checkpoints" / f"step_{step}"


def _judge(output: StageOutput, config: RlhfConfig, before: dict[str, Any], after: dict[str, Any]) -> None:
    gates = config.gates
    if gates.min_reward_gain_std is not None:
        gain = (after["reward"] - before["reward"]) / before["reward_std"]
        output.gate("reward_gain_std", gain, f">= {gates.min_reward_gain_std}", gain >= gates.min_reward_gain_std)
    if gates.max_kl is not None:
        output.gate("kl", after["kl"], f"<= {gates.max_kl}", after["kl"] <= gates.max_kl)


def _answers(tokenizer: Tokenizer, evaluation: Evaluation, count: int = 3) -> list[dict[str, Any]]:
    """The first conversations of an evaluation."""
    rollout, found = evaluation.rollout, []
    for row in range(min(count, evaluation.scores.numel())):
        begin, end = int(rollout.prompt_lengths[row]), int(rollout.lengths[row])
        prompt, text = (tokenizer.decode(rollout.tokens[row, part].tolist()) for part in (slice(begin), slice(begin, end)))
        found.append({
            "prompt": prompt, "text": text, "score": float(evaluation.scores[row]), "kl": float(evaluation.kls[row]), "length": end - begin,
        })  # fmt: skip
    return found


def _write_samples(path: Path, step: int, answers: list[dict[str, Any]]) -> None:
    """Add what the policy says after a step; what a run that went back has said of later steps goes."""
    kept = [row for row in read_metrics(path)[0] if row["step"] < step]
    rows = kept + [{"step": step, **{name: value for name, value in answer.items() if name != "text"}, "answer": answer["text"]} for answer in answers]
    atomic.write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
