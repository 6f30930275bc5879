# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Draws tokens from the network's distribution.

    logits  ->  the caller's logits processors  ->  temperature, top-k, top-p  ->  a token, by inversion

The plan says where tokens are revealed and when (`plan_radd.py`); this file says which tokens. It also finds where a
row ends ([`Ending`]). An event is one evaluation of the network and the tokens that it reveals. A canvas is a row of
token ids, some of them masks.

Shapes: A rows that still have events, L length, V vocabulary, N positions revealed in one event, n of them in a chunk;
        W tokens of a part of the vocabulary.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers.generation import LogitsProcessorList

from .policy_radd import Policy

# The product of this number and a sum is below the sum, even when rounded. So no token of probability zero is drawn.
BELOW_ONE = 1 - 2.0**-52


def draw_tokens(scores: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Draws a token from softmax(scores) for each row, by inversion of the distribution function.

    Uniform numbers and sums are float64. A Gumbel or exponential race in float32 has uniform numbers of 24 bits, which
    never reach the tail of the distribution. That acts like a lower temperature (arXiv:2409.02908, section 5).

    A draw has two stages: first a part of the vocabulary, by the sums of the parts, then a token of this part. One
    running sum over the whole vocabulary would take a GPU longer.

    Each token takes one uniform number. So a draw depends on the position, and not on the event or the batch.

    Args:
        scores: (N, V). uniform: (N,) float64 in [0, 1).

    Returns:
        Tokens (N,), and logsumexp of the scores (N,) float32.
    """
    rows, vocab_size = scores.shape
    width = 1 << ((vocab_size.bit_length() + 1) // 2)  # W, about sqrt(V)
    weights = scores.new_full((rows, vocab_size + -vocab_size % width), -torch.inf, dtype=torch.float32)
    weights[:, :vocab_size] = scores
    largest = weights.amax(dim=1, keepdim=True)  # (N, 1)
    weights = weights.sub_(largest).exp_().unflatten(1, (-1, width))  # (N, V / W, W) 1 at the likeliest token
    sums = weights.sum(dim=2, dtype=torch.float64)  # (N, V / W)

    distribution = sums.cumsum(dim=1)  # (N, V / W)
    total = distribution[:, -1:]  # (N, 1)
    target = uniform[:, None] * BELOW_ONE * total  # (N, 1)
    part = torch.searchsorted(distribution, target, right=True)  # (N, 1)
    part.clamp_(max=sums.shape[1] - 1)  # if scores are nan; then `generate` raises an error at its end
    weight_of_part = sums.gather(1, part)  # (N, 1)
    within = (target - distribution.gather(1, part) + weight_of_part) / weight_of_part  # (N, 1) uniform in the part

    weights = weights.gather(1, part[..., None].expand(-1, -1, width)).squeeze(1)  # (N, W)
    distribution = weights.cumsum(dim=1, dtype=torch.float64)  # (N, W)
    target = within.clamp_(0, BELOW_ONE) * distribution[:, -1:]  # (N, 1)
    token = part * width + torch.searchsorted(distribution, target, right=True)  # (N, 1)
    return token.clamp_(max=vocab_size - 1).squeeze(1), (largest + total.log().float()).squeeze(1)


@dataclass(frozen=True)
class Ending:
    """Finds the rows that have ended, for `stop_on_eos`. EOS is the end-of-text token."""

    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    mask_token_id: int

    def find(self, canvas: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
        """Returns which rows have ended (A,), and their generated positions after the end (A, L).

        A row ends at its first generated EOS that has no mask before it: then all that stands before it is final.

        Args:
            canvas: (A, L) ids. generated: (A, L) bool, False where the caller gave a token.
        """
        settled = (canvas == self.mask_token_id).cumsum(dim=1) == 0  # (A, L) no mask here or before
        eos = torch.stack([canvas == token for token in self.eos_token_ids]).any(dim=0)
        ends = eos & generated & settled
        after = ends.cumsum(dim=1) - ends.long() > 0
        return ends.any(dim=1), after & generated


@dataclass(frozen=True)
class Sampling:
    """Holds the settings by which tokens are drawn and rows end.

    processors: the caller's logits processors.
    warpers: transformers' temperature, top-k and top-p, applied after the processors.
    policy: the policy of an adaptive order. It sees the scores after the processors and before the warpers.
    """

    temperature: float
    top_k: int
    top_p: float
    processors: LogitsProcessorList
    warpers: LogitsProcessorList
    ending: Ending | None
    policy: Policy | None = None

    @property
    def key(self) -> Hashable:
        """Gives what a captured CUDA graph depends on. With logits processors of the caller nothing is captured."""
        return self.temperature, self.top_k, self.top_p, self.ending, self.policy and self.policy.key

    def process(self, logits: Tensor, canvases: Callable[[], Tensor]) -> Tensor:
        """Applies the caller's logits processors to logits (n, V). They also see the `canvases()` (n, L)."""
        if not self.processors:
            return logits
        # Logits processors get a copy, since they may work in place.
        scores = self.processors(cast(Any, canvases()), cast(Any, logits.float().clone()))
        right = isinstance(scores, Tensor) and scores.is_floating_point() and scores.device == logits.device
        if not right or scores.shape != logits.shape:
            found = type(scores).__name__
            if isinstance(scores, Tensor):
                found = f"{tuple(scores.shape)} in {scores.dtype} on the device {str(scores.device)!r}"
            raise ValueError(
                f"logits_processor returned {found}; it must return scores {tuple(logits.shape)} in a "
                f"floating-point dtype on the device {str(logits.device)!r}."
            )
        return scores.masked_fill(logits.isneginf(), -torch.inf)  # no processor can give the mask a probability

    def warp(self, scores: Tensor) -> Tensor:
        """Applies temperature, top-k and top-p to scores (n, V)."""
        return self.warpers(cast(Any, None), cast(Any, scores.float())) if self.warpers else scores

    def log_law(self, scores: Tensor) -> Tensor:
        """Returns the float32 log-probabilities of the tokens that are drawn, (n, V), from their scores."""
        if self.temperature != 0:
            return scores.float().log_softmax(dim=-1)
        likeliest = scores.max(dim=-1, keepdim=True).indices
        return torch.full_like(scores, -torch.inf, dtype=torch.float32).scatter_(1, likeliest, 0.0)


__all__ = ["Ending", "Sampling", "draw_tokens"]
