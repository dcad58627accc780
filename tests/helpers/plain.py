"""The plain reference: one process, ordinary PyTorch, written to be checked by reading.

No Megatron, no DeepSpeed, nothing of megagpt but its model description. Parameter names are the canonical names of the project.
Shapes: b rows, s positions, H hidden_size, n query heads, g key/value heads, d = H / n, F MLP width, V vocab_size (never padded).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megagpt.config.schema import ModelConfig


class Attention(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        kv_size = (config.num_query_groups or config.num_attention_heads) * self.head_dim
        bias = config.family == "gpt"
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias)
        self.key = nn.Linear(config.hidden_size, kv_size, bias)
        self.value = nn.Linear(config.hidden_size, kv_size, bias)
        self.output = nn.Linear(config.hidden_size, config.hidden_size, bias)

    def forward(self, x: Tensor) -> Tensor:
        """[b, s, H] -> [b, s, H]."""
        b, s, H = x.shape
        query, key, value = (linear(x).view(b, s, -1, self.head_dim).transpose(1, 2) for linear in (self.query, self.key, self.value))
        if self.config.family == "llama":
            query, key = rotate(query, self.config.rotary_base), rotate(key, self.config.rotary_base)
        queries_per_group = query.shape[1] // key.shape[1]  # query heads 0 .. q-1 read key/value head 0, and so on
        key, value = key.repeat_interleave(queries_per_group, dim=1), value.repeat_interleave(queries_per_group, dim=1)
        scores = query @ key.transpose(2, 3) / math.sqrt(self.head_dim)  # [b, n, s, s]
        future = torch.ones(s, s, dtype=torch.bool).triu(diagonal=1)
        mixed = scores.masked_fill(future, -math.inf).softmax(dim=-1) @ value  # [b, n, s, d]
        return self.output(mixed.transpose(1, 2).reshape(b, s, H))


def rotate(x: Tensor, base: int) -> Tensor:
    """Rotary positions, Hugging Face layout: dimension i turns with dimension i + d/2. [b, n, s, d] -> [b, n, s, d]."""
    s, d = x.shape[-2:]
    periods = base ** (torch.arange(0, d, 2, dtype=x.dtype) / d)
    angles = torch.arange(s, dtype=x.dtype)[:, None] / periods  # [s, d/2]
    cos, sin = angles.cos(), angles.sin()
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Mlp(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        H, llama = config.hidden_size, config.family == "llama"
        width = config.ffn_hidden_size or (math.ceil(8 * H / 3 / 16) * 16 if llama else 4 * H)
        self.up = nn.Linear(H, width, bias=not llama)
        self.gate = nn.Linear(H, width, bias=False) if llama else None
        self.down = nn.Linear(width, H, bias=not llama)

    def forward(self, x: Tensor) -> Tensor:
        """[b, s, H] -> [b, s, H]."""
        if self.gate is None:
            return self.down(F.gelu(self.up(x), approximate="tanh"))
        return self.down(F.silu(self.gate(x)) * self.up(x))


def norm(config: ModelConfig) -> nn.Module:
    kind = nn.LayerNorm if config.family == "gpt" else nn.RMSNorm
    return kind(config.hidden_size, eps=config.norm_epsilon)


class Layer(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm, self.attention = norm(config), Attention(config)
        self.mlp_norm, self.mlp = norm(config), Mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        """[b, s, H] -> [b, s, H]."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class PlainGPT(nn.Module):
    """tokens [b, s] -> logits [b, s, V], or values [b, s] with `scalar_head`."""

    def __init__(self, config: ModelConfig, scalar_head: bool = False):
        super().__init__()
        H, gpt = config.hidden_size, config.family == "gpt"
        tied = gpt if config.tie_embeddings is None else config.tie_embeddings
        self.embedding = nn.Module()
        self.embedding.tokens = nn.Embedding(config.vocab_size, H)
        self.embedding.positions = nn.Embedding(config.max_sequence_length, H) if gpt else None
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.final_norm = norm(config)
        self.output = None if tied or scalar_head else nn.Linear(H, config.vocab_size, bias=False)
        self.scalar_head = nn.Linear(H, 1) if scalar_head else None

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding.tokens(tokens)
        if self.embedding.positions is not None:
            x = x + self.embedding.positions.weight[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        x = self.final_norm(x)
        if self.scalar_head is not None:
            return self.scalar_head(x).squeeze(-1)
        return F.linear(x, self.embedding.tokens.weight if self.output is None else self.output.weight)


def plain_init(config: ModelConfig, seed: int, scalar_head: bool = False) -> dict[str, Tensor]:
    """Weights by canonical name, each a function of (seed, name) only; no tensor is zero or one, so that none can be left out unseen."""
    with torch.device("meta"):
        model = PlainGPT(config, scalar_head)
    state = {}
    for name, parameter in model.named_parameters():
        counter = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7])
        noise = 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(counter))
        state[name] = 1 + noise if name.endswith("norm.weight") else noise
    return state


def plain_loss(model: nn.Module, tokens: Tensor, labels: Tensor, loss_mask: Tensor) -> Tensor:
    """Mean negative log-likelihood over the valid tokens of the whole global batch; all three [b, s]."""
    nll = F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    return (nll * loss_mask).sum() / loss_mask.sum()


class PlainRun(NamedTuple):
    losses: list[float]
    """Before each step."""
    gradient_norms: list[float]
    """Of all parameters together, before clipping, at each step."""
    gradients: dict[str, Tensor]
    """Of the first step, before clipping."""
    parameters: dict[str, Tensor]
    """After the last step."""


def plain_train(
    config: ModelConfig,
    init_state: dict[str, Tensor],
    global_batches: Sequence[tuple[Tensor, ...]],
    *,
    optimizer: str = "adamw",
    lr: float = 1e-3,
    eps: float = 1e-5,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    clip: float = 0.0,
    dtype: torch.dtype = torch.float32,
    loss_function: Callable[..., Tensor] = plain_loss,
) -> PlainRun:
    """One step for each batch by the formulas of AdamW (`adamw`) or gradient descent (`sgd`); clip 0 switches clipping off.

    Both decay every matrix, embeddings included, and no vector (norms, biases). The loss is loss_function(model, *batch), by default on
    (tokens, labels, loss_mask); the model has a scalar head where `init_state` has one.
    """
    model = PlainGPT(config, scalar_head="scalar_head.weight" in init_state).to(dtype)
    model.load_state_dict(init_state)
    parameters = dict(model.named_parameters())
    first = {name: torch.zeros_like(p) for name, p in parameters.items()}  # moments m and v
    second = {name: torch.zeros_like(p) for name, p in parameters.items()}
    losses, gradient_norms, gradients_of_step_0 = [], [], {}
    for step, batch in enumerate(global_batches, start=1):
        loss = loss_function(model, *batch)
        gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
        gradient_norm = math.sqrt(sum(g.double().square().sum().item() for g in gradients.values()))
        losses.append(loss.item())
        gradient_norms.append(gradient_norm)
        gradients_of_step_0 = gradients_of_step_0 or gradients
        # torch.nn.utils.clip_grad_norm_ and DeepSpeed at every ZeRO stage compute this same factor.
        factor = min(1.0, clip / (gradient_norm + 1e-6)) if clip else 1.0
        for name, p in parameters.items():
            g = gradients[name] * factor
            if optimizer == "adamw":
                first[name] = betas[0] * first[name] + (1 - betas[0]) * g
                second[name] = betas[1] * second[name] + (1 - betas[1]) * g.square()
                update = first[name] / (1 - betas[0] ** step) / ((second[name] / (1 - betas[1] ** step)).sqrt() + eps)
            elif optimizer == "sgd":
                update = g
            else:
                raise ValueError(f"optimizer {optimizer!r}: must be adamw or sgd")
            p.data -= lr * (update + (weight_decay if p.dim() > 1 else 0.0) * p.data)
    return PlainRun(losses, gradient_norms, gradients_of_step_0, {name: p.detach() for name, p in parameters.items()})
