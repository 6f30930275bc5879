# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The exact distributions that `generate` samples from, computed here without it, and the methods that have them.

On networks of 3 positions and 3 real tokens, this file enumerates every text and every plan (which masked positions are
revealed together, and in which order). A position's reveal step has the distribution q_i = r_i prod_{j<i} (1 - r_j).
Reveal steps of positions are independent. Positions of one step are drawn independently given the canvas before the
step. A chi-square test compares samples with the enumeration.

Shapes: R rows, L length, V vocabulary (mask last), m masked positions of a row, n steps of the grid.
"""

import functools
import itertools
import math
from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch
from scipy import stats
from torch import Tensor

from radd_hf.noise_radd import GeometricNoise, LogLinearNoise
from support.toys import StandIn, TableNetwork, seeded, tiny_model

LENGTH = 3
MASK = 3  # V = 4: tokens 0, 1, 2 and the mask
FREE = (MASK,) * LENGTH
GIVEN = -1  # the reveal_step of a given token

ACCEPTED = 1e-4  # a correct sampler has a p-value above this (seeds are fixed, so no test flickers)
REFUSED = 1e-6  # a planted error has one below this


# ---------------------------------------------------------------------------------------------------------
# The exact distributions, slow and obvious, in Python floats
# ---------------------------------------------------------------------------------------------------------


def reveal_rates(noise: str, method: str, steps: int, clipped: bool = True) -> list[float]:
    """Returns r_1 .. r_n of arXiv:2406.03736 (v4), eq. (D.14) and (D.15), for eps = 1e-3 and sigma from 1e-4 to 20.

    The last one is 1 if `clipped`.
    """

    def sigma(t):
        return -math.log(1 - (1 - 1e-3) * t) if noise == "loglinear" else 1e-4 ** (1 - t) * 20.0**t

    def dsigma(t):
        return (1 - 1e-3) / (1 - (1 - 1e-3) * t) if noise == "loglinear" else sigma(t) * math.log(20.0 / 1e-4)

    dt = (1 - 1e-5) / steps
    rates = []
    for i in range(steps):
        t = 1 - i * dt
        if method == "tweedie":
            rates.append((math.exp(-sigma(t - dt)) - math.exp(-sigma(t))) / (1 - math.exp(-sigma(t))))
        else:
            rates.append(dt * dsigma(t) * math.exp(-sigma(t)) / (1 - math.exp(-sigma(t))))
    return [min(1.0, rate) for rate in rates[:-1]] + [1.0] if clipped else rates


def reveal_step_law(rates: list[float]) -> list[float]:
    """Returns q_i = r_i prod_{j<i} (1 - r_j)."""
    law, still_masked = [], 1.0
    for rate in rates:
        law.append(rate * still_masked)
        still_masked *= 1 - rate
    return law


def renumbered(steps: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the same plan with its non-empty steps numbered 0, 1, ..."""
    kept = sorted(set(steps))
    return tuple(kept.index(step) for step in steps)


@functools.cache
def grid_plans(noise: str, method: str, steps: int, masked: int, renumber: bool) -> dict[tuple[int, ...], float]:
    """Returns P(plan) of `masked` positions, each with its own reveal step."""
    law = reveal_step_law(reveal_rates(noise, method, steps))
    plans: Counter = Counter()
    for plan in itertools.product(range(steps), repeat=masked):
        plans[renumbered(plan) if renumber else plan] += math.prod(law[step] for step in plan)
    return plans


def compositions(total: int, parts: int) -> list[tuple[int, ...]]:
    """Returns all ways to write `total` as a sum of `parts` numbers of at least 1."""
    return [sizes for sizes in itertools.product(range(1, total + 1), repeat=parts) if sum(sizes) == total]


def nats_of_groups(profile: list[float], sizes: tuple[int, ...]) -> float:
    """Returns the expected nats of tokens drawn together in groups, the last group when all others are visible."""
    first = len(profile) - sum(sizes)
    return sum(size * profile[first + sum(sizes[:group])] for group, size in enumerate(sizes))


def ordered_plans(
    order, masked: list[int], steps: int | None, profile: list[float] | None = None
) -> dict[tuple[int, ...], float]:
    """Returns P(plan) for masked positions revealed in an order: one by one, in balanced groups or by a profile."""
    m = len(masked)
    if order == "random":
        orders = list(itertools.permutations(masked))
    elif order == "forward":
        orders = [tuple(masked)]
    elif order == "backward":
        orders = [tuple(reversed(masked))]
    else:
        orders = [tuple(position for position in order if position in masked)]
    sizes = [1] * m
    if steps and steps < m:
        sizes = [sum(rank * steps // m == group for rank in range(m)) for group in range(steps)]
    if steps and steps < m and profile is not None:
        sizes = min(compositions(m, steps), key=functools.partial(nats_of_groups, profile))
    events = [group for group, size in enumerate(sizes) for _ in range(size)]
    plans: Counter = Counter()
    for sequence in orders:
        event = dict(zip(sequence, events, strict=True))
        plans[tuple(event[position] for position in masked)] += 1 / len(orders)
    return plans


def token_law(logits: list[float], temperature=1.0, top_k=0, top_p=1.0) -> list[float]:
    """Returns P(token) of a position: softmax(logits / temperature), cut to the k likeliest, then to the top p."""

    def normalised(weights):
        return [weight / sum(weights) for weight in weights]

    law = normalised([0.0 if token == MASK else math.exp(x / temperature) for token, x in enumerate(logits)])
    if top_k:
        law = normalised([p if sum(other > p for other in law) < top_k else 0.0 for p in law])
    return normalised([p if sum(other for other in law if other > p) < top_p else 0.0 for p in law])


def joint_law(logits_of, canvas: tuple[int, ...], plans: dict, **warp) -> dict[tuple[int, ...], float]:
    """Returns P(plan, text). A key is the plan of the masked positions, followed by the L tokens."""
    masked = [position for position, token in enumerate(canvas) if token == MASK]
    joint: Counter = Counter()
    for plan, weight in plans.items():
        canvases = {canvas: weight}
        for step in sorted(set(plan)):
            after: Counter = Counter()
            positions = [position for position, when in zip(masked, plan, strict=True) if when == step]
            for before, p in canvases.items():
                laws = [token_law(logits_of(before)[position], **warp) for position in positions]
                for tokens in itertools.product(range(MASK), repeat=len(positions)):
                    text = list(before)
                    for position, token in zip(positions, tokens, strict=True):
                        text[position] = token
                    after[tuple(text)] += p * math.prod(law[token] for law, token in zip(laws, tokens, strict=True))
            canvases = after
        for text, p in canvases.items():
            joint[plan + text] += p
    assert abs(sum(joint.values()) - 1) < 1e-9
    return joint


def chosen_by_policy(laws: dict[int, list[float]], count: int, settings: dict) -> list[int]:
    """Returns the positions that an adaptive order reveals: `count` of those in `laws`, or what a bound allows."""
    entropy = {position: -sum(p * math.log(p) for p in law if p) for position, law in laws.items()}
    two = {position: sorted(law)[-2:] for position, law in laws.items()}
    order, gamma, threshold = (settings.get(name) for name in ("order", "entropy_bound", "confidence_threshold"))
    order = order or ("confidence" if gamma is None else "entropy")
    if callable(order):
        positions = sorted(laws)
        scores = torch.tensor([[math.log(p) if p else -math.inf for p in laws[position]] for position in positions])
        return [positions[place] for place in order(scores, torch.tensor(positions))]
    certainty = {
        "confidence": {position: most for position, (_, most) in two.items()},
        "margin": {position: most - second for position, (second, most) in two.items()},
        "entropy": {position: -nats for position, nats in entropy.items()},
    }[order]
    ranked = sorted(laws, key=lambda position: -certainty[position])
    tie = {ranked[0]: 0}
    for before, position in itertools.pairwise(ranked):  # certainties closer than 1e-5 are a tie, and the left one wins
        tie[position] = tie[before] + (certainty[before] - certainty[position] > 1e-5)
    ranked = sorted(laws, key=lambda position: (tie[position], position))
    if gamma is not None:
        nats = [entropy[position] for position in ranked]
        count = max(k for k in range(1, len(ranked) + 1) if k == 1 or sum(nats[:k]) - max(nats[:k]) <= gamma)
    if threshold is not None:
        return [position for position in ranked if two[position][1] >= threshold] or ranked[:1]
    return ranked[:count]


def adaptive_joint_law(logits_of, canvas: tuple[int, ...], settings: dict, **warp) -> dict[tuple[int, ...], float]:
    """Returns P(plan, text) under an adaptive order, from the tree of all masked sequences that it can reach."""
    masked = [position for position, token in enumerate(canvas) if token == MASK]
    m, steps = len(masked), settings.get("steps")
    events = [rank * steps // m if steps and steps < m else rank for rank in range(m)]
    joint: Counter = Counter()

    def grow(text: tuple[int, ...], plan: dict[int, int], event: int, p: float):
        left = [position for position in masked if position not in plan]
        if not left:
            joint[tuple(plan[position] for position in masked) + text] += p
            return
        laws = {position: token_law(logits_of(text)[position]) for position in left}
        chosen = chosen_by_policy(laws, events.count(event), settings)
        drawn = [token_law(logits_of(text)[position], **warp) for position in chosen]
        for tokens in itertools.product(range(MASK), repeat=len(chosen)):
            after = list(text)
            for position, token in zip(chosen, tokens, strict=True):
                after[position] = token
            q = math.prod(law[token] for law, token in zip(drawn, tokens, strict=True))
            grow(tuple(after), plan | dict.fromkeys(chosen, event), event + 1, p * q)

    grow(canvas, {}, 0, 1.0)
    assert abs(sum(joint.values()) - 1) < 1e-9
    return joint


def marginal(joint: dict[tuple[int, ...], float], last: int) -> dict[tuple[int, ...], float]:
    law: Counter = Counter()
    for key, p in joint.items():
        law[key[-last:]] += p
    return law


@functools.cache
def logits_by_canvas(network):
    """Returns a function from a canvas to logits (L, V) as lists, after one evaluation of all V^L canvases."""
    canvases = list(itertools.product(range(MASK + 1), repeat=LENGTH))
    with torch.no_grad():
        ids = torch.tensor(canvases)
        logits = network.logits(ids) if isinstance(network, StandIn) else network(ids).logits  # (V^L, L, V)
    return dict(zip(canvases, logits.tolist(), strict=True)).__getitem__


def goodness_of_fit(samples: Tensor, law: dict[tuple[int, ...], float]) -> float:
    """Returns the chi-square p-value of samples (R, K) under `law`, or 0 if one of them is impossible."""
    place = 64 ** torch.arange(samples.shape[1])  # (K,)
    code, count = (samples * place).sum(dim=1).unique(return_counts=True)
    counts = dict(zip(code.tolist(), count.tolist(), strict=True))
    cells, rest = [], [0, 0.0]  # (observed, expected); cells expected less than 5 times are merged
    for key, p in law.items():
        observed = counts.pop(sum(k * 64**i for i, k in enumerate(key)), 0)
        if p == 0 and observed:
            return 0.0
        if p * len(samples) >= 5:
            cells.append([observed, p * len(samples)])
        else:
            rest = [rest[0] + observed, rest[1] + p * len(samples)]
    if counts:
        return 0.0
    cells.sort(key=lambda cell: cell[1])
    if rest[1] >= 5 or not cells:
        cells.append(rest)
    else:
        cells[0] = [cells[0][0] + rest[0], cells[0][1] + rest[1]]
    if len(cells) == 1:
        return 1.0
    observed, expected = zip(*cells, strict=True)
    scale = len(samples) / sum(expected)  # 1 up to rounding
    return float(stats.chisquare(observed, [e * scale for e in expected]).pvalue)


# ---------------------------------------------------------------------------------------------------------
# Every method, every way to condition, every warp
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A method of sampling: arguments of `generate`, and the matching enumeration."""

    name: str
    arguments: dict = field(hash=False)
    noise: str = "loglinear"

    def plans(self, canvas: tuple[int, ...], renumber: bool = True) -> dict[tuple[int, ...], float]:
        masked = [position for position, token in enumerate(canvas) if token == MASK]
        method, steps = self.arguments["method"], self.arguments.get("steps")
        if method in ("tweedie", "euler"):
            return grid_plans(self.noise, method, steps, len(masked), renumber)
        # Hitting times are independent and identically distributed: their order is a uniform permutation.
        order = "random" if method == "first_hitting" else self.arguments["order"]
        return ordered_plans(order, masked, steps, self.arguments.get("information_profile"))

    def joint(self, logits_of, canvas: tuple[int, ...], renumber: bool = True, **warp) -> dict[tuple[int, ...], float]:
        """Returns P(plan, text)."""
        settings = self.arguments
        bounded = settings.keys() & {"entropy_bound", "confidence_threshold"}
        if bounded or callable(settings.get("order")) or settings.get("order") in ("confidence", "margin", "entropy"):
            return adaptive_joint_law(logits_of, canvas, settings, **warp)
        return joint_law(logits_of, canvas, self.plans(canvas, renumber), **warp)


PERMUTATION = [2, 0, 1]
GRID_METHODS = [
    Method(f"{method}-{noise}-{steps}", {"method": method, "steps": steps}, noise)
    for method, noise, steps in itertools.product(("tweedie", "euler"), ("loglinear", "geometric"), (1, 2, 3, 50))
]
SEQUENCE_METHODS = [Method("first_hitting", {"method": "first_hitting"})] + [
    Method(
        f"ordered-{order}-{steps}".replace("[2, 0, 1]", "ids"), {"method": "ordered", "order": order, "steps": steps}
    )
    for order, steps in [
        *itertools.product(("forward", "backward", "random", PERMUTATION), (None, 2)),
        ("backward", 1),
        ("random", 7),
    ]
]
SEQUENCE_METHODS += [  # a profile draws one token first; balanced groups draw two
    Method(
        f"profile-{steps}",
        {"method": "ordered", "order": "random", "steps": steps, "schedule": "profile"}
        | {"information_profile": [3.0, 1.0, 0.5]},
    )
    for steps in (1, 2, 7)
]


def rightmost_and_certain(scores: Tensor, positions: Tensor) -> list[int]:
    """Chooses the rightmost position, and those whose likeliest token is at least 95 % probable: a user's policy."""
    certain = scores.softmax(dim=1).amax(dim=1) >= 0.95
    return (certain | (positions == positions.max())).nonzero().flatten().tolist()


ADAPTIVE_METHODS = [
    Method("-".join(f"{value}" for value in settings.values()), {"method": "ordered"} | settings)
    for settings in (
        {"order": "confidence"},
        {"order": "margin"},
        {"order": "entropy"},
        {"order": "confidence", "steps": 2},
        {"order": "margin", "steps": 1},
        {"entropy_bound": 0.2},
        {"order": "confidence", "entropy_bound": 0.3},
        {"order": "margin", "entropy_bound": 0.0},
        {"confidence_threshold": 0.95},
        {"order": "entropy", "confidence_threshold": 0.9},
    )
]
ADAPTIVE_METHODS += [Method("function", {"method": "ordered", "order": rightmost_and_certain})]
# These have the distribution of the same method without speculation.
SPECULATIVE_METHODS = [
    Method("first_hitting-speculate", {"method": "first_hitting", "speculate": 3}),
    Method("ordered-forward-speculate", {"method": "ordered", "order": "forward", "speculate": 2}),
    Method("ordered-ids-speculate", {"method": "ordered", "order": PERMUTATION, "speculate": 8}),
]
METHODS = GRID_METHODS + SEQUENCE_METHODS + ADAPTIVE_METHODS + SPECULATIVE_METHODS
FEW_STEPS = [method for method in METHODS if (method.arguments.get("steps") or 1) < 50]
BY_NAME = {method.name: method for method in METHODS}

# name -> (arguments of generate, the canvas they mean)
CONDITIONS = {
    "prefix": ({"prefix": [2], "length": LENGTH}, (2, MASK, MASK)),
    "suffix": ({"suffix": [0], "length": LENGTH}, (MASK, MASK, 0)),
    "prefix+suffix": ({"prefix": [1], "suffix": [2], "length": LENGTH}, (1, MASK, 2)),
    "canvas": ({"input_ids": [MASK, 1, MASK]}, (MASK, 1, MASK)),
}
WARPS = {
    "top_k": {"top_k": 2},
    "top_k 1": {"top_k": 1},
    "temperature": {"temperature": 0.6},
    "hot": {"temperature": 2.5},
    "top_p": {"top_p": 0.7},
    "all": {"temperature": 1.5, "top_k": 2, "top_p": 0.8},
}

each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
each_grid_method = pytest.mark.parametrize("method", GRID_METHODS, ids=lambda method: method.name)
each_warp = pytest.mark.parametrize("warp", WARPS.values(), ids=WARPS)
each_condition = pytest.mark.parametrize(("arguments", "canvas"), CONDITIONS.values(), ids=CONDITIONS)


@functools.cache
def table_network(noise: str = "loglinear") -> TableNetwork:
    return TableNetwork(4, LENGTH, noise)


@functools.cache
def real_network(noise: str = "loglinear"):
    return tiny_model(4, LENGTH, noise)


def p_value(network, method: Method, canvas=FREE, sampled: dict | None = None, samples=20_000, seed=1, **warp) -> float:
    """Returns the p-value of samples of `generate` under the exact distribution of `method`.

    Args:
        sampled: arguments to replace in `generate` only.
    """
    arguments = {"length": LENGTH} | method.arguments | warp | (sampled or {})
    if "input_ids" not in arguments and "prefix" not in arguments and "suffix" not in arguments:
        arguments["input_ids"] = list(canvas)
    text = network.generate(**arguments, num_return_sequences=samples, generator=seeded(seed))  # (R, L)
    joint = method.joint(logits_by_canvas(network), canvas, **warp)
    return goodness_of_fit(text, marginal(joint, LENGTH))


# ---------------------------------------------------------------------------------------------------------
# Longer texts, without enumeration
# ---------------------------------------------------------------------------------------------------------

NOISES = {"loglinear": LogLinearNoise(eps=1e-3), "geometric": GeometricNoise(sigma_min=1e-4, sigma_max=20.0)}


@functools.cache
def longer_model(noise: str = "loglinear"):
    return tiny_model(12, 9, noise, seed=1)


LONGER_METHODS = [
    *(
        Method(f"{kind}-{noise}-{steps}", {"method": kind, "steps": steps}, noise)
        for kind, noise, steps in itertools.product(("tweedie", "euler"), NOISES, (1, 4, 30))
    ),
    Method("first_hitting", {"method": "first_hitting"}),
    *(
        Method(f"ordered-{order}-{steps}", {"method": "ordered", "order": order, "steps": steps})
        for order, steps in itertools.product(("forward", "backward", "random"), (None, 3))
    ),
    Method("ordered-ids", {"method": "ordered", "order": [4, 0, 8, 2, 6, 1, 7, 3, 5]}),
    Method("first_hitting-speculate", {"method": "first_hitting", "speculate": 4}),
]
each_longer_method = pytest.mark.parametrize("method", LONGER_METHODS, ids=lambda method: method.name)
