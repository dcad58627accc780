"""The one chat template: SFT, reward model, PPO, generation and the chat command all speak it.

A message is `<|role|>`, its content, `<|end|>`. Contents are encoded apart from each other, so that the ids of a
conversation begin with the ids of each of its prefixes, and no content can forge a control token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

from megagpt.tokenizer.special import END, ROLES, role_token
from megagpt.tokenizer.tokenizer import Tokenizer


class Message(TypedDict):
    role: Literal["system", "user", "assistant"]
    content: str


def encode_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool = False
) -> tuple[list[int], list[int]]:
    """Token ids of a conversation and which of them are training targets.

    Args:
        messages: in order; any sequence of roles.
        add_generation_prompt: open an assistant message at the end, for a model to fill.

    Returns:
        ids and loss_mask, both [num_tokens]; loss_mask[i] is 1 where ids[i] is the content of an assistant's message
        or the `<|end|>` that closes it, else 0.

    Raises:
        ValueError: an unknown role.
    """
    end_id = tokenizer.special_ids[END]
    ids: list[int] = []
    loss_mask: list[int] = []
    for message in messages:
        role = message["role"]
        if role not in ROLES:
            raise ValueError(f"role {role!r} is none of {', '.join(ROLES)}")
        content = tokenizer.encode(message["content"])
        ids += [tokenizer.special_ids[role_token(role)], *content, end_id]
        loss_mask += [0] + [int(role == "assistant")] * (len(content) + 1)
    if add_generation_prompt:
        ids.append(tokenizer.special_ids[role_token("assistant")])
        loss_mask.append(0)
    return ids, loss_mask


def stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that end an assistant's message: `<|end|>` and end-of-text."""
    return tokenizer.special_ids[END], tokenizer.eos_id


def render(messages: Sequence[Message]) -> str:
    """A conversation for human eyes; not what the model reads."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)
