# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Slow and obvious samplers, and the plans and random numbers that `generate` draws.

Shapes: R rows, L length, V vocabulary with the mask.
"""

import torch

from radd_hf.noise_radd import get_noise, reveal_probabilities
from radd_hf.plan_radd import plan_grid, plan_sequence
from support.laws import chosen_by_policy
from support.toys import seeded

ROWS, LENGTH, VOCABULARY = 3, 12, 11
MASK = VOCABULARY - 1
METHODS = [
    {"method": "tweedie", "steps": 5},
    {"method": "tweedie"},
    {"method": "euler", "steps": 8},
    {"method": "first_hitting"},
    {"method": "ordered", "order": "random"},
    {"method": "ordered", "order": "backward", "steps": 3},
]


def canvas() -> torch.Tensor:
    """Makes three rows with different numbers of masks."""
    ids = torch.randint(MASK, (ROWS, LENGTH), generator=seeded(0))
    masked = torch.rand(ROWS, LENGTH, generator=seeded(1)) < torch.tensor([[0.3], [0.6], [1.0]])
    return ids.masked_fill(masked, MASK)


@torch.no_grad()
def sample_slowly(network, ids: torch.Tensor, plan: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Samples row by row, step by step, token by token, with logits of all positions and sums by hand."""
    ids = ids.clone()
    for row in range(len(ids)):
        for step in sorted(set(plan[row].tolist()) - {-1}):
            law = network(input_ids=ids[row : row + 1]).logits[0].double().softmax(dim=-1)  # (L, V)
            for position in (plan[row] == step).nonzero().flatten().tolist():
                token, left = 0, float(uniform[row, position])
                while left >= (probability := float(law[position, token])):
                    token, left = token + 1, left - probability
                ids[row, position] = token
    return ids


@torch.no_grad()
def sample_slowly_by_policy(network, ids: torch.Tensor, settings: dict, uniform: torch.Tensor):
    """Samples row by row, event by event, by the definition of each order. Returns texts and events of the tokens."""
    ids, reveal_step, mask = ids.clone(), torch.full_like(ids, -1), network.config.mask_token_id
    for row in range(len(ids)):
        masks = int((ids[row] == mask).sum())
        steps = min(settings.get("steps") or masks, masks)
        events = [rank * steps // masks for rank in range(masks)]
        event = 0
        while left := (ids[row] == mask).nonzero().flatten().tolist():
            law = network(input_ids=ids[row : row + 1]).logits[0].double().softmax(dim=-1)  # (L, V)
            chosen = chosen_by_policy({place: law[place].tolist() for place in left}, events.count(event), settings)
            for position in chosen:
                distribution = law[position].cumsum(0)
                ids[row, position] = int((distribution <= uniform[row, position] * distribution[-1]).sum())
                reveal_step[row, position] = event
            event += 1
    return ids, reveal_step


def plan_and_uniforms(network, ids: torch.Tensor, method: str, steps: int | None = None, order: str | None = None):
    """Returns the plan and the random numbers that `generate` draws from the same generator."""
    generator = seeded(3)
    masked, draw = ids == MASK, lambda: torch.rand(ids.shape, generator=generator, dtype=torch.float64)
    if method in ("tweedie", "euler"):
        plan = plan_grid(masked, reveal_probabilities(get_noise(network.config), method, steps or LENGTH), draw())
    elif order == "backward":
        plan = plan_sequence(masked, torch.arange(LENGTH).flip(0).expand(ids.shape), steps)
    else:
        plan = plan_sequence(masked, draw())
    return plan, draw()
