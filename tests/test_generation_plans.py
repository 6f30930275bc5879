# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""When positions are revealed: the probabilities of the grid, the number of evaluations, use_cache=False.

Shapes: R rows, L length, V vocabulary (mask last), m masked positions of a row, n steps of the grid.
"""

import math

import pytest
import torch
from safetensors.torch import load_file

from radd_hf.noise_radd import reveal_probabilities
from support.laws import (
    GIVEN,
    MASK,
    NOISES,
    SEQUENCE_METHODS,
    each_grid_method,
    real_network,
    reveal_rates,
    reveal_step_law,
    table_network,
)
from support.paths import GOLDEN
from support.toys import FlatNetwork, TableNetwork, seeded

# ---------------------------------------------------------------------------------------------------------
# Reveal probabilities
# ---------------------------------------------------------------------------------------------------------

GOLDEN_RATES = load_file(GOLDEN / "update_rates.safetensors")


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
    torch.testing.assert_close(unclipped, golden, atol=5e-4, rtol=0)  # the formula of `reveal_rates` is the authors'


# ---------------------------------------------------------------------------------------------------------
# Number of network evaluations
# ---------------------------------------------------------------------------------------------------------


def expected_evaluations(noise: str, kind: str, steps: int, masked: int) -> float:
    """sum_i 1 - (1 - q_i)^m; for log-linear noise, where q is uniform, in closed form."""
    if noise == "loglinear":
        return steps * (1 - (1 - 1 / steps) ** masked)
    return sum(1 - (1 - q) ** masked for q in reveal_step_law(reveal_rates(noise, kind, steps)))


@pytest.mark.called_only
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


def test_a_canvas_without_masks_is_not_evaluated_beside_one_that_has_some():
    network = TableNetwork()
    out = network.generate(input_ids=[[0, 1, 2], [2, MASK, 0]], return_dict_in_generate=True)
    assert out.sequences[0].tolist() == [0, 1, 2]
    assert out.num_function_evaluations.tolist() == [0, 1]
    assert network.rows_evaluated == [1]


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
