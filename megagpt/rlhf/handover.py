"""Conversations as text between models of different tokenizers: what the policy wrote, in the words of a reward model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from megagpt.data.prompts import EncodedPrompt
from megagpt.rlhf.experience import Rollout
from megagpt.rlhf.reward_function import RewardError
from megagpt.tokenizer.chat import Message, encode_chat, stop_ids
from megagpt.tokenizer.tokenizer import Tokenizer


class Handover:
    """Rollouts in the policy's tokens -> the same conversations in a judge's tokens, by the judge's own chat template.

    Args:
        policy, judge: their tokenizers.
        prompts: all that the policy may be asked.
        context: most tokens that the judge reads.
    """

    def __init__(self, policy: Tokenizer, judge: Tokenizer, prompts: Iterable[EncodedPrompt], context: int) -> None:
        self.policy, self.judge, self.context = policy, judge, context
        self._messages = {prompt.tokens: prompt.record.prompt for prompt in prompts}
        self._ends = frozenset(stop_ids(judge))

    def __call__(self, rollout: Rollout) -> Rollout:
        """`tokens`, `lengths` and `prompt_lengths` anew, the rest as it was; a response that was cut stays open at its end.

        Raises:
            RewardError: a conversation longer than the judge's context.
        """
        rows, begins = [], []
        for tokens, begin, end, stopped in zip(*(x.tolist() for x in (rollout.tokens, rollout.prompt_lengths, rollout.lengths, rollout.stopped))):
            prompt = self._messages[tuple(tokens[:begin])]
            ids, of_assistant = encode_chat(self.judge, [*prompt, Message(role="assistant", content=self.policy.decode(tokens[begin:end]))])
            if not stopped and ids[-1] in self._ends:
                ids.pop()
            if len(ids) > self.context:
                asked = prompt[-1]["content"]
                raise RewardError(f"reward: the answer to {asked!r} makes {len(ids)} of the reward model's tokens; its context is {self.context}")
            rows.append(ids)
            begins.append(max(place for place, answers in enumerate(of_assistant) if not answers) + 1)
        lengths = torch.tensor([len(ids) for ids in rows], dtype=torch.int64)
        packed = torch.full((len(rows), int(lengths.max())), self.judge.pad_id, dtype=torch.int64)
        for row, ids in zip(packed, rows, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        device = rollout.tokens.device
        begins = torch.tensor(begins, dtype=torch.int64)
        return replace(rollout, tokens=packed.to(device), lengths=lengths.to(device), prompt_lengths=begins.to(device))
