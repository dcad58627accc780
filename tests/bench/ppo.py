"""Speed and memory of PPO, side by side: megagpt and TRL's PPOTrainer, all four models in one process.

    python tests/bench/ppo.py [--rounds 2] [--steps 6]      (inside .venv; about 3 minutes)

Same starting weights (4 layers x 256, vocabulary 8,192), prompts (32 tokens), responses (64), batch (16), one pass over each rollout, learning
rates and KL coefficient, float32, 2 threads. Both run once in every round; ratios are medians over the rounds. TRL gets an environment of its
own, `.venv-bench`. The last line is one JSON object. README.md says what the figures mean.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from pretrain import PEERS, ROOT, install_peers

LAYERS, WIDTH, HEADS, VOCABULARY, CONTEXT = 4, 256, 4, 8192, 128
BATCH, PROMPT, RESPONSE, PROMPTS = 16, 32, 64, 512
POLICY_LR, KL, WARM_UP = 1e-5, 0.05, 1
FLOPS = 2 * BATCH * (PROMPT + RESPONSE) * (
    12 * LAYERS * WIDTH**2 * (1 + 1 + 1 + 1 + 3 + 3)  # sampling, reference, reward, value; forward and backward of policy and value
    + VOCABULARY * WIDTH * (1 + 1 + 3)  # heads of sampling, reference and policy
)  # fmt: skip
"""Of a step whose log-probabilities come from sampling; attention and scalar heads left out."""


# ---------------------------------------------------------------- what both start from


def prepare(folder: Path) -> None:
    """In the peers' environment: policy, tokenizer and prompts."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    GPT2LMHeadModel(gpt2_config(GPT2Config)).save_pretrained(folder / "policy")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words = letters + [f"word{number}" for number in range(VOCABULARY - len(letters) - len(special))]
    tokenizer = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words + special)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[0], pad_token=special[0])
    fast.save_pretrained(folder / "policy")
    (folder / "prompts.json").write_text(json.dumps(torch.randint(300, VOCABULARY - 300, (PROMPTS, PROMPT)).tolist()))


def gpt2_config(kind, **more):
    return kind(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=VOCABULARY - 3, eos_token_id=VOCABULARY - 3, pad_token_id=VOCABULARY - 3, **more,
    )


# ---------------------------------------------------------------- the contenders, each in a process of its own


def train_trl(folder: Path, steps: int) -> tuple[list[float], list[float]]:
    """Seconds and mean score of each step."""
    import torch
    from datasets import Dataset
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, TrainerCallback
    from trl import PPOConfig, PPOTrainer

    policy, reference = (GPT2LMHeadModel.from_pretrained(folder / "policy") for _ in range(2))
    scalar = [GPT2ForSequenceClassification(gpt2_config(GPT2Config, num_labels=1)) for _ in range(2)]
    for model in scalar:
        model.transformer.load_state_dict(policy.transformer.state_dict())
        model.score.weight.data.copy_(load_file(folder / "head.safetensors")["weight"])
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            ends.append(time.perf_counter())

    arguments = PPOConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=BATCH, gradient_accumulation_steps=1, num_mini_batches=1, num_ppo_epochs=1,
        local_rollout_forward_batch_size=BATCH, response_length=RESPONSE, total_episodes=BATCH * steps, learning_rate=POLICY_LR, kl_coef=KL,
        lr_scheduler_type="constant", temperature=1.0, stop_token=None, num_sample_generations=0, save_strategy="no", report_to=[], logging_steps=1,
        use_cpu=True, bf16=False, seed=1, disable_tqdm=True,
    )
    rows = Dataset.from_dict({"input_ids": json.loads((folder / "prompts.json").read_text())})
    trainer = PPOTrainer(
        args=arguments, processing_class=AutoTokenizer.from_pretrained(folder / "policy", padding_side="left"), model=policy, ref_model=reference,
        reward_model=scalar[0], value_model=scalar[1], train_dataset=rows, eval_dataset=rows.select(range(BATCH)), callbacks=[Clock()],
    )
    torch.manual_seed(1)
    began = time.perf_counter()
    trainer.train()
    scores = [row["objective/scores"] for row in trainer.state.log_history if "objective/scores" in row]
    return [after - before for before, after in zip([began, *ends], ends)], scores


def train_megagpt(folder: Path, steps: int) -> tuple[list[float], list[float]]:
    """Seconds and mean score of each step."""
    from megagpt.checkpoint.layout import find_checkpoint
    from megagpt.checkpoint.load import Checkpoint
    from megagpt.config.schema import KlConfig, OptimizerConfig, PlacementConfig, PpoConfig, PromptsConfig, RlhfConfig, RoleConfig, RunConfig
    from megagpt.data.prompts import EncodedPrompt
    from megagpt.parallel.placement import build_grids
    from megagpt.rlhf.four_models import Starts, build_four_models
    from megagpt.rlhf.ppo import Trainer
    from megagpt.runtime.distributed import start
    from megagpt.runtime.run_folder import RunFolder

    optimizer = OptimizerConfig(lr=POLICY_LR, weight_decay=0.0, schedule="constant")
    config = RlhfConfig(
        run=RunConfig(name="bench", root=str(folder), seed=1), policy=str(folder / "imported"), reward=str(folder / "imported"),
        placement=PlacementConfig(**{role: RoleConfig(ranks=[0]) for role in ("policy", "reference", "reward", "value")}),
        policy_optimizer=optimizer, value_optimizer=optimizer, kl=KlConfig(coefficient=KL),
        prompts=PromptsConfig(files=["none"], max_prompt_length=PROMPT, max_response_length=RESPONSE),
        ppo=PpoConfig(
            steps=steps, rollout_batch_size=BATCH, minibatch_size=BATCH, micro_batch_size=BATCH, epochs=1, normalise_reward="none", ema_decay=None
        ),
    )
    world = start("cpu")
    checkpoint = Checkpoint.open(find_checkpoint(config.policy, RunFolder(config.run)))
    tokenizer = checkpoint.tokenizer()
    models = build_four_models(config, build_grids(config.placement, 1), Starts(checkpoint, checkpoint), world.device)
    prompts = [EncodedPrompt(tuple(tokens), number, None) for number, tokens in enumerate(json.loads((folder / "prompts.json").read_text()))]
    trainer = Trainer(config, world, models, tokenizer, prompts)
    trainer.stop_ids = ()  # every response has all its tokens, as TRL's
    seconds, scores = [], []
    for step in range(1, steps + 1):
        began = time.perf_counter()
        scores.append(trainer.step(step)["reward"])
        seconds.append(time.perf_counter() - began)
    return seconds, scores


def work(options: argparse.Namespace) -> None:
    """One contender: prints its seconds a step, its scores, and the largest memory of its process."""
    import torch

    torch.set_num_threads(2)
    seconds, scores = {"trl": train_trl, "megagpt": train_megagpt}[options.worker](options.folder, WARM_UP + options.steps)
    peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
    found = {"seconds": statistics.median(seconds[WARM_UP:]), "peak_bytes": peak, "first": scores[0], "last": statistics.fmean(scores[-3:])}
    print("RESULT " + json.dumps(found), flush=True)


# ---------------------------------------------------------------- the comparison


def run(python: Path | str, *words: str) -> str:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2", "TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    result = subprocess.run([str(python), *words], env=environment, capture_output=True, text=True, timeout=900, cwd=ROOT)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(words)} failed:\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}")
    return result.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6, help="measured steps of each contender in each round")
    parser.add_argument("--worker", choices=("prepare", "trl", "megagpt"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker == "prepare":
        return prepare(options.folder)
    if options.worker:
        return work(options)
    install_peers("trl==", "datasets==", "accelerate==")
    with tempfile.TemporaryDirectory() as name:
        folder, this = Path(name), str(Path(__file__))
        run(PEERS / "bin/python", this, "--worker", "prepare", "--folder", name)
        run(sys.executable, "-m", "megagpt", "convert", "import", f"{name}/policy", f"{name}/imported")
        write_head(folder)
        found: dict[str, list[dict[str, float]]] = {"trl": [], "megagpt": []}
        for number in range(1, options.rounds + 1):
            for contender, python in (("trl", PEERS / "bin/python"), ("megagpt", sys.executable)):
                out = run(python, this, "--worker", contender, "--folder", name, "--steps", str(options.steps))
                result = json.loads(next(line for line in out.splitlines() if line.startswith("RESULT ")).removeprefix("RESULT "))
                found[contender].append(result)
                print(
                    f"round {number}/{options.rounds}  {contender:<8} {result['seconds']:6.2f} s a step  {FLOPS / result['seconds'] / 1e9:5.0f} GFLOP/s"
                    f"  {result['peak_bytes'] / 2**20:6.0f} MiB  score {result['first']:+.3f} -> {result['last']:+.3f}", flush=True,
                )  # fmt: skip
    pairs = list(zip(found["trl"], found["megagpt"], strict=True))
    figures = {
        "steps_per_s_ratio": round(statistics.median(trl["seconds"] / ours["seconds"] for trl, ours in pairs), 2),
        "peak_memory_ratio": round(statistics.median(ours["peak_bytes"] / trl["peak_bytes"] for trl, ours in pairs), 3),
    }
    print(json.dumps(figures))


def write_head(folder: Path) -> None:
    """The scalar head that megagpt gives a language model, for TRL's reward and value models."""
    from safetensors.torch import save_file

    from megagpt.config.schema import ModelConfig
    from megagpt.model.init import initial_tensor
    from megagpt.model.shape import ModelShape

    sizes = ModelConfig(num_layers=LAYERS, hidden_size=WIDTH, num_attention_heads=HEADS, max_sequence_length=CONTEXT, vocab_size=VOCABULARY)
    save_file({"weight": initial_tensor("scalar_head.weight", (1, WIDTH), ModelShape(sizes), seed=1)}, folder / "head.safetensors")


if __name__ == "__main__":
    main()
