# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Computes the likelihood of texts in the order that a policy chooses (`policy_radd.py`).

A policy chooses the next positions from the masked sequence alone. So exactly one series of choices leads to a given
text. The probability of the text is the product of the probabilities of its tokens along this series. The computation
repeats four steps: evaluate the network, let the policy choose positions, add -log p of the text's tokens there, make
these tokens visible (arXiv:2603.01367, which calls this DUEL). The probabilities of all texts sum to one.

An event is one evaluation of the network and the tokens that it reveals. It draws its tokens independently, so their
nats (-log p, the unit of natural logarithms) add up.

Shapes: B texts, L length, V vocabulary; A rows that still have masks, K the largest number of masks in a row, N the
        masks of all rows, n masks of a chunk.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .canvas_radd import Positions, padded_nonzero
from .generation_radd import MAX_DRAW_ELEMENTS
from .plan_radd import plan_sequence
from .policy_radd import Beliefs, Policy


@torch.no_grad()
def nats_under_policy(
    model: Any, x0: Tensor, masked: Tensor, policy: Policy, steps: int | None = None
) -> Iterator[Tensor]:
    """Yields after every event -log p of each token, given the tokens visible before: (B, L) float64 on the CPU.

    It is nan where a token is still masked, and 0 where it was visible from the beginning. The rows of a batch advance
    together, each by its own events. Rows without masks are no longer evaluated.

    Args:
        x0: (B, L) clean ids.
        masked: (B, L) bool, the tokens to reveal.
        steps: the most events, in balanced groups; used by a policy that does not decide how many positions it reveals.
    """
    network = model.compute_logits.__self__  # the network inside a wrapper, such as PEFT's
    device = network.model.device
    x0, masked = x0.to(device), masked.to(device)
    planned = plan_sequence(masked, torch.zeros_like(x0), steps)  # (B, L) only the sizes of its groups are used
    nats = torch.zeros(x0.shape).masked_fill(masked.cpu(), torch.nan).double()
    event = 0
    while bool(masked.any()):
        rows = masked.any(dim=1).nonzero().squeeze(1)  # (A,)
        visible_and_masks = x0[rows].masked_fill(masked[rows], model.config.mask_token_id)  # (A, L)
        indices, real = padded_nonzero(masked[rows], int(masked.sum(dim=1).max()))  # (A, K) both
        tokens = x0[rows].gather(1, indices)  # (A, K)
        beliefs, nll = _look(network, visible_and_masks, indices, real, tokens, policy)  # (A, K) each
        count = (planned[rows] == event).sum(dim=1, keepdim=True)  # (A, 1)
        row, slot = policy.choose(beliefs, real, count).nonzero(as_tuple=True)  # (revealed,) both
        where = rows[row], indices[row, slot]
        nats[where[0].cpu(), where[1].cpu()] = nll[row, slot].double().cpu()
        masked = masked.index_put(where, torch.zeros_like(row, dtype=torch.bool))
        event += 1
        yield nats.clone()


def _look(
    network: Any, sequences: Tensor, indices: Tensor, real: Tensor, tokens: Tensor, policy: Policy
) -> tuple[Beliefs, Tensor]:
    """Evaluates masked sequences (A, L); returns the beliefs and -log p of the true tokens at the masks, (A, K) each.

    The head runs on a chunk of masks at a time. If the policy is a user's function, a chunk has the masks of one row.

    Args:
        indices: (A, K) positions of the masks.
        real: (A, K) bool, False where a row has fewer masks.
        tokens: (A, K) ids of the true tokens.
    """
    positions = Positions(indices, real.flatten().nonzero().squeeze(1))
    hidden = network.model(input_ids=sequences, output_positions=positions).last_hidden_state  # (N, D)
    of_a_row = real.sum(dim=1).tolist()
    sizes = of_a_row if callable(policy.order) else max(MAX_DRAW_ELEMENTS // network.config.vocab_size, 1)
    found = []  # (n, 4) of each chunk
    parts = (each.split(sizes) for each in (hidden, indices[real], tokens[real]))
    for h, where, token in zip(*parts, strict=True):
        scores = network.compute_logits(h).float()  # (n, V)
        beliefs = policy.ask(scores, where) if callable(policy.order) else policy.beliefs(scores)  # (n,) each
        nll = scores.logsumexp(dim=-1) - scores.gather(1, token[:, None]).squeeze(1)  # (n,)
        found.append(torch.stack([*beliefs, nll], dim=1))
    spread = torch.zeros(*real.shape, 4, device=real.device)  # (A, K, 4)
    spread[real] = torch.cat(found)
    *of_policy, nll = spread.unbind(dim=2)
    return Beliefs(*of_policy), nll
