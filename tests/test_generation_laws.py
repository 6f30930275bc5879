# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""What `generate` samples, held against laws that are computed here without it.

Law of the output. On networks of 3 positions and 3 real tokens every plan (which masked positions are revealed
together, in which order) and every text is enumerated: a position's reveal step has the law
q_i = r_i prod_{j<i} (1 - r_j), positions are independent in WHEN, and positions of one step are drawn independently
given the canvas before the step. Samples of every method are compared with that by chi-square, and so are planted
errors (a rate 5 % off, a shifted order, ...), which the same comparison must refuse.

Beside it: number of evaluations, use_cache=False, reveal probabilities, no mask in the output, given tokens,
independence of the batch, the tail of the token draw, and log-probabilities.

Shapes: R rows, L length, V vocabulary (mask last), m masked positions of a row, n steps of the grid.
"""

import functools
import itertools
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from scipy import stats
from torch import Tensor
from toys import FlatNetwork, TableNetwork, seeded, tiny_model

from radd_hf import generation_radd
from radd_hf.generation_radd import draw_tokens
from radd_hf.noise_radd import GeometricNoise, LogLinearNoise, reveal_probabilities

LENGTH = 3
MASK = 3  # V = 4: tokens 0, 1, 2 and the mask
FREE = (MASK,) * LENGTH
GIVEN = -1  # of reveal_step

ACCEPTED = 1e-4  # a right sampler has a p-value above this (seeds are fixed: no flicker)
REFUSED = 1e-6  # a planted error has one below this


# ---------------------------------------------------------------------------------------------------------
# The exact laws, slow and obvious, in Python floats
# ---------------------------------------------------------------------------------------------------------


def reveal_rates(noise: str, method: str, steps: int, clipped: bool = True) -> list[float]:
    """r_1 .. r_n of arXiv:2406.03736 (v4), eq. (D.14) and (D.15), for eps = 1e-3 and sigma from 1e-4 to 20.

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
    """q_i = r_i prod_{j<i} (1 - r_j)."""
    law, still_masked = [], 1.0
    for rate in rates:
        law.append(rate * still_masked)
        still_masked *= 1 - rate
    return law


def renumbered(steps: tuple[int, ...]) -> tuple[int, ...]:
    """The same plan with its non-empty steps numbered 0, 1, ..."""
    kept = sorted(set(steps))
    return tuple(kept.index(step) for step in steps)


@functools.cache
def grid_plans(noise: str, method: str, steps: int, masked: int, renumber: bool) -> dict[tuple[int, ...], float]:
    """P(plan) of `masked` positions, each with its own reveal step."""
    law = reveal_step_law(reveal_rates(noise, method, steps))
    plans: Counter = Counter()
    for plan in itertools.product(range(steps), repeat=masked):
        plans[renumbered(plan) if renumber else plan] += math.prod(law[step] for step in plan)
    return plans


def ordered_plans(order, masked: list[int], steps: int | None) -> dict[tuple[int, ...], float]:
    """P(plan) when masked positions are revealed in an order, one by one or in balanced groups."""
    m = len(masked)
    if order == "random":
        orders = list(itertools.permutations(masked))
    elif order == "forward":
        orders = [tuple(masked)]
    elif order == "backward":
        orders = [tuple(reversed(masked))]
    else:
        orders = [tuple(position for position in order if position in masked)]
    plans: Counter = Counter()
    for sequence in orders:
        event = {position: rank * steps // m if steps and steps < m else rank for rank, position in enumerate(sequence)}
        plans[tuple(event[position] for position in masked)] += 1 / len(orders)
    return plans


def token_law(logits: list[float], temperature=1.0, top_k=0, top_p=1.0) -> list[float]:
    """P(token) of one position: softmax(logits / temperature), then the k likeliest, then the likeliest up to p."""

    def normalised(weights):
        return [weight / sum(weights) for weight in weights]

    law = normalised([0.0 if token == MASK else math.exp(x / temperature) for token, x in enumerate(logits)])
    if top_k:
        law = normalised([p if sum(other > p for other in law) < top_k else 0.0 for p in law])
    return normalised([p if sum(other for other in law if other > p) < top_p else 0.0 for p in law])


def joint_law(logits_of, canvas: tuple[int, ...], plans: dict, **warp) -> dict[tuple[int, ...], float]:
    """P(plan, text): keys are the plan of the masked positions followed by the L tokens."""
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


def marginal(joint: dict[tuple[int, ...], float], last: int) -> dict[tuple[int, ...], float]:
    law: Counter = Counter()
    for key, p in joint.items():
        law[key[-last:]] += p
    return law


@functools.cache
def logits_by_canvas(network):
    """canvas -> logits (L, V) as lists, from one look at all V^L canvases at every position."""
    canvases = list(itertools.product(range(MASK + 1), repeat=LENGTH))
    with torch.no_grad():
        ids = torch.tensor(canvases)
        logits = network.logits(ids) if isinstance(network, TableNetwork) else network(ids).logits  # (V^L, L, V)
    return dict(zip(canvases, logits.tolist(), strict=True)).__getitem__


def goodness_of_fit(samples: Tensor, law: dict[tuple[int, ...], float]) -> float:
    """Chi-square p-value of samples (R, K) under `law`; 0 if one of them is impossible."""
    place = 64 ** torch.arange(samples.shape[1])  # (K,)
    code, count = (samples * place).sum(dim=1).unique(return_counts=True)
    counts = dict(zip(code.tolist(), count.tolist(), strict=True))
    cells, rest = [], [0, 0.0]  # (observed, expected), cells expected less than 5 times in one
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
    scale = len(samples) / sum(expected)  # 1 but for rounding
    return float(stats.chisquare(observed, [e * scale for e in expected]).pvalue)


# ---------------------------------------------------------------------------------------------------------
# Every method, every way to condition, every warp
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """Arguments of `generate`, and the same in the words of the enumeration."""

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
        return ordered_plans(order, masked, steps)


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
METHODS = GRID_METHODS + SEQUENCE_METHODS
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
    """Of samples from `generate` under the exact law of `method`; `sampled` replaces arguments in generate alone."""
    arguments = {"length": LENGTH} | method.arguments | warp | (sampled or {})
    if "input_ids" not in arguments and "prefix" not in arguments and "suffix" not in arguments:
        arguments["input_ids"] = list(canvas)
    text = network.generate(**arguments, num_return_sequences=samples, generator=seeded(seed))  # (R, L)
    joint = joint_law(logits_by_canvas(network), canvas, method.plans(canvas), **warp)
    return goodness_of_fit(text, marginal(joint, LENGTH))


# ---------------------------------------------------------------------------------------------------------
# The law of the output
# ---------------------------------------------------------------------------------------------------------


@each_method
def test_every_method_samples_its_enumerated_law(method):
    assert p_value(table_network(method.noise), method) > ACCEPTED


@each_method
def test_the_real_network_is_sampled_by_its_enumerated_law(method):
    assert p_value(real_network(method.noise), method) > ACCEPTED


@each_method
@each_condition
def test_every_method_samples_its_law_given_some_tokens(method, arguments, canvas):
    assert p_value(table_network(method.noise), method, canvas, sampled=arguments) > ACCEPTED


@each_method
@each_warp
def test_every_method_samples_its_law_under_temperature_top_k_and_top_p(method, warp):
    assert p_value(table_network(method.noise), method, **warp) > ACCEPTED


@each_method
def test_temperature_0_takes_the_likeliest_token(method):
    assert p_value(table_network(method.noise), method, sampled={"top_k": 0, "temperature": 0}, top_k=1) > ACCEPTED


@each_method
@each_condition
def test_every_method_samples_its_law_given_some_tokens_under_top_k(method, arguments, canvas):
    assert p_value(table_network(method.noise), method, canvas, sampled=arguments, top_k=2) > ACCEPTED


@each_method
def test_the_real_network_is_sampled_by_its_law_given_some_tokens_under_top_k(method):
    arguments, canvas = CONDITIONS["canvas"]
    assert p_value(real_network(method.noise), method, canvas, sampled=arguments, top_k=2) > ACCEPTED


@pytest.mark.parametrize("name", ["tweedie-loglinear-2", "euler-geometric-3", "first_hitting", "ordered-backward-1"])
@each_condition
@each_warp
def test_given_tokens_and_warps_together_keep_the_law(name, arguments, canvas, warp):
    method = BY_NAME[name]
    assert p_value(table_network(method.noise), method, canvas, sampled=arguments, **warp) > ACCEPTED


@pytest.mark.parametrize("method", FEW_STEPS, ids=lambda method: method.name)
def test_when_and_what_together_follow_the_joint_law(method):
    network = table_network(method.noise)
    out = network.generate(
        **method.arguments, num_return_sequences=100_000, generator=seeded(2), return_dict_in_generate=True
    )
    joint = joint_law(logits_by_canvas(network), FREE, method.plans(FREE, renumber=False))
    assert goodness_of_fit(torch.cat([out.reveal_step, out.sequences], dim=1), joint) > ACCEPTED


@pytest.mark.parametrize(("masked", "steps"), [(9, 4), (9, 6), (7, 5), (8, 8), (5, 2), (3, 1), (4, 30)])
@pytest.mark.parametrize("order", ["forward", "backward"])
def test_fewer_steps_than_masks_reveal_balanced_groups_in_order(order, masked, steps):
    out = FlatNetwork(12, 9).generate(
        suffix=[1] * (9 - masked), method="ordered", order=order, steps=steps, return_dict_in_generate=True
    )
    events = out.reveal_step[0, :masked].tolist()
    expected = [rank * min(steps, masked) // masked for rank in range(masked)]
    assert (events if order == "forward" else events[::-1]) == expected
    assert out.num_function_evaluations.tolist() == [min(steps, masked)]


def reveal_step_p_value(method: Method, rows: int) -> float:
    """Of the reveal steps of 3 `rows` positions under q: that of the worst step, times the number of steps."""
    steps = method.arguments["steps"]
    out = table_network(method.noise).generate(
        **method.arguments, num_return_sequences=rows, generator=seeded(3), return_dict_in_generate=True
    )
    counts = out.reveal_step.flatten().bincount(minlength=steps).tolist()  # (n,)
    law = reveal_step_law(reveal_rates(method.noise, method.arguments["method"], steps))
    return steps * min(
        stats.binomtest(count, LENGTH * rows, min(q, 1.0)).pvalue for count, q in zip(counts, law, strict=True)
    )


@each_grid_method
def test_reveal_steps_follow_q(method):
    assert reveal_step_p_value(method, rows=100_000) > ACCEPTED


# ---------------------------------------------------------------------------------------------------------
# Planted errors, which the same comparisons must refuse
# ---------------------------------------------------------------------------------------------------------


def plant_wrong_rate(monkeypatch, step: int, factor: float):
    right = generation_radd.reveal_probabilities

    def wrong(*args):
        rates = right(*args).clone()
        rates[step] = (rates[step] * factor).clamp(max=1)
        return rates

    monkeypatch.setattr(generation_radd, "reveal_probabilities", wrong)


@pytest.mark.parametrize(
    ("name", "step", "samples"),
    [
        ("tweedie-loglinear-2", 0, 200_000),
        ("euler-loglinear-2", 0, 200_000),
        ("tweedie-loglinear-3", 0, 400_000),
        ("tweedie-loglinear-3", 1, 700_000),
        ("tweedie-geometric-3", 1, 200_000),
    ],
)
def test_a_rate_5_percent_off_in_one_step_is_caught_in_the_text(name, step, samples):
    method = BY_NAME[name]
    # Sharp conditionals: texts then tell whether tokens were drawn together or one after the other. Of 20 tables
    # this one has the largest chi-square between right and wrong rates: in expectation at least 90 at these sizes.
    network = TableNetwork(4, LENGTH, method.noise, scale=10.0, seed=18)
    assert p_value(network, method, samples=samples) > ACCEPTED
    for factor in (0.95, 1.05):
        with pytest.MonkeyPatch.context() as monkeypatch:
            plant_wrong_rate(monkeypatch, step, factor)
            assert p_value(network, method, samples=samples) < REFUSED


@pytest.mark.parametrize(
    ("name", "step"), [("tweedie-loglinear-50", 0), ("euler-loglinear-50", 25), ("tweedie-geometric-50", 15)]
)
def test_a_rate_5_percent_off_in_one_of_50_steps_is_caught_in_the_reveal_steps(name, step):
    method, rows = BY_NAME[name], 400_000
    assert reveal_step_p_value(method, rows) > ACCEPTED
    for factor in (0.95, 1.05):
        with pytest.MonkeyPatch.context() as monkeypatch:
            plant_wrong_rate(monkeypatch, step, factor)
            assert reveal_step_p_value(method, rows) < REFUSED


@pytest.mark.parametrize(
    ("name", "sampled"),
    [
        ("ordered-ids-None", {"order": [0, 1, 2]}),  # PERMUTATION, shifted by one
        ("ordered-ids-None", {"order": [1, 2, 0]}),  # its inverse: ranks taken for positions
        ("ordered-forward-None", {"order": "backward"}),
        ("ordered-random-None", {"order": "forward"}),
        ("ordered-forward-2", {"steps": None}),  # groups ignored
        ("ordered-forward-None", {"steps": 2}),
        ("first_hitting", {"method": "tweedie", "steps": 2}),  # a coarse grid for continuous time
        ("tweedie-loglinear-2", {"steps": 3}),
        ("tweedie-geometric-3", {"method": "euler"}),
        ("euler-geometric-3", {"method": "tweedie"}),
    ],
)
def test_another_plan_is_caught(name, sampled):
    method = BY_NAME[name]
    assert p_value(table_network(method.noise), method, sampled=sampled) < REFUSED


def test_the_other_noise_is_caught():
    network, method = TableNetwork(4, LENGTH, "geometric"), BY_NAME["tweedie-loglinear-3"]
    assert p_value(network, method) < REFUSED


@pytest.mark.parametrize(
    ("warp", "sampled"),
    [
        ({"top_k": 2}, {"top_k": 0}),
        ({"top_k": 2}, {"top_k": 1}),
        ({"top_p": 0.7}, {"top_p": 1.0}),
        ({"temperature": 0.6}, {"temperature": 1.0}),
        ({"temperature": 1.0}, {"temperature": 1.1}),
    ],
    ids=["top_k ignored", "top_k off by one", "top_p ignored", "temperature ignored", "temperature 10 % off"],
)
@pytest.mark.parametrize("name", ["tweedie-loglinear-3", "euler-geometric-50", "first_hitting", "ordered-ids-2"])
def test_a_wrong_warp_is_caught(name, warp, sampled):
    method = BY_NAME[name]
    assert p_value(table_network(method.noise), method, sampled=sampled, **warp) < REFUSED


# ---------------------------------------------------------------------------------------------------------
# Reveal probabilities
# ---------------------------------------------------------------------------------------------------------

NOISES = {"loglinear": LogLinearNoise(eps=1e-3), "geometric": GeometricNoise(sigma_min=1e-4, sigma_max=20.0)}
GOLDEN_RATES = load_file(Path(__file__).parent / "golden" / "update_rates.safetensors")


@pytest.mark.parametrize("steps", [1, 2, 3, 50, 1024])
@pytest.mark.parametrize("kind", ["tweedie", "euler"])
@pytest.mark.parametrize("noise", NOISES)
def test_reveal_probabilities_are_the_formula(noise, kind, steps):
    expected = torch.tensor(reveal_rates(noise, kind, steps), dtype=torch.float64)  # (n,)
    torch.testing.assert_close(reveal_probabilities(NOISES[noise], kind, steps), expected, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("key", GOLDEN_RATES)
def test_reveal_probabilities_are_the_golden_ones_clipped_and_1_at_the_end(key):
    noise, kind, steps = key.split(".")
    golden = GOLDEN_RATES[key].double()  # (n,) not clipped, last one not forced to 1, in float32
    reveal = reveal_probabilities(NOISES[noise], kind, int(steps))
    torch.testing.assert_close(reveal[:-1], golden[:-1].clamp(max=1), atol=5e-4, rtol=0)
    assert reveal[-1] == 1
    unclipped = torch.tensor(reveal_rates(noise, kind, int(steps), clipped=False), dtype=torch.float64)
    torch.testing.assert_close(unclipped, golden, atol=5e-4, rtol=0)  # the formula of this file is the authors'


# ---------------------------------------------------------------------------------------------------------
# Number of network evaluations
# ---------------------------------------------------------------------------------------------------------


def expected_evaluations(noise: str, kind: str, steps: int, masked: int) -> float:
    """sum_i 1 - (1 - q_i)^m; for log-linear noise, where q is uniform, in closed form."""
    if noise == "loglinear":
        return steps * (1 - (1 - 1 / steps) ** masked)
    return sum(1 - (1 - q) ** masked for q in reveal_step_law(reveal_rates(noise, kind, steps)))


@pytest.mark.parametrize("masked", [64, 10])
@pytest.mark.parametrize("steps", [8, 64, 300])
@pytest.mark.parametrize("kind", ["tweedie", "euler"])
@pytest.mark.parametrize("noise", NOISES)
def test_a_row_takes_the_expected_number_of_evaluations(noise, kind, steps, masked):
    network, rows, length = FlatNetwork(4, 64, noise), 1000, 64
    out = network.generate(
        prefix=[1] * (length - masked),
        method=kind,
        steps=steps,
        num_return_sequences=rows,
        generator=seeded(4),
        return_dict_in_generate=True,
    )
    nfe = out.num_function_evaluations.double()  # (R,)
    error = (nfe.mean().item() - expected_evaluations(noise, kind, steps, masked)) * math.sqrt(rows)
    assert abs(error) < 4 * nfe.std().item() + 1e-6
    distinct = torch.tensor([len(set(row) - {GIVEN}) for row in out.reveal_step.tolist()])
    assert torch.equal(out.num_function_evaluations, distinct)
    # and that is what the network was asked: full batches, as often as the row that takes most
    assert sum(network.rows_evaluated) == nfe.sum()
    assert len(network.rows_evaluated) == nfe.max()


def test_the_log_linear_count_does_not_pass_for_the_geometric_one():
    out = FlatNetwork(4, 64, "geometric").generate(
        steps=64, num_return_sequences=1000, generator=seeded(4), return_dict_in_generate=True
    )
    nfe = out.num_function_evaluations.double()
    error = (nfe.mean().item() - expected_evaluations("loglinear", "tweedie", 64, 64)) * math.sqrt(1000)
    assert abs(error) > 10 * nfe.std().item()


def test_1024_tokens_in_1024_steps_take_about_647_evaluations_and_370_under_geometric_noise():
    for noise, expected in (("loglinear", 647), ("geometric", 370)):
        out = FlatNetwork(4, 1024, noise).generate(
            num_return_sequences=4, generator=seeded(5), return_dict_in_generate=True
        )
        assert abs(out.num_function_evaluations.double().mean() - expected) < 20


@pytest.mark.parametrize("method", SEQUENCE_METHODS, ids=lambda method: method.name)
def test_a_sequence_method_evaluates_once_an_event(method):
    network = table_network()
    out = network.generate(**method.arguments, prefix=[1], generator=seeded(6), return_dict_in_generate=True)
    assert out.num_function_evaluations.tolist() == [min(method.arguments.get("steps") or 2, 2)]


def test_a_canvas_without_masks_comes_back_without_an_evaluation():
    network = TableNetwork()
    out = network.generate(input_ids=[[0, 1, 2], [2, 2, 0]], return_dict_in_generate=True)
    assert out.sequences.tolist() == [[0, 1, 2], [2, 2, 0]]
    assert out.num_function_evaluations.tolist() == [0, 0]
    assert network.rows_evaluated == []


# ---------------------------------------------------------------------------------------------------------
# use_cache
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warp", [{}, {"top_k": 2, "temperature": 0.7}, {"temperature": 0}], ids=str)
@each_grid_method
@pytest.mark.parametrize("network_of", [table_network, real_network])
def test_without_cache_the_tokens_are_the_same_and_every_step_is_evaluated(network_of, method, warp):
    network = network_of(method.noise)
    with_cache, without = (
        network.generate(
            input_ids=[[MASK, MASK, MASK], [MASK, 1, MASK], [0, MASK, 2], [2, 2, 2]],
            **method.arguments,
            **warp,
            num_return_sequences=5,
            generator=seeded(7),
            use_cache=use_cache,
            return_dict_in_generate=True,
        )
        for use_cache in (True, False)
    )
    assert torch.equal(with_cache.sequences, without.sequences)
    assert torch.equal(with_cache.reveal_step, without.reveal_step)
    torch.testing.assert_close(with_cache.token_logprobs, without.token_logprobs, atol=1e-5, rtol=1e-5)
    assert without.num_function_evaluations.tolist() == [method.arguments["steps"]] * 20
    assert (with_cache.num_function_evaluations <= torch.tensor([3, 2, 1, 0]).repeat_interleave(5)).all()


@pytest.mark.parametrize("kind", ["first_hitting", "ordered"])
def test_without_cache_is_refused_where_there_is_no_grid(kind):
    with pytest.raises(ValueError, match="use_cache"):
        table_network().generate(method=kind, use_cache=False)


# ---------------------------------------------------------------------------------------------------------
# No mask in the output; given tokens survive
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "warp", [{}, {"temperature": 0}, {"top_k": 1}, {"top_p": 0.5}, {"temperature": 100.0}], ids=str
)
@pytest.mark.parametrize("mask_token_id", [0, 5])
@pytest.mark.parametrize(
    "name",
    [
        "tweedie-loglinear-3",
        "euler-geometric-3",
        "first_hitting",
        "ordered-forward-None",
        "ordered-random-2",
        "ordered-ids-None",
    ],
)
def test_a_head_that_wants_the_mask_never_writes_it(name, mask_token_id, warp):
    method = BY_NAME[name]
    model = tiny_model(6, LENGTH, method.noise, mask_token_id=mask_token_id)
    with torch.no_grad():
        model.lm_head.bias[mask_token_id] = 1e4
    text = model.generate(**method.arguments, **warp, num_return_sequences=10_000, generator=seeded(8))
    assert text.shape == (10_000, LENGTH)
    assert not (text == mask_token_id).any()
    assert ((text >= 0) & (text < 6)).all()


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
]
each_longer_method = pytest.mark.parametrize("method", LONGER_METHODS, ids=lambda method: method.name)


@each_longer_method
@pytest.mark.parametrize(
    ("arguments", "canvas"),
    [
        ({"prefix": [3, 1, 4]}, [[3, 1, 4, 11, 11, 11, 11, 11, 11]]),
        ({"suffix": torch.tensor([5, 9])}, [[11, 11, 11, 11, 11, 11, 11, 5, 9]]),
        ({"prefix": [[3, 1, 4], [2, 7]], "suffix": [5]}, [[3, 1, 4, *[11] * 5, 5], [2, 7, *[11] * 6, 5]]),
        ({"prefix": torch.tensor([[1], [2]]), "length": 4}, [[1, 11, 11, 11], [2, 11, 11, 11]]),
        (
            {"input_ids": torch.tensor([[11, 0, 11, 11, 10, 11, 3, 3, 11], [*[11] * 8, 6]])},
            [[11, 0, 11, 11, 10, 11, 3, 3, 11], [*[11] * 8, 6]],
        ),
        ({"input_ids": [0, 1, 2, 3, 11, 5, 6, 7, 8]}, [[0, 1, 2, 3, 11, 5, 6, 7, 8]]),
    ],
    ids=["prefix", "suffix", "both", "shorter", "canvas", "one mask"],
)
def test_given_tokens_survive_every_method(method, arguments, canvas):
    canvas = torch.tensor(canvas).repeat_interleave(50, dim=0)  # (R, L)
    settings = dict(method.arguments)
    if isinstance(settings.get("order"), list):
        settings["order"] = [position for position in settings["order"] if position < canvas.shape[1]]
    out = longer_model(method.noise).generate(
        **settings, **arguments, num_return_sequences=50, generator=seeded(9), return_dict_in_generate=True
    )
    given = canvas != 11
    assert torch.equal(out.sequences[given], canvas[given])
    assert (out.sequences != 11).all()
    assert torch.equal(out.reveal_step == GIVEN, given)
    assert (out.token_logprobs[given] == 0).all()
    assert (out.token_logprobs[~given] < 0).all()


def test_the_callers_canvas_is_left_as_it_was():
    canvas = torch.full((2, LENGTH), MASK)
    table_network().generate(input_ids=canvas, generator=seeded(10))
    assert (canvas == MASK).all()


# ---------------------------------------------------------------------------------------------------------
# A row and its batch
# ---------------------------------------------------------------------------------------------------------


def assert_rows_do_not_depend_on_the_batch(network, canvases: Tensor, settings: dict, exact: bool):
    def generate(rows: list[int]):
        return network.generate(
            input_ids=canvases[rows],
            **settings,
            generator=[seeded(100 + row) for row in rows],
            return_dict_in_generate=True,
        )

    together = generate(list(range(len(canvases))))
    for rows in ([0], [3], [4, 1], [2, 0, 3]):
        apart = generate(rows)
        assert torch.equal(apart.sequences, together.sequences[rows])
        assert torch.equal(apart.reveal_step, together.reveal_step[rows])
        assert torch.equal(apart.num_function_evaluations, together.num_function_evaluations[rows])
        tolerance = 0 if exact else 1e-4
        torch.testing.assert_close(apart.token_logprobs, together.token_logprobs[rows], atol=tolerance, rtol=0)


@each_method
def test_with_its_own_generator_a_row_does_not_depend_on_its_batch(method):
    canvases = torch.tensor([FREE, (MASK, 1, MASK), FREE, (0, MASK, 2), FREE])  # (5, L)
    assert_rows_do_not_depend_on_the_batch(table_network(method.noise), canvases, method.arguments, exact=True)


@each_longer_method
def test_with_its_own_generator_a_row_of_the_real_network_keeps_its_tokens_in_any_batch(method):
    canvases = torch.full((5, 9), 11)
    canvases[1, :4] = torch.tensor([3, 1, 4, 1])
    canvases[3, 2::2] = 7
    settings = method.arguments | {"top_k": 6}
    assert_rows_do_not_depend_on_the_batch(longer_model(method.noise), canvases, settings, exact=False)


def test_return_sequences_take_the_generators_in_their_order():
    network, prefixes = table_network(), [[0], [2]]
    seeds = [11, 12, 13, 14]  # row 0 twice, row 1 twice
    together = network.generate(prefix=prefixes, num_return_sequences=2, generator=[seeded(seed) for seed in seeds])
    for row, (prefix, seed) in enumerate(zip([[0], [0], [2], [2]], seeds, strict=True)):
        assert torch.equal(network.generate(prefix=prefix, generator=[seeded(seed)])[0], together[row])


def test_a_padded_row_is_written_as_the_row_alone():
    model, pad = longer_model(), 0
    rows = [[11, 4, 11, 11, 6, 11], [2, 11, 11, 11, 11, 11, 11, 3, 11]]
    settings = {"method": "ordered", "temperature": 0}
    alone = [model.generate(input_ids=row, **settings)[0] for row in rows]
    canvas = torch.tensor([[pad] * 3 + rows[0], rows[1]])
    left = model.generate(input_ids=canvas, attention_mask=torch.tensor([[0] * 3 + [1] * 6, [1] * 9]), **settings)
    assert torch.equal(left[0, 3:], alone[0])
    assert torch.equal(left[1], alone[1])
    canvas = torch.tensor([rows[0] + [pad] * 3, rows[1]])
    right = model.generate(input_ids=canvas, attention_mask=torch.tensor([[1] * 6 + [0] * 3, [1] * 9]), **settings)
    assert torch.equal(right[0, :6], alone[0])


# ---------------------------------------------------------------------------------------------------------
# The token draw
# ---------------------------------------------------------------------------------------------------------

RARE_TOKENS, RARE_PROBABILITY, FREQUENT_TOKENS = 49_990, 2e-8, 10
RARE_SHARE = RARE_TOKENS * RARE_PROBABILITY  # 0.1 %
FREQUENT_PROBABILITY = (1 - RARE_SHARE) / FREQUENT_TOKENS
TAIL_DRAWS = 30_000


def tail_p_value(rare: int) -> float:
    """Binomial p-value of the number of rare tokens among TAIL_DRAWS."""
    return float(stats.binomtest(rare, TAIL_DRAWS, RARE_SHARE).pvalue)


def test_the_token_draw_keeps_the_tail():
    generator = seeded(12)
    frequent = torch.randperm(RARE_TOKENS + FREQUENT_TOKENS, generator=generator)[:FREQUENT_TOKENS]
    probability = torch.full((RARE_TOKENS + FREQUENT_TOKENS,), RARE_PROBABILITY)  # (V,)
    probability[frequent] = FREQUENT_PROBABILITY
    scores, rare, chunk = probability.log(), 0, 20
    for _ in range(TAIL_DRAWS // chunk):
        uniform = torch.rand(chunk, generator=generator, dtype=torch.float64)
        tokens = draw_tokens(scores.expand(chunk, -1), uniform)  # (chunk,)
        rare += int((~torch.isin(tokens, frequent)).sum())
    assert tail_p_value(rare) > ACCEPTED


@pytest.mark.parametrize("race", ["gumbel", "exponential"])
def test_a_race_of_24_bit_uniforms_loses_the_tail(race):
    generator = seeded(13)
    frequent = torch.rand(TAIL_DRAWS, FREQUENT_TOKENS, generator=generator)  # float32: multiples of 2^-24
    # Rare tokens are alike, so the best of them has the largest uniform: the maximum of RARE_TOKENS multiples of
    # 2^-24, whose distribution function at j 2^-24 is ((j + 1) 2^-24)^RARE_TOKENS, is drawn by inversion.
    uniform = torch.rand(TAIL_DRAWS, 1, generator=generator, dtype=torch.float64)
    best_rare = (((uniform ** (1 / RARE_TOKENS)) * 2**24).ceil() - 1).clamp(min=0).float() / 2**24
    best = torch.cat([frequent, best_rare], dim=1)  # (draws, 11)
    probability = torch.tensor([FREQUENT_PROBABILITY] * FREQUENT_TOKENS + [RARE_PROBABILITY])
    if race == "gumbel":
        winner = (probability.log() - (-best.log()).log()).argmax(dim=1)
    else:
        winner = (probability / -best.log()).argmax(dim=1)
    rare = int((winner == FREQUENT_TOKENS).sum())
    assert tail_p_value(rare) < REFUSED
    assert rare < TAIL_DRAWS * RARE_SHARE / 3  # about a sixth of what is right


def test_an_impossible_token_is_never_drawn_even_at_the_ends_of_the_uniform():
    scores = torch.tensor([-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf])
    uniform = torch.cat(
        [torch.tensor([0.0, 1 - 2**-53]).double(), torch.rand(1000, generator=seeded(14), dtype=torch.float64)]
    )
    tokens = draw_tokens(scores.expand(len(uniform), -1), uniform)
    assert set(tokens.tolist()) == {1, 3}


# ---------------------------------------------------------------------------------------------------------
# Log-probabilities
# ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def log_likelihood_in_order(model, text: list[int], order: list[int], mask_id: int) -> float:
    """sum_i log p(x_order[i] | what is given, x_order[<i]), one forward a token."""
    canvas = torch.tensor([text])  # (1, L)
    canvas[0, order] = mask_id
    total = 0.0
    for position in order:
        logits = model(input_ids=canvas).logits[0, position].double()  # (V,)
        total += logits.log_softmax(dim=0)[text[position]].item()
        canvas[0, position] = text[position]
    return total


@pytest.mark.parametrize("warp", [{}, {"temperature": 0.5, "top_k": 3}, {"temperature": 0}], ids=str)
@pytest.mark.parametrize("arguments", [{}, {"prefix": [3, 1], "suffix": [7]}], ids=["free", "given"])
@pytest.mark.parametrize(
    "kind", [{"method": "first_hitting"}, *({"order": order} for order in ("forward", "backward", "random"))], ids=str
)
def test_the_log_probabilities_of_a_row_sum_to_its_likelihood_in_that_order(kind, arguments, warp):
    model = longer_model()
    out = model.generate(
        **({"method": "ordered"} | kind),
        **arguments,
        **warp,
        num_return_sequences=4,
        generator=seeded(15),
        return_dict_in_generate=True,
    )
    for text, when, logprobs in zip(
        out.sequences.tolist(), out.reveal_step.tolist(), out.token_logprobs.double(), strict=True
    ):
        masked = [position for position, event in enumerate(when) if event != GIVEN]
        order = sorted(masked, key=lambda position: when[position])
        assert [when[position] for position in order] == list(range(len(masked)))
        if kind.get("order") in ("forward", "backward"):
            assert order == (masked if kind["order"] == "forward" else masked[::-1])
        assert abs(logprobs.sum().item() - log_likelihood_in_order(model, text, order, mask_id=11)) < 1e-5


def test_the_log_probabilities_of_a_given_order_are_those_of_that_order():
    model, order = longer_model(), [4, 0, 8, 2, 6, 1, 7, 3, 5]
    out = model.generate(method="ordered", order=order, generator=seeded(16), return_dict_in_generate=True)
    expected = log_likelihood_in_order(model, out.sequences[0].tolist(), order, mask_id=11)
    assert abs(out.token_logprobs.double().sum().item() - expected) < 1e-5
    shifted = log_likelihood_in_order(model, out.sequences[0].tolist(), order[1:] + order[:1], mask_id=11)
    assert abs(out.token_logprobs.double().sum().item() - shifted) > 1e-2
