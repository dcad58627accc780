"""Names of the control tokens: ids that stand between texts and that no text can produce."""

EOS = "<|endoftext|>"
"""Ends a document in the token files; a stop token in generation."""
PAD = "<|pad|>"
"""Fills rows on the right; always masked."""

ROLES = ("system", "user", "assistant")
"""Who may speak in a conversation."""
END = "<|end|>"
"""Ends a message."""
CHATML_START, CHATML_END = "<|im_start|>", "<|im_end|>"
"""ChatML, the template of many published chat models, opens every message with the same token and names the role in words."""


def role_token(role: str) -> str:
    """Name of the control token that opens a message of this role."""
    return f"<|{role}|>"


CHAT_TOKENS = (*(role_token(role) for role in ROLES), END)
