# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Logits of some positions are those of all, and cost no more than they must.

Shapes: B rows, L length, V vocabulary with the mask, D width, H heads, K positions a row.
"""

import pytest
import torch

from radd_hf import RaddModel
from support.models import MASK, D, copy_with_attention, draw_ids, finite, make_model


@pytest.mark.parametrize("record", [{}, {"output_hidden_states": True}, {"output_attentions": True}], ids=str)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_output_positions_are_rows_of_the_full_logits(model, attention, record):
    net = copy_with_attention(model, attention)
    ids = draw_ids()
    full = net(ids).logits
    wanted = torch.rand(ids.shape, generator=torch.Generator().manual_seed(4)) < 0.3
    wanted[1] = False  # a row may want nothing
    wanted[2, 0] = True
    for positions, expected in (
        (wanted, full[wanted]),
        (torch.ones_like(wanted), full.flatten(0, 1)),
        (torch.tensor([[0], [5], [11]]), full[torch.arange(3), [0, 5, 11]][:, None]),
        (torch.tensor([[3, 1, 3], [11, 0, 2], [0, 0, 1]]), None),  # in any order, also twice
    ):
        if expected is None:
            expected = torch.stack([row[index] for row, index in zip(full, positions, strict=True)])
        got = net(ids, output_positions=positions, **record).logits
        assert got.shape == expected.shape
        torch.testing.assert_close(finite(got), finite(expected), rtol=1e-5, atol=1e-5)


def test_the_trunk_takes_output_positions_too():
    trunk = make_model(RaddModel)
    ids = draw_ids()
    full = trunk(ids).last_hidden_state
    wanted = ids == MASK
    torch.testing.assert_close(trunk(ids, output_positions=wanted).last_hidden_state, full[wanted])
    index = torch.tensor([[0, 4], [1, 1], [11, 3]])
    expected = full.take_along_dim(index[..., None], dim=1)
    torch.testing.assert_close(trunk(ids, output_positions=index).last_hidden_state, expected)


def test_the_last_layer_computes_the_output_positions_only(model):
    sizes = []
    handle = model.model.layers[-1].mlp.up_proj.register_forward_hook(
        lambda module, inputs, output: sizes.append(inputs[0].numel() // D)
    )
    ids = draw_ids()
    wanted = ids == MASK
    model(ids, output_positions=wanted)
    model(ids, output_positions=torch.tensor([[0], [1], [2]]))
    model(ids, labels=ids.masked_fill(~wanted, -100).where(~wanted, 3))
    handle.remove()
    assert sizes == [int(wanted.sum()), 3, int(wanted.sum())]


def test_a_model_of_one_layer_has_output_positions():
    model, ids = make_model(num_hidden_layers=1), draw_ids()
    wanted = ids == MASK
    torch.testing.assert_close(finite(model(ids, output_positions=wanted).logits), finite(model(ids).logits[wanted]))


def test_the_mask_column_is_minus_infinity_and_no_other(model):
    for arguments in ({}, {"output_positions": torch.zeros(3, 1, dtype=torch.long)}):
        infinite = model(draw_ids(), **arguments).logits.isneginf()
        assert infinite[..., MASK].all()
        assert not infinite[..., :MASK].any()


def test_the_mask_may_be_any_token():
    model = make_model(mask_token_id=5)
    infinite = model(torch.full((1, 4), 5)).logits.isneginf()
    assert infinite.sum() == infinite[..., 5].sum() == 4
