"""DPO where its optimum is known: answers of two tokens, annotators who prefer one to another as Bradley and Terry say of their rewards.

Its best policy is that of PPO with the same beta, pi_ref exp(R / beta) / Z (Rafailov et al. 2023, eq. 4 and 7), which has J* = beta ln E_ref[exp(R / beta)].
All answers are enumerated: the reference's J, the trained policy's and J* are exact, though DPO sees preferences only, and of a small part of them.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megagpt.checkpoint.layout import find_checkpoint
from megagpt.checkpoint.load import Checkpoint, load_model
from megagpt.config.schema import DpoLossConfig, ModelConfig, OptimizerConfig, RunConfig
from megagpt.data.batch import encoded_row
from megagpt.data.order import step_rows
from megagpt.data.ranking import EncodedGroup
from megagpt.data.ranking_batch import replica_batches
from megagpt.data.records import Ranking
from megagpt.dpo.trainer import answer_logprobs, train_step
from megagpt.engine.answer_scores import score_answers
from megagpt.engine.build import Engine
from megagpt.engine.schedule import learning_rate
from megagpt.model.gpt import GPT
from megagpt.parallel.grid import Grid
from megagpt.parallel.groups import build_groups
from megagpt.runtime.run_folder import RunFolder
from megagpt.tokenizer.chat import encode_chat, stop_ids
from tests.helpers.enumerated import Answers
from tests.helpers.spawn import run_ranks
from tests.helpers.tiny_checkpoint import make_checkpoint
from tests.helpers.tiny_run import toy_tokenizer

BETA = 0.1
NEEDED = 0.8
"""Of the way from the reference's J to J*. Measured: 0.87, 0.86 and 0.91 with the three seeds, 0.90 with the first after 800 steps."""
QUESTIONS, GROUPS, SIZE, ANNOTATORS = "abc", 1500, 8, 10
OPTIMIZER = OptimizerConfig(lr=1e-2, weight_decay=0.0, schedule="linear", min_lr_ratio=0.0)
STEPS, BATCH = 300, 32
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("optimum")
    tokenizer = toy_tokenizer(folder / "tokenizer")
    model = ModelConfig(num_layers=1, hidden_size=32, num_attention_heads=2, max_sequence_length=16, vocab_size=tokenizer.vocab_size)
    make_checkpoint(RunConfig(name="toy", root=str(folder)), "sft", model, tokenizer, seed=1)
    return folder


def judged_groups(answers: Answers, prompts: list[tuple[int, ...]], seed: int) -> list[EncodedGroup]:
    """Groups of answers that are drawn from all of them alike. Of every two some of the annotators prefer one and the others the other: sigma(R - R') of
    them on average."""
    generator, rewards, made = np.random.default_rng(seed), answers.rewards.numpy(), []
    for number in range(GROUPS):
        prompt = prompts[number % len(prompts)]
        chosen = generator.choice(len(rewards), SIZE, replace=False)
        rows = tuple(encoded_row([*prompt, *answers.tokens[a]], [0] * len(prompt) + [1] * len(answers.tokens[a])) for a in chosen)
        pairs = []
        for i in range(SIZE):
            for j in range(i):
                expected = ANNOTATORS / (1 + np.exp(rewards[chosen[j]] - rewards[chosen[i]]))
                prefer = int(expected + generator.random())
                pairs += [(i, j)] * prefer + [(j, i)] * (ANNOTATORS - prefer)
        made.append(EncodedGroup(rows, tuple(pairs), Ranking((), tuple(map(str, chosen)), (0,) * SIZE)))
    return made


def exact(model: GPT, answers: Answers, prompts: list[tuple[int, ...]], reference: list[torch.Tensor]) -> dict[str, float]:
    """Means over prompts: J of the reference and of the policy, J*, and the policy's KL to the reference and to the optimum (nats a response)."""
    reward, found = answers.rewards, []
    for prompt, before in zip(prompts, reference, strict=True):
        policy = answers.logprobs(model, prompt)
        best = torch.log_softmax(before + reward / BETA, 0)
        start, kl = float(before.exp() @ reward), float(policy.exp() @ (policy - before))
        optimum = BETA * float(torch.logsumexp(before + reward / BETA, 0))
        found.append([start, float(policy.exp() @ reward) - BETA * kl, optimum, kl, float(policy.exp() @ (policy - best))])
    return dict(zip(("start", "end", "best", "kl", "kl_to_best"), np.mean(found, axis=0).tolist()))


def train(folder, seed: int, terms: DpoLossConfig) -> dict[str, float]:
    """On the one rank: the stage's own steps over the groups, then the exact J."""
    checkpoint = Checkpoint.open(find_checkpoint("sft", RunFolder(RunConfig(name="toy", root=str(folder)))))
    tokenizer = checkpoint.tokenizer()
    answers = Answers(tokenizer, stop_ids(tokenizer))
    prompts = [tuple(encode_chat(tokenizer, [{"role": "user", "content": word}], add_generation_prompt=True)[0]) for word in QUESTIONS]
    groups = judged_groups(answers, prompts, seed)
    engine = Engine(load_model(checkpoint, build_groups(Grid()), CPU, scalar_head=False), OPTIMIZER, 1)
    before = [answers.logprobs(engine.model, prompt) for prompt in prompts]
    reference = score_answers(engine, groups, lambda logits, batch: answer_logprobs(engine.model, logits, batch), 16, tokenizer.pad_id, CPU)
    for step in range(1, STEPS + 1):
        items = [item for _, item in step_rows(seed, step - 1, BATCH, len(groups))]
        members = [groups[item] for item in items]
        batches = replica_batches(members, engine.groups, BATCH, tokenizer.pad_id, CPU)
        train_step(engine, batches, members, [reference[item] for item in items], learning_rate(OPTIMIZER, step, STEPS), None, terms)
    found = exact(engine.model, answers, prompts, before)
    engine.close()
    return found


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))])
def test_dpo_comes_near_the_known_optimum_of_its_preferences(folder, seed):
    (found,) = run_ranks(1, train, folder, seed, DpoLossConfig(beta=BETA), timeout=600)
    assert found["best"] - found["start"] > 0.25 and found["kl"] > 1.0  # there is something to win, and it takes some KL
    share = (found["end"] - found["start"]) / (found["best"] - found["start"])
    assert NEEDED <= share <= 1.0, found
