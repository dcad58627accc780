"""The one chat template: SFT, reward model, PPO, generation and the chat command all speak it.

A message is `<|role|>`, its content, `<|end|>`. Contents are encoded apart from each other, so that the ids of a
conversation begin with the ids of each of its prefixes, and no content can forge a control token.

Where the vocabulary came with the control tokens of ChatML, its model learned to chat so, and a message is `<|im_start|>`,
the role and a line break in words, its content, `<|im_end|>`; a line break stands between two messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

from megagpt.tokenizer.special import CHATML_END, CHATML_START, END, ROLES, role_token
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
        or the token that closes it, else 0.

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
        opening = _opening(tokenizer, role, is_first=not ids)
        ids += [*opening, *content, end_id]
        loss_mask += [0] * len(opening) + [int(role == "assistant")] * (len(content) + 1)
    if add_generation_prompt:
        opening = _opening(tokenizer, "assistant", is_first=not ids)
        ids += opening
        loss_mask += [0] * len(opening)
    return ids, loss_mask


def _opening(tokenizer: Tokenizer, role: str, *, is_first: bool) -> list[int]:
    """Ids in front of a message's content."""
    start = tokenizer.special_ids.get(CHATML_START)
    if start is None:
        return [tokenizer.special_ids[role_token(role)]]
    return [*([] if is_first else tokenizer.encode("\n")), start, *tokenizer.encode(f"{role}\n")]


def jinja_template(tokenizer: Tokenizer) -> str:
    """The same template in the words of Hugging Face's `apply_chat_template`."""
    if CHATML_START in tokenizer.special_ids:
        between, start, role, end = "{% if not loop.first %}{{ '\n' }}{% endif %}", CHATML_START, "message['role'] + '\n'", CHATML_END
        return (
            f"{{% for message in messages %}}{between}{{{{ '{start}' + {role} + message['content'] + '{end}' }}}}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{{% if messages %}}{{{{ '\n' }}}}{{% endif %}}{{{{ '{start}assistant\n' }}}}{{% endif %}}"
        )
    return (
        f"{{% for message in messages %}}{{{{ '<|' + message['role'] + '|>' + message['content'] + '{END}' }}}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ '{role_token('assistant')}' }}}}{{% endif %}}"
    )


def stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that end an assistant's message: the token that closes it, and end-of-text."""
    return tokenizer.special_ids[END], tokenizer.eos_id


def render(messages: Sequence[Message]) -> str:
    """A conversation for human eyes; not what the model reads."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)
