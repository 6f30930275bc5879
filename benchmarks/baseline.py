# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The baseline of every comparison of speed: masked diffusion as the field publishes it.

It was written for this comparison, from the algorithms of arXiv:2406.03736 (5, 6 and the estimators of section 3) and
from their use in the authors' code (github ML-GSAI/RADD). The network gives logits at every position. Their log-softmax
is taken over the whole vocabulary. At every masked position, every step of the grid draws together whether the position
is revealed and which token it gets. The network's distribution of a row is kept until the row changes. The authors'
code keeps it in float16. Here all numbers are float32 on a CPU. On a GPU the authors use float16 by autocast. So here
the network runs in float16, too, and its distribution is kept in float16; the softmax and the draws are float32.

A network is a function from masked sequences (B, L), called canvases, to logits (B, L, V) that are -inf for the mask.
`full_logits` makes one from a model's weights, written plainly: all layers at all positions, and all that autograd
keeps of them.

Shapes: B rows, L length, V vocabulary with the mask, M masked positions of the whole batch, n steps of the grid.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.generation import TopPLogitsWarper

from radd_hf.losses import Masks
from radd_hf.noise_radd import Noise, reveal_probabilities
from radd_hf.plan_radd import plan_grid

Network = Callable[[Tensor], Tensor]


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Applies the rotary embedding in its usual form: states (B, H, L, d), tables (1, L, d)."""
    first, second = states.chunk(2, dim=-1)
    return states * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]


def full_logits(model, dtype: torch.dtype | None = None) -> Network:
    """Returns a network that computes all logits, under autocast to `dtype`. None: in the dtype of the weights."""
    trunk, mask_token_id = model.model, model.config.mask_token_id
    heads, dropout = model.config.num_attention_heads, partial(F.dropout, p=model.config.hidden_dropout)

    def network(canvas: Tensor) -> Tensor:
        with torch.autocast(canvas.device.type, dtype, enabled=dtype is not None):
            logits = compute(canvas)
        return logits.index_fill(-1, torch.full((), mask_token_id, device=logits.device), -torch.inf)

    def compute(canvas: Tensor) -> Tensor:
        hidden = trunk.embed_tokens(canvas)  # (B, L, D)
        cos, sin = trunk.rotary_emb(hidden, torch.arange(canvas.shape[1], device=canvas.device)[None])
        for layer in trunk.layers:
            qkv = layer.self_attn.qkv_proj(layer.input_layernorm(hidden))  # (B, L, 3 D)
            query, key, value = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, L, d) each
            attended = F.scaled_dot_product_attention(rotate(query, cos, sin), rotate(key, cos, sin), value)
            attended = layer.self_attn.o_proj(attended.transpose(1, 2).flatten(2))  # (B, L, D)
            hidden = hidden + dropout(attended, training=model.training)
            inner = layer.mlp.act_fn(layer.mlp.up_proj(layer.post_attention_layernorm(hidden)))  # (B, L, 4 D)
            hidden = hidden + dropout(layer.mlp.down_proj(inner), training=model.training)
        return model.lm_head(trunk.norm(hidden))  # (B, L, V)

    return network


def log_softmax(logits: Tensor) -> Tensor:
    """Computes the log-softmax in float32, as autocast does, without another copy of the logits."""
    return logits.log_softmax(dim=-1, dtype=torch.float32)


def draw(probabilities: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draws an index of each row by a race of exponentials (Gumbel's trick): probabilities (M, V) -> (M,).

    The probabilities are overwritten. The logarithm of a random number below 1 is never 0, so an index of probability
    zero loses.
    """
    race = torch.rand(probabilities.shape, generator=generator, device=probabilities.device).log_().neg_()
    return probabilities.div_(race).argmax(dim=-1)


class GridSampler:
    """Samples by Tweedie or Euler on a grid, step by step.

    Attributes:
        canvas: (B, L), filled in place.
        distribution: (B, L, V), the network's last distribution for each row, kept in `dtype`.
        at_masks: (M, V), the part of the distribution that is drawn from.
        changed: (B,), the rows that must be evaluated again.
        forwards: number of forward passes so far.
        evaluations: (B,), number of evaluations of each row so far.
    """

    def __init__(
        self,
        network: Network,
        canvas: Tensor,
        vocab_size: int,
        mask_token_id: int,
        noise: Noise,
        steps: int,
        method: str = "tweedie",
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        self.network, self.canvas, self.mask_token_id, self.generator = network, canvas, mask_token_id, generator
        self.rates = reveal_probabilities(noise, method, steps).tolist()  # (n,)
        self.changed = torch.ones(len(canvas), dtype=torch.bool, device=canvas.device)
        self.distribution = torch.zeros(*canvas.shape, vocab_size, dtype=dtype, device=canvas.device)
        self.at_masks = self.distribution.new_empty(0, vocab_size)
        self.forwards = 0
        self.evaluations = torch.zeros(len(canvas), dtype=torch.int64, device=canvas.device)

    def step(self, number: int) -> None:
        self.ask()
        self.reveal(number)

    @torch.no_grad()
    def ask(self) -> None:
        """Evaluates the rows that changed."""
        if bool(self.changed.any()):
            distribution = log_softmax(self.network(self.canvas[self.changed])).exp()
            self.distribution[self.changed] = distribution.to(self.distribution.dtype)
            self.at_masks = self.distribution[self.canvas == self.mask_token_id]
            self.forwards += 1
            self.evaluations += self.changed

    def reveal(self, number: int) -> None:
        """Draws at every mask: a token, or with the remaining probability the mask again."""
        masked = self.canvas == self.mask_token_id  # (B, L)
        probabilities = self.at_masks.float() * self.rates[number]  # (M, V)
        probabilities[:, self.mask_token_id] = 1 - self.rates[number]
        before = self.canvas.clone()
        self.canvas[masked] = draw(probabilities, self.generator)
        self.changed = (self.canvas != before).any(dim=1)

    def run(self) -> Tensor:
        for number in range(len(self.rates)):
            self.step(number)
        return self.canvas

    def resume(self, plan: Tensor, tokens: Tensor, number: int) -> None:
        """Continues as if the steps before `number` had revealed `tokens` (B, L) by `plan` (B, L).

        The distribution kept for unchanged rows is uniform, since a draw from it costs as much as from any other.
        """
        self.canvas = torch.where(plan >= number, self.mask_token_id, tokens)
        self.changed = (plan == number - 1).any(dim=1) if number else torch.ones_like(self.changed)
        self.distribution.fill_(1 / (self.distribution.shape[-1] - 1))
        self.at_masks = self.distribution[self.canvas == self.mask_token_id]


def make_plan(shape: tuple[int, int], noise: Noise, steps: int, seed: int, method: str = "tweedie") -> Tensor:
    """Draws the step (B, L) that reveals each position of fully masked rows, as `generate` does with this seed.

    The baseline draws step by step, but the positions that a step reveals have the same distribution.
    """
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return plan_grid(torch.ones(shape, dtype=torch.bool), reveal_probabilities(noise, method, steps), uniform)


def forwards_of(plan: Tensor, steps: int) -> int:
    """Counts the forward passes of `GridSampler` for `plan` (B, L): the first, and one after every change."""
    return 1 + len(set(plan[plan < steps - 1].tolist()))


@torch.no_grad()
def fill_in_order(
    network: Network,
    canvas: Tensor,
    order: list[int],
    generator: torch.Generator | None = None,
    top_p: float = 1.0,
) -> Tensor:
    """Fills one position per step in place, the same in all rows (B, L), from logits of all positions."""
    warper = TopPLogitsWarper(top_p)
    for position in order:
        logits = network(canvas)[:, position]
        logits = cast(Tensor, warper(cast(Any, canvas), cast(Any, logits))) if top_p < 1 else logits
        canvas[:, position] = draw(logits.softmax(dim=-1, dtype=torch.float32), generator)
    return canvas


@torch.no_grad()
def nll_in_order(network: Network, x0: Tensor, order: list[int], mask_token_id: int) -> Tensor:
    """Computes -log p of the tokens at the positions `order`, in that order, given all others: (B, L) -> (B,) nats."""
    canvas, nll = x0.clone(), torch.zeros(len(x0), device=x0.device)
    rows = torch.arange(len(x0), device=x0.device)
    canvas[:, order] = mask_token_id
    for position in order:
        log_distribution = log_softmax(network(canvas))  # (B, L, V), of all positions
        nll -= log_distribution[rows, position, x0[:, position]]
        canvas[:, position] = x0[:, position]
    return nll


def training_loss(network: Network, x0: Tensor, masks: Masks, mask_token_id: int) -> Tensor:
    """Computes mean(w S) of `losses.py` from logits of all positions: x0 (B, L) and masks on its device -> ()."""
    log_distribution = log_softmax(network(x0.masked_fill(masks.masked, mask_token_id)))  # (B, L, V)
    token_nll = torch.zeros(x0.shape, device=x0.device)
    token_nll[masks.masked] = -log_distribution[masks.masked].gather(1, x0[masks.masked][:, None]).squeeze(1)
    return (masks.weight * token_nll.sum(dim=1)).mean()
