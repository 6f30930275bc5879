# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""A padded row is the row alone, and a row does not depend on its neighbours.

Shapes: B rows, L length, V vocabulary with the mask, D width, H heads, K positions a row.
"""

import copy

import pytest
import torch

from support.models import (
    DTYPE_TOLERANCE,
    EVERY_ATTENTION,
    L,
    copy_with_attention,
    draw_ids,
    draw_labels,
    finite,
    make_model,
    padded_batch,
)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", EVERY_ATTENTION)
@pytest.mark.usefixtures("uncompiled_flex")
def test_a_padded_row_equals_the_row_alone(model, flash_calls, attention, side):
    net = copy_with_attention(model, attention)
    rows, ids, mask = padded_batch(side)
    with torch.no_grad():
        together = net(ids, attention_mask=mask).logits
        for row, alone in enumerate(rows):
            expected = model(alone[None]).logits[0]
            torch.testing.assert_close(finite(together[row][mask[row].bool()]), finite(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", EVERY_ATTENTION)
@pytest.mark.usefixtures("uncompiled_flex")
def test_a_padded_row_equals_the_row_alone_at_output_positions(model, flash_calls, attention, side):
    net = copy_with_attention(model, attention)
    rows, ids, mask = padded_batch(side)
    with torch.no_grad():
        got = net(ids, attention_mask=mask, output_positions=mask.bool()).logits
        expected = torch.cat([model(alone[None]).logits[0] for alone in rows])
        torch.testing.assert_close(finite(got), finite(expected), rtol=1e-4, atol=1e-4)
        last = torch.stack([row.nonzero()[-1] for row in mask])  # (B, 1)
        got = net(ids, attention_mask=mask, output_positions=last).logits[:, 0]
        expected = torch.stack([model(alone[None]).logits[0, -1] for alone in rows])
        torch.testing.assert_close(finite(got), finite(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", EVERY_ATTENTION)
@pytest.mark.usefixtures("uncompiled_flex")
def test_a_padded_row_has_the_likelihood_of_the_row_alone(model, flash_calls, attention, side):
    net = copy_with_attention(model, attention)
    rows, ids, mask = padded_batch(side)
    labels = draw_labels(ids, fraction=0.7).masked_fill(mask == 0, -100)
    with torch.no_grad():
        together = net(ids, attention_mask=mask, labels=labels)
        for row, alone in enumerate(rows):
            expected = model(alone[None], labels=labels[row][mask[row].bool()][None])
            torch.testing.assert_close(together.sequence_nll[row], expected.sequence_nll[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0]},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_a_padded_row_equals_the_row_alone_where_the_rotary_embedding_depends_on_the_length(rope, side):
    """Of 12, 7 and 1 tokens in a model of 8, so that the rows have tables of their own."""
    net = make_model(max_position_embeddings=8, rope_parameters=rope)
    rows, ids, mask = padded_batch(side)
    with torch.no_grad():
        together = net(ids, attention_mask=mask).logits
        for row, alone in enumerate(rows):
            expected = net(alone[None]).logits[0]
            torch.testing.assert_close(finite(together[row][mask[row].bool()]), finite(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_padded_row_equals_the_row_alone_in_half_precision(model, dtype, side):
    net = copy.deepcopy(model).to(dtype)
    rows, ids, mask = padded_batch(side)
    with torch.no_grad():
        together = finite(net(ids, attention_mask=mask).logits)
        for row, alone in enumerate(rows):
            expected = finite(net(alone[None]).logits[0])
            got = together[row][mask[row].bool()]
            assert (got - expected).norm() / expected.norm() < DTYPE_TOLERANCE[dtype]


def test_a_row_does_not_depend_on_its_neighbours(model):
    ids = draw_ids(5)
    labels = draw_labels(ids)
    with torch.no_grad():
        batch, batch_loss = model(ids).logits, model(ids, labels=labels).sequence_nll
        for row in range(5):
            one = slice(row, row + 1)
            torch.testing.assert_close(finite(batch[one]), finite(model(ids[one]).logits), rtol=1e-4, atol=1e-5)
            alone = model(ids[one], labels=labels[one]).sequence_nll
            torch.testing.assert_close(batch_loss[one], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32], ids=str)
def test_the_attention_mask_may_have_any_usual_dtype(model, dtype):
    _, ids, mask = padded_batch("left")
    with torch.no_grad():
        expected, got = model(ids, attention_mask=mask).logits, model(ids, attention_mask=mask.to(dtype)).logits
    assert torch.equal(got, expected)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_row_of_nothing_but_padding_spoils_nothing(model, attention):
    net = copy_with_attention(model, attention)
    ids = draw_ids(2)
    mask = torch.ones_like(ids)
    mask[1] = 0
    logits = net(ids, attention_mask=mask).logits
    torch.testing.assert_close(finite(logits[:1]), finite(model(ids[:1]).logits), rtol=1e-4, atol=1e-4)
    assert finite(logits).isfinite().all()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_ready_made_4d_mask_is_respected_also_at_output_positions(model, attention):
    """Two rows packed in one: each attends to itself only, and counts from its own start."""
    net = copy_with_attention(model, attention)
    one, two = draw_ids(1, 5, seed=21), draw_ids(1, 7, seed=22)
    same = torch.block_diag(torch.ones(5, 5), torch.ones(7, 7)).bool()[None, None]  # (1, 1, L, L)
    additive = torch.zeros(same.shape).masked_fill(~same, torch.finfo(torch.float32).min)
    packed = {
        "input_ids": torch.cat((one, two), dim=1),
        "attention_mask": additive,
        "position_ids": torch.cat((torch.arange(5), torch.arange(7)))[None],
    }
    expected = torch.cat((model(one).logits, model(two).logits), dim=1)
    torch.testing.assert_close(finite(net(**packed).logits), finite(expected), rtol=1e-4, atol=1e-4)
    got = net(**packed, output_positions=torch.tensor([[1, 9]])).logits
    torch.testing.assert_close(finite(got), finite(expected[:, [1, 9]]), rtol=1e-4, atol=1e-4)


def test_only_differences_of_position_ids_matter(model):
    ids, positions = draw_ids(), torch.arange(L)[None]
    shifted = model(ids, position_ids=positions + 9).logits
    torch.testing.assert_close(finite(shifted), finite(model(ids).logits), rtol=1e-3, atol=1e-3)
    stretched = model(ids, position_ids=positions * 3).logits
    assert (finite(stretched) - finite(model(ids).logits)).abs().max() > 1e-2
