# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Chooses which masked positions are revealed next, by how certain the network is there: adaptive orders.

    event     one evaluation of the network, and the tokens that it reveals
    beliefs   what the network's distribution says of each masked position: certainty, entropy, largest probability
    choice    the positions that an event reveals: the most certain ones, or as many as a bound allows
    policy    the rule that makes the choice from the beliefs

The choice is a function of the masked sequence, and does not depend on the tokens that the event draws. So the
probability of a text under a policy is defined, and `policy_likelihood.py` computes it exactly (arXiv:2603.01367).

Shapes: n positions of any rows, V vocabulary, A rows, K the largest number of masked positions in a row, m the number
        of masked positions in one row.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .settings_radd import is_adaptive, shortened

# Two neighbours in the ranking are a tie if their certainties differ by no more than this. In a text without a visible
# token all positions have the same distribution. The network's rounding (some 1e-6) must not decide which is first.
TIE = 1e-5

# A user's function: scores (m, V) and positions (m,) of a row's masks -> indices into these, or a boolean mask (m,).
PolicyFunction = Callable[[Tensor, Tensor], Any]


class Beliefs(NamedTuple):
    """Holds what the network's distribution says of each masked position; all (n,) or (A, K) float32.

    certainty: the position with the largest is revealed first.
    entropy: in nats, the unit of natural logarithms.
    top: the largest probability of a token.
    """

    certainty: Tensor
    entropy: Tensor
    top: Tensor


@dataclass(frozen=True)
class Policy:
    """Decides which masked positions an event reveals. Of tied positions, the left one is first; see TIE.

    order: "confidence" takes first the positions whose likeliest token has the largest probability, "margin" those with
        the largest gap between the two likeliest tokens, "entropy" those with the least entropy. Or a user's function.
    entropy_bound: gamma >= 0. An event reveals positions in this order as long as the sum of their entropies, without
        the largest of them, is at most gamma nats (arXiv:2505.24857). It always reveals the first one.
    confidence_threshold: p. An event reveals all positions whose likeliest token has at least probability p. If there
        is none, it reveals the first position in the order.
    """

    order: str | PolicyFunction
    entropy_bound: float | None = None
    confidence_threshold: float | None = None

    @property
    def decides_how_many(self) -> bool:
        """Tells whether the network's output decides how many positions an event reveals."""
        return callable(self.order) or self.entropy_bound is not None or self.confidence_threshold is not None

    @property
    def key(self) -> Hashable:
        """Gives what a captured CUDA graph depends on. Functions are not captured."""
        return self.order, self.entropy_bound, self.confidence_threshold

    def beliefs(self, scores: Tensor) -> Beliefs:
        """Computes the beliefs about n positions from scores (n, V), -inf for tokens that are ruled out."""
        probabilities = scores.float().softmax(dim=-1)  # (n, V)
        two = probabilities.topk(2, dim=-1).values  # (n, 2)
        top, entropy = two[:, 0], torch.special.entr(probabilities).sum(dim=-1)  # (n,) both
        certainty = {"confidence": top, "margin": top - two[:, 1], "entropy": -entropy}
        return Beliefs(certainty[str(self.order)], entropy, top)

    def ask(self, scores: Tensor, positions: Tensor) -> Beliefs:
        """Calls the user's function for the masks of one row; chosen positions get certainty 1, the others 0.

        Raises:
            ValueError: if the function chooses no position, or does not return a choice.
        """
        assert callable(self.order)
        scores = scores.float().clamp(min=torch.finfo(torch.float32).min)  # with -inf, a sum of p log p would be nan
        answer = self.order(scores, positions)
        chosen = torch.zeros(len(scores))  # (m,) on the CPU, where a wrong index raises an error that can be caught
        try:
            places = torch.atleast_1d(torch.as_tensor(answer).cpu())
            if places.ndim != 1 or (places.is_floating_point() and len(places) > 0):  # an empty list makes floats
                raise TypeError
            chosen[places if places.dtype == torch.bool else places.long()] = 1
        except (TypeError, ValueError, IndexError, RuntimeError):
            raise ValueError(
                f"order={shortened(self.order)} returned {shortened(answer)}; it must return the places of some of the "
                f"{len(scores)} positions that it was given, or a boolean mask of them."
            ) from None
        if not bool(chosen.any()):
            raise ValueError(f"order={shortened(self.order)} chose no position; each event must reveal one at least.")
        return Beliefs(*(chosen.to(scores.device),) * 3)  # entropy and top are not used

    def choose(self, beliefs: Beliefs, masked: Tensor, count: Tensor | int = 1) -> Tensor:
        """Chooses the positions to reveal, at least one in each row that has a mask.

        Args:
            beliefs: (A, K) each, of positions in ascending order.
            masked: (A, K) bool, False where a row has fewer masked positions.
            count: how many to choose, (A, 1) or one number for all rows; used by a policy that does not decide it.

        Returns:
            (A, K) bool.
        """
        certainty = beliefs.certainty.masked_fill(~masked, -torch.inf)
        if callable(self.order):
            return certainty > 0
        ranked = rank_with_ties(certainty)  # (A, K) indices, the most certain first
        rank = ranked.argsort(dim=1)  # (A, K)
        if self.entropy_bound is not None:
            entropy = beliefs.entropy.masked_fill(~masked, torch.inf).gather(1, ranked).double()  # (A, K)
            excess = entropy.cumsum(dim=1) - entropy.cummax(dim=1).values  # (A, K), inf - inf beyond the masks
            count = (excess <= self.entropy_bound).sum(dim=1, keepdim=True).clamp(min=1)  # (A, 1)
        chosen = rank < count
        if self.confidence_threshold is not None:
            certain = masked & (beliefs.top >= self.confidence_threshold)
            chosen = certain | ((rank < 1) & ~certain.any(dim=1, keepdim=True))
        return masked & chosen


def rank_with_ties(certainty: Tensor) -> Tensor:
    """Returns the indices that sort (A, K) in descending order, those of a tie from left to right: (A, K)."""
    descending, ranked = certainty.sort(dim=1, descending=True)  # (A, K) both
    falls = (descending[:, :-1] - descending[:, 1:] > TIE).cumsum(dim=1)  # (A, K - 1)
    group = torch.zeros_like(ranked).scatter_(1, ranked[:, 1:], falls)  # (A, K) number of each one's tie, from 0
    return group.argsort(dim=1, stable=True)


def policy_of(settings: Any) -> Policy | None:
    """Returns the policy that settings of `generate` ask for; None if the order is known beforehand."""
    if settings.method != "ordered" or not is_adaptive(settings.order):
        return None
    return Policy(settings.order, settings.entropy_bound, settings.confidence_threshold)


__all__ = ["Beliefs", "Policy", "PolicyFunction", "policy_of"]
