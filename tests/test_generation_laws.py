# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""What `generate` samples, held against laws that are computed without it (`support.laws`).

Samples of every method are compared with the enumerated law by chi-square, and so are planted errors (a rate 5 % off, a
shifted order, ...), which the same comparison must refuse.

Shapes: R rows, L length, V vocabulary (mask last), m masked positions of a row, n steps of the grid.
"""

import itertools

import pytest
import torch
from scipy import stats
from torch import Tensor

from radd_hf import generation_radd
from radd_hf.state_radd import SamplerState
from support.laws import (
    ACCEPTED,
    BY_NAME,
    CONDITIONS,
    FEW_STEPS,
    FREE,
    LENGTH,
    REFUSED,
    Method,
    each_condition,
    each_grid_method,
    each_method,
    each_warp,
    goodness_of_fit,
    logits_by_canvas,
    p_value,
    real_network,
    reveal_rates,
    reveal_step_law,
    table_network,
)
from support.toys import FlatNetwork, TableNetwork, seeded

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
    joint = method.joint(logits_by_canvas(network), FREE, renumber=False)
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


@pytest.mark.called_only
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


@pytest.mark.called_only
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
        ("margin", {"order": "entropy"}),
        ("entropy", {"order": "forward"}),
        ("confidence-2", {"steps": None}),
        ("0.2", {"entropy_bound": 3.0}),
        ("0.95", {"confidence_threshold": 0.5}),
        ("function", {"order": "confidence"}),
    ],
)
def test_another_plan_is_caught(name, sampled):
    method = BY_NAME[name]
    assert p_value(table_network(method.noise), method, sampled=sampled) < REFUSED


@pytest.mark.parametrize(
    ("order", "other"), [*itertools.permutations(("confidence", "margin", "entropy", "forward"), 2)], ids=str
)
def test_another_order_is_caught(order, other):
    # Of 300 tables this one tells the three adaptive orders best apart.
    network = TableNetwork(4, LENGTH, scale=1.0, seed=294)
    method = Method(order, {"method": "ordered", "order": order})
    assert p_value(network, method) > ACCEPTED
    assert p_value(network, method, sampled={"order": other}) < REFUSED


@pytest.mark.called_only
def test_a_choice_by_the_sum_of_all_entropies_is_caught(monkeypatch):
    method, network = Method("bound", {"method": "ordered", "entropy_bound": 1.5}), TableNetwork(4, LENGTH, scale=1.0)
    assert p_value(network, method) > ACCEPTED
    monkeypatch.setattr(Tensor, "cummax", lambda self, dim: torch.return_types.cummax((self * 0, self)))
    assert p_value(network, method) < REFUSED


@pytest.mark.called_only
@pytest.mark.parametrize("order", ["confidence", "entropy"])
def test_a_choice_that_looks_at_the_draw_is_caught(monkeypatch, order):
    """It is as tempting as wrong: a position whose draw came out likely is not chosen more often."""
    method, network, choose = Method(order, {"method": "ordered", "order": order}), table_network(), SamplerState.choose

    def wrong(state, shape, policy, flat_index, beliefs):
        lucky = state.uniform[flat_index] < 0.5
        return choose(state, shape, policy, flat_index, beliefs._replace(certainty=beliefs.certainty + 1e5 * lucky))

    assert p_value(network, method) > ACCEPTED
    monkeypatch.setattr(SamplerState, "choose", wrong)
    assert p_value(network, method) < REFUSED


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
