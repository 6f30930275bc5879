# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Writes several tokens by one evaluation of the network, in exactly the distribution of one token an evaluation.

    draft   a token that is likely to come next, drawn from a distribution that lacks the last token written
    round   one evaluation of all sequences that the drafts make, the first with none of them, the last with all;
            drafts are accepted in their order up to the first rejection, which is replaced

RADD gives the distribution of any token given any others, so it drafts for itself: the evaluation that writes a token
also gives the distributions of the positions that come after it in the order. Only that token is missing in them. Each
round therefore takes one evaluation. Drafting from an evaluation of its own, with nothing missing, would take two.

A draft x, drawn from q, is accepted with probability min(1, p(x) / q(x)), where p is the distribution that the round
finds. A rejected one is replaced by a draw from the normalised (p - q)+, so that the token has distribution p whatever
q is (arXiv:2211.17192, 2302.01318; for any orders arXiv:2504.20456). A sequence that contains a rejected draft is
not used. Where all drafts are accepted, the last sequence gives another token.

Shapes: A rows that still have masks, L length, V vocabulary, D features of a state; c sequences of each row in a round,
        hence c - 1 drafts that it checks; k - 1 drafts for the next one; n positions of any rows.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .programs_radd import StaticTensors
from .settings_radd import is_adaptive


def speculation_of(settings: Any) -> int:
    """Returns k of the settings of `generate`; 1 where the method does not reveal one position after the other."""
    one_by_one = settings.method == "ordered" and settings.steps is None and not is_adaptive(settings.order)
    possible = (settings.method == "first_hitting" or one_by_one) and settings.refresh_interval == 1
    return settings.speculate if possible else 1


def with_drafts(canvas: Tensor, positions: Tensor, drafts: Tensor) -> Tensor:
    """Returns the sequences of a round: the first has no draft, each of the others one more.

    Args:
        canvas: (A, L). positions, drafts: (A, c - 1) where each draft goes, L for nowhere, and its token.

    Returns:
        (A, c, L).
    """
    number = drafts.shape[1]
    index = torch.arange(number + 1, device=canvas.device)  # (c,)
    present = index[:number] < index[:, None]  # (c, c - 1)
    sequences = pad(canvas, (0, 1))[:, None].repeat(1, number + 1, 1)  # (A, c, L + 1)
    where = positions[:, None].expand(-1, number + 1, -1)  # (A, c, c - 1)
    tokens = drafts[:, None].where(present, sequences.gather(2, where))
    return sequences.scatter_(2, where, tokens)[..., :-1]


def is_accepted(target: Tensor, draft: Tensor, uniform: Tensor) -> Tensor:
    """Accepts a draft x with probability min(1, p(x) / q(x)), given log p(x), log q(x) and a uniform number."""
    return uniform < (target - draft).double().exp()


def count_leading(accepted: Tensor) -> Tensor:
    """Counts the drafts of each row that are accepted before the first rejection: (A, c - 1) bool -> (A,)."""
    return accepted.long().cumprod(dim=1).sum(dim=1)


def residual(target: Tensor, draft: Tensor) -> Tensor:
    """Returns scores of the normalised (p - q)+, from which a rejected draft is replaced.

    Where rounding leaves nothing of p - q, they are those of p: then p and q are the same.

    Args:
        target, draft: (n, V) log p and log q.
    """
    excess = (target.exp() - draft.exp()).clamp(min=0)  # (n, V)
    return torch.where(excess.sum(dim=1, keepdim=True) > 0, excess.log(), target)


class Drafts:
    """Holds each row's drafts between two rounds, in tensors that stay where they are.

    number: k - 1. tokens, logprobs: (R, k - 1) each draft x, and log q(x). states: (R, k - 1, D) the hidden states that
    q was computed from; q itself would take V numbers for each draft. missing: (R, 1) the last position written, which
    was still masked when they were computed.

    Args:
        draw, accept: (R, L) float64 uniforms. One number for each position draws its draft, another one decides whether
            that is accepted. What replaces a draft is drawn as any token of the canvas is.
    """

    STATES = "draft states"

    def __init__(self, tensors: StaticTensors, number: int, draw: Tensor, accept: Tensor):
        self.kept, self.number = tensors, number
        self.draw = tensors.put("draw drafts", pad(draw.flatten(), (0, 1)))  # (R L + 1,)
        self.accept = tensors.put("accept drafts", pad(accept.flatten(), (0, 1)))  # (R L + 1,)
        rows = len(accept)
        self.tokens = tensors.put("draft tokens", torch.zeros(rows, number, dtype=torch.int64, device="cpu"))
        self.logprobs = tensors.put("draft logprobs", torch.zeros(rows, number, dtype=torch.float32, device="cpu"))
        self.missing = tensors.put("missing", torch.zeros(rows, 1, dtype=torch.int64, device="cpu"))

    @property
    def states(self) -> Tensor | None:
        """Gives the states; None before the first round of all, which tells their width and dtype."""
        return self.kept.tensors.get(self.STATES)

    def keep(self, tokens: Tensor, logprobs: Tensor, states: Tensor, missing: Tensor) -> None:
        """Keeps the drafts of the first A rows: (A, k - 1), (A, k - 1), (A, k - 1, D) and (A, 1)."""
        if self.states is None:
            self.kept.put(self.STATES, states.new_zeros(len(self.tokens), *states.shape[1:]))
        self.kept.put(self.STATES, states)
        for kept, value in ((self.tokens, tokens), (self.logprobs, logprobs), (self.missing, missing)):
            kept[: len(value)].copy_(value)

    def arrange(self, before: Tensor) -> None:
        """Follows rows that were put in another order: `before` (R,) tells where each lay."""
        length = (len(self.draw) - 1) // len(before)
        flat = (each[:-1].unflatten(0, (-1, length)) for each in (self.draw, self.accept))
        for each in (*flat, self.tokens, self.logprobs, self.missing, self.states):
            if each is not None:
                each.copy_(each[before])


__all__ = ["Drafts", "count_leading", "is_accepted", "residual", "speculation_of", "with_drafts"]
