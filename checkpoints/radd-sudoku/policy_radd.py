# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Chooses which masked positions are revealed next, from the network's distributions there: adaptive orders.

    beliefs   what the network's distribution says of each masked position: certainty, entropy, largest probability
    choice    the positions that an event reveals: the most certain ones, or as many as a bound allows

The choice is a function of the masked sequence. It does not depend on the tokens that the event draws, so that the
distribution of a text under a policy is exact, and can be computed (`likelihood.py`, arXiv:2603.01367).

Shapes: n positions of any rows, V vocabulary; A rows, K masked positions of a row at most; m those of one row.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .settings_radd import is_adaptive, shortened

# Certainties that lie closer than this, one after the other, are a tie. In a text without a visible token all positions
# have the same distribution, and the network's rounding (some 1e-6) must not decide which of them is first.
TIE = 1e-5

# A user's own: scores (m, V) and positions (m,) of a row's masks -> the places in these, or a boolean mask (m,).
PolicyFunction = Callable[[Tensor, Tensor], Any]


class Beliefs(NamedTuple):
    """Holds what the network's distribution says of each masked position; all (n,) or (A, K) float32.

    certainty: the larger, the earlier is the position revealed. entropy: in nats. top: the largest probability.
    """

    certainty: Tensor
    entropy: Tensor
    top: Tensor


@dataclass(frozen=True)
class Policy:
    """Decides which masked positions an event reveals. Ties go to the left, see TIE.

    order: "confidence" takes the positions whose likeliest token has the largest probability, "margin" those with the
        largest gap between their two likeliest, "entropy" those with the least entropy; or a function of the user's.
    entropy_bound: gamma >= 0; reveals as many positions, in this order, as keep the sum of their entropies less the
        largest within gamma nats (arXiv:2505.24857); the first one always.
    confidence_threshold: p; reveals all positions whose likeliest token has at least probability p, else the first.
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
        """Gives what a capture depends on. Functions are not captured."""
        return self.order, self.entropy_bound, self.confidence_threshold

    def beliefs(self, scores: Tensor) -> Beliefs:
        """Returns the beliefs of positions from scores (n, V), -inf for tokens that are ruled out."""
        probabilities = scores.float().softmax(dim=-1)  # (n, V)
        two = probabilities.topk(2, dim=-1).values  # (n, 2)
        top, entropy = two[:, 0], torch.special.entr(probabilities).sum(dim=-1)  # (n,) both
        certainty = {"confidence": top, "margin": top - two[:, 1], "entropy": -entropy}
        return Beliefs(certainty[str(self.order)], entropy, top)

    def ask(self, scores: Tensor, positions: Tensor) -> Beliefs:
        """Calls the user's function for the masks of one row, and returns its choice as certainty 1, else 0.

        Raises:
            ValueError: if it chooses no position, or returns something else than a choice.
        """
        assert callable(self.order)
        scores = scores.float().clamp(min=torch.finfo(torch.float32).min)  # in sums of p log p -inf would make nan
        answer = self.order(scores, positions)
        chosen = torch.zeros(len(scores))  # (m,) on the CPU, where a wrong place is an error that can be caught
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
        return Beliefs(*(chosen.to(scores.device),) * 3)  # nothing looks at the last two

    def choose(self, beliefs: Beliefs, masked: Tensor, count: Tensor | int = 1) -> Tensor:
        """Chooses the positions to reveal, at least one in each row that has a mask.

        Args:
            beliefs: (A, K) each, of positions in ascending order. masked: (A, K) bool, False where there is none.
            count: (A, 1), or for all rows, how many to choose; for a policy that does not decide it.

        Returns:
            (A, K) bool.
        """
        certainty = beliefs.certainty.masked_fill(~masked, -torch.inf)
        if callable(self.order):
            return certainty > 0
        ranked = rank_with_ties(certainty)  # (A, K) places, the most certain first
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
    """Returns the places of (A, K) in descending order, those of a tie from left to right: (A, K)."""
    descending, ranked = certainty.sort(dim=1, descending=True)  # (A, K) both
    falls = (descending[:, :-1] - descending[:, 1:] > TIE).cumsum(dim=1)  # (A, K - 1)
    group = torch.zeros_like(ranked).scatter_(1, ranked[:, 1:], falls)  # (A, K) of each place; the first is 0
    return group.argsort(dim=1, stable=True)


def policy_of(settings: Any) -> Policy | None:
    """Returns the policy that settings of `generate` ask for; None for a plan that is made first."""
    if settings.method != "ordered" or not is_adaptive(settings.order):
        return None
    return Policy(settings.order, settings.entropy_bound, settings.confidence_threshold)


__all__ = ["Beliefs", "Policy", "PolicyFunction", "policy_of"]
