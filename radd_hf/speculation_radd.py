# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Reveals several tokens by one evaluation of the network, with exactly the distribution of one token at a time.

    draft   a guess of one of the next tokens, drawn from a distribution that does not know the token revealed last
    round   one evaluation, which checks all drafts of a row at once: it accepts them in their order up to the first
            rejection, replaces the rejected one, and gives the drafts for the next round

RADD gives the distribution of any token given any others, so it drafts for itself. The evaluation that reveals a token
also gives the distributions of the positions that come after it in the order. They only lack that token. So a round
takes one evaluation. Drafting by an evaluation of its own, which lacks nothing, would take two.

A round with c - 1 drafts evaluates c sequences for each row. The first has no draft, each of the others has one more.
A draft x was drawn from a distribution q, and the round finds the true distribution p of its position. The draft is
accepted with probability min(1, p(x) / q(x)). If it is rejected, a draw from the normalised (p - q)+ replaces it. Then
the token has distribution p, whatever q is (arXiv:2211.17192, 2302.01318; for any order arXiv:2504.20456). Sequences
with a rejected draft are not used. If all drafts are accepted, the last sequence gives one more token.

Shapes: R rows, A rows that still have masks, L length, V vocabulary, D features of a state; c sequences of each row in
        a round, which checks c - 1 drafts; k - 1 drafts for the next round; n positions of any rows.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .programs_radd import StaticTensors
from .settings_radd import is_adaptive


def speculation_of(settings: Any) -> int:
    """Returns the setting `speculate`, k; 1 if the method does not reveal one position after the other."""
    one_by_one = settings.method == "ordered" and settings.steps is None and not is_adaptive(settings.order)
    possible = (settings.method == "first_hitting" or one_by_one) and settings.refresh_interval == 1
    return settings.speculate if possible else 1


def with_drafts(canvas: Tensor, positions: Tensor, drafts: Tensor) -> Tensor:
    """Returns the sequences of a round: the first has no draft, each of the others one more.

    Args:
        canvas: (A, L) ids, some of them masks.
        positions: (A, c - 1) the position of each draft; L: nowhere.
        drafts: (A, c - 1) the token of each draft.

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
    """Returns the scores of the normalised (p - q)+, the distribution of the token that replaces a rejected draft.

    If rounding leaves nothing of p - q, p and q are the same, and the scores are those of p.

    Args:
        target, draft: (n, V) log p and log q.
    """
    excess = (target.exp() - draft.exp()).clamp(min=0)  # (n, V)
    return torch.where(excess.sum(dim=1, keepdim=True) > 0, excess.log(), target)


class Drafts:
    """Holds each row's drafts between two rounds, in tensors that keep their place in memory (`programs_radd.py`).

    number: k - 1.
    tokens, logprobs: (R, k - 1) each draft x, and log q(x).
    states: (R, k - 1, D) the hidden states that q was computed from. The distribution q itself would take V numbers for
        each draft.
    missing: (R, 1) the position written last, which was still masked when the states were computed.

    Args:
        draw, accept: (R, L) float64 uniform numbers. For each position, the first draws its draft, and the second
            decides whether that is accepted. A token that replaces a draft is drawn like any other token.
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
        """Gives the states; None before the very first round, which tells their width and dtype."""
        return self.kept.tensors.get(self.STATES)

    def keep(self, tokens: Tensor, logprobs: Tensor, states: Tensor, missing: Tensor) -> None:
        """Keeps the drafts of the first A rows: (A, k - 1), (A, k - 1), (A, k - 1, D) and (A, 1)."""
        if self.states is None:
            self.kept.put(self.STATES, states.new_zeros(len(self.tokens), *states.shape[1:]))
        self.kept.put(self.STATES, states)
        for kept, value in ((self.tokens, tokens), (self.logprobs, logprobs), (self.missing, missing)):
            kept[: len(value)].copy_(value)

    def arrange(self, before: Tensor) -> None:
        """Puts the rows in another order: `before` (R,) says where each of them lay."""
        length = (len(self.draw) - 1) // len(before)
        flat = (each[:-1].unflatten(0, (-1, length)) for each in (self.draw, self.accept))
        for each in (*flat, self.tokens, self.logprobs, self.missing, self.states):
            if each is not None:
                each.copy_(each[before])


__all__ = ["Drafts", "count_leading", "is_accepted", "residual", "speculation_of", "with_drafts"]
