"""PPO-ptx: pre-training text that the policy learns beside PPO, so that it forgets less (Ouyang et al. 2022, eq. 2)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from megagpt.config.schema import PpoConfig, PretrainMixConfig, RlhfConfig, TokenFilesConfig
from megagpt.data.batch import TokenBatch
from megagpt.data.token_data import TokenData, open_token_files
from megagpt.engine.build import Engine
from megagpt.engine.token_steps import count_targets, replica_batches
from megagpt.model.token_loss import token_nll
from megagpt.runtime.run_folder import RunFolder
from megagpt.tokenizer.tokenizer import Tokenizer


def open_pretrain_mix(config: RlhfConfig, tokenizer: Tokenizer) -> TokenData | None:
    """The token files, in rows as long as the rows of a rollout; None where nothing is mixed in.

    Raises:
        DataError: files that are missing, damaged or of another tokenizer, or less than one row of text.
    """
    if config.pretrain_mix is None:
        return None
    run, length = RunFolder(config.run), config.prompts.max_prompt_length + config.prompts.max_response_length
    files = TokenFilesConfig(train=[source.model_dump() for source in config.pretrain_mix.data], split=(1.0, 0.0, 0.0))
    return open_token_files(files, lambda path: Path(run.resolve(path, ".idx")), length, tokenizer, config.run.seed)


class PretrainMix:
    """Which rows join an optimizer step of the policy, and their loss.

    The text's gradient is added to that of PPO in the same step. Both losses are means over tokens, so that the coefficient means the same
    for any length and number of rows.
    """

    def __init__(self, config: PretrainMixConfig, ppo: PpoConfig, data: TokenData, engine: Engine, device: torch.device) -> None:
        self._config, self._data, self._engine, self._device = config, data, engine, device
        self._micro_batch_size, self._rows = ppo.micro_batch_size, config.rows_per_response * ppo.minibatch_size
        self._updates = ppo.epochs * (ppo.rollout_batch_size // ppo.minibatch_size)

    def batches(self, step: int, update: int) -> tuple[list[TokenBatch], int]:
        """This replica's microbatches and the number of targets of all replicas: a function of round and update within it, both of them from 1
        and from 0, whatever was left out before."""
        first = ((step - 1) * self._updates + update) * self._rows
        rows = [self._data.train_row(position) for position in range(first, first + self._rows)]
        return replica_batches(rows, self._engine, self._micro_batch_size, 0, self._device), count_targets(rows)

    def loss(self, logits: Tensor, batch: TokenBatch, weight: float) -> tuple[Tensor, Tensor]:
        """coefficient * weight * sum of -log p(token), and weight * sum of -log p(token) to report."""
        nll = weight * token_nll(self._engine.model, logits, batch.labels, batch.loss_mask)
        return self._config.coefficient * nll, nll.detach()
