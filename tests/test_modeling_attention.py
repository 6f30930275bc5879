# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Every attention that transformers knows gives the same logits, and is called as it expects.

Shapes: B rows, L length, V vocabulary with the mask, D width, H heads, K positions a row.
"""

import copy

import pytest
import torch

from support.models import (
    DTYPE_TOLERANCE,
    LAYERS,
    MASK,
    D,
    H,
    L,
    copy_with_attention,
    draw_ids,
    draw_labels,
    finite,
    make_model,
    padded_batch,
)


@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("dtype", DTYPE_TOLERANCE, ids=str)
@pytest.mark.parametrize("attention", ["eager", "stand_in"])
def test_every_attention_gives_the_logits_of_sdpa(model, flash_calls, attention, dtype, padding):
    _, ids, mask = padded_batch(padding or "right")
    mask = mask if padding else torch.ones_like(mask)
    sdpa = copy.deepcopy(model).to(dtype)
    other = copy_with_attention(sdpa, attention)
    with torch.no_grad():
        expected, got = (m(ids, attention_mask=mask).logits for m in (sdpa, other))
    assert got.dtype == dtype
    real = mask.bool()
    difference = (finite(expected) - finite(got))[real].norm() / finite(expected)[real].norm()
    assert difference < DTYPE_TOLERANCE[dtype]


def test_flex_attention_gives_the_logits_of_sdpa_with_and_without_padding(model, uncompiled_flex):
    flex = copy_with_attention(model, "flex_attention")
    _, ids, mask = padded_batch("left")
    positions = torch.tensor([[0, 11], [11, 5], [11, 11]])
    with torch.no_grad():
        for arguments in ({"attention_mask": mask}, {"attention_mask": mask, "output_positions": positions}, {}):
            expected, got = model(ids, **arguments).logits, flex(ids, **arguments).logits
            if "output_positions" not in arguments and arguments:
                expected, got = expected[mask.bool()], got[mask.bool()]
            torch.testing.assert_close(finite(got), finite(expected), rtol=1e-4, atol=1e-4)


def test_flash_attention_is_called_as_it_expects(model, flash_calls):
    flash = copy.deepcopy(model)
    flash.config._attn_implementation = "flash_attention_2"  # set_attn_implementation asks for the package
    _, ids, mask = padded_batch("left")
    flash(ids)
    flash(ids, attention_mask=torch.ones_like(mask))
    assert len(flash_calls) == 2 * LAYERS
    for call in flash_calls:
        assert call["query"] == call["key"] == call["value"] == (3, H, L, D // H)
        assert call["causal"] is False
        assert call["mask"] is None, "without padding flash attention takes its fast path"
        assert call["dropout"] == 0.0
        assert "position_ids" not in call["kwargs"], "flash attention would take them for packed sequences"
    flash_calls.clear()
    flash(ids, attention_mask=mask)
    for call in flash_calls:
        assert call["mask"].shape == (3, L)
        assert torch.equal(call["mask"].long(), mask)


@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("ask", ["indices", "mask", "labels"])
def test_flash_attention_always_gets_as_many_queries_as_keys(model, flash_calls, ask, padding):
    flash = copy.deepcopy(model)
    flash.config._attn_implementation = "flash_attention_2"
    _, ids, mask = padded_batch(padding or "right")
    mask = mask if padding else None
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    labels = draw_labels(ids).masked_fill(~real, -100)
    positions = (torch.rand(ids.shape, generator=torch.Generator().manual_seed(3)) < 0.5) & real
    if ask == "indices":
        positions = torch.stack([row.nonzero()[[0, -1], 0] for row in real])
    arguments = {"labels": labels} if ask == "labels" else {"output_positions": positions}
    got, expected = flash(ids, mask, **arguments), model(ids, mask, **arguments)
    assert all(call["query"] == call["key"] == (3, H, L, D // H) for call in flash_calls)
    if ask == "labels":
        torch.testing.assert_close(got.token_nll, expected.token_nll, rtol=1e-4, atol=1e-5)
    else:
        torch.testing.assert_close(finite(got.logits), finite(expected.logits), rtol=1e-4, atol=1e-4)


def test_an_attention_registered_by_the_user_is_found_by_name(flash_calls):
    model = make_model(attention="stand_in")
    model(draw_ids())
    assert len(flash_calls) == LAYERS


def test_an_unknown_attention_is_refused():
    with pytest.raises(ValueError, match="nonsense"):
        make_model(attention="nonsense")


def test_attention_looks_both_ways(model):
    ids = draw_ids(1)
    for attention in ("eager", "sdpa"):
        net = copy_with_attention(model, attention)
        for position in (0, L - 1):
            changed = ids.clone()
            changed[0, position] = (ids[0, position] + 1) % MASK
            moved = (finite(net(ids).logits) - finite(net(changed).logits)).abs().amax(dim=-1)[0]
            assert (moved > 1e-4).all(), f"{attention}: a change at {position} is not felt everywhere"
