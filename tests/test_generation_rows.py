# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""What a row holds and what it depends on: no mask in it, given tokens stay, nothing of its batch.

Shapes: R rows, L length, V vocabulary (mask last), m masked positions of a row, n steps of the grid.
"""

import pytest
import torch
from torch import Tensor

from support.laws import (
    BY_NAME,
    FREE,
    GIVEN,
    LENGTH,
    MASK,
    each_longer_method,
    each_method,
    longer_model,
    table_network,
)
from support.toys import seeded, tiny_model

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
