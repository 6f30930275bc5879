# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Every attention that transformers knows gives the same logits, and is called as it expects.

Shapes: B rows, L length, V vocabulary with the mask, D width, H heads, K positions a row.
"""

import copy
import re

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from radd_hf import RaddForMaskedLM, RaddModel
from radd_hf.canvas_radd import Positions
from radd_hf.kernels_radd import attention_by_products
from radd_hf.modeling_radd import eager_attention_forward
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
    gradients,
    make_config,
    make_model,
    padded_batch,
)
from support.toys import seeded


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


# ---------------------------------------------------------------------------------------------------------
# Masks that say of each query what it attends to
# ---------------------------------------------------------------------------------------------------------

B = 3
SHAPES = {"rows": (B, 1, L, L), "one row": (1, 1, L, L), "heads": (B, H, L, L), "padding": (B, 1, 1, L)}
LOWEST = torch.finfo(torch.float32).min


def additive(allowed, lowest=-torch.inf, dtype=torch.float32):
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, lowest)


KINDS = {
    "bool": lambda allowed: allowed,
    "int64": lambda allowed: allowed.long(),
    "uint8": lambda allowed: allowed.to(torch.uint8),
    "-inf": additive,
    "lowest": lambda allowed: additive(allowed, LOWEST),
    "-inf in bfloat16": lambda allowed: additive(allowed, dtype=torch.bfloat16),
    "lowest in float64": lambda allowed: additive(allowed, torch.finfo(torch.float64).min, torch.float64),
}


def draw_allowed(shape, seed=5):
    """Which keys each query attends to: most of them, itself always."""
    allowed = torch.rand(shape, generator=seeded(seed)) < 0.6
    return allowed | torch.eye(L, dtype=torch.bool) if shape[2] == L else allowed.index_fill(3, torch.tensor(0), True)


def all_positions(net, ids, mask):
    return net(ids, attention_mask=mask).last_hidden_state


def at_output_positions(net, ids, mask):
    chosen = torch.stack([torch.randperm(L, generator=seeded(row)) for row in range(B)])  # (B, L)
    states = net(ids, attention_mask=mask, output_positions=chosen).last_hidden_state
    return states.gather(1, chosen.argsort(dim=1)[..., None].expand_as(states))


def from_the_cache(net, ids, mask):
    """A whole evaluation, then all positions anew, a third at a time."""
    cache = net.make_cache()
    net(ids, attention_mask=mask, cache=cache, output_positions=torch.zeros(B, 1, dtype=torch.long))
    parts = [torch.arange(start, start + 4).expand(B, -1) for start in range(0, L, 4)]
    inputs = {"attention_mask": mask, "cache": cache}
    states = [net(ids, output_positions=part, partial=Positions(part), **inputs).last_hidden_state for part in parts]
    return torch.cat(states, dim=1)


def while_training(net, ids, mask):
    net.train()
    states = net(ids, attention_mask=mask).last_hidden_state
    states.float().square().mean().backward()
    assert all(gradient.isfinite().all() for gradient in gradients(net).values())
    return states.detach()


WAYS = (all_positions, at_output_positions, from_the_cache, while_training)


def relative_error(found, expected):
    return (found.float() - expected).norm() / expected.norm()


@pytest.fixture(scope="module")
def trunk():
    return make_model(RaddModel)


def expected_states(trunk, ids, allowed):
    """By the written-out attention, in float32, with a mask that is added."""
    return copy_with_attention(trunk, "eager")(ids, attention_mask=additive(allowed)).last_hidden_state.detach()


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPE_TOLERANCE, ids=str)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_kind_of_mask_excludes_the_same_in_every_attention_and_dtype(trunk, attention, dtype, shape, way):
    ids, allowed = draw_ids(B), draw_allowed(SHAPES[shape])
    expected = expected_states(trunk, ids, allowed)
    for kind, make in KINDS.items():
        net = copy_with_attention(trunk, attention).to(dtype)
        found = way(net, ids, make(allowed))
        assert found.dtype == dtype
        assert relative_error(found, expected) < DTYPE_TOLERANCE[dtype], kind


def test_the_comparison_of_masks_notices_one_key_too_many_and_a_mask_that_is_added(trunk):
    ids, allowed = draw_ids(B), draw_allowed(SHAPES["rows"])
    expected, worst = expected_states(trunk, ids, allowed), max(DTYPE_TOLERANCE.values())
    more = allowed.clone()
    more[:, 0, :, 3] = True
    assert relative_error(expected_states(trunk, ids, more), expected) > worst
    added = trunk(ids, attention_mask=allowed.float() - 1e-3).last_hidden_state
    assert relative_error(added, expected) > worst


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_mask_that_is_added_serves_under_autocast(trunk, attention):
    ids, allowed = draw_ids(B), draw_allowed(SHAPES["rows"])
    bias = additive(allowed) + torch.randn(allowed.shape, generator=seeded(1))
    expected = copy_with_attention(trunk, "eager")(ids, attention_mask=bias).last_hidden_state
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = copy_with_attention(trunk, attention)(ids, attention_mask=bias).last_hidden_state
    assert relative_error(found, expected) < DTYPE_TOLERANCE[torch.bfloat16]


def test_one_mask_of_padding_serves_more_queries_than_are_computed_at_once():
    trunk = make_model(RaddModel, num_hidden_layers=1)
    ids, allowed = draw_ids(1, 300), torch.arange(300)[None, None, None] < 290
    expected = copy_with_attention(trunk, "eager")(ids, attention_mask=additive(allowed)).last_hidden_state
    found = trunk.to(torch.bfloat16)(ids, attention_mask=allowed).last_hidden_state
    assert relative_error(found, expected) < DTYPE_TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPE_TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_query_that_attends_to_nothing_gets_zeros_in_every_attention(trunk, kind, dtype):
    ids, allowed = draw_ids(B), draw_allowed(SHAPES["rows"])
    allowed[1, :, 4] = False
    allowed[2] = False
    mask, states = KINDS[kind](allowed), []
    for attention in ("eager", "sdpa"):
        net = copy_with_attention(trunk, attention).to(dtype)
        outputs = []
        net.layers[0].self_attn.o_proj.register_forward_pre_hook(
            lambda _, given, outputs=outputs: outputs.append(given[0])
        )
        states.append(while_training(net, ids, mask))
        (output,) = outputs
        assert output.isfinite().all()
        assert not output[1, 4].any()
        assert not output[2].any()
        assert output[0].any(dim=-1).all()
    assert relative_error(states[1], states[0].float()) < DTYPE_TOLERANCE[dtype]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_of_padding_gets_zeros_in_every_attention(trunk, attention, dtype):
    ids, mask = draw_ids(2), torch.ones(2, L, dtype=torch.long)
    mask[1] = 0
    net, outputs = copy_with_attention(trunk, attention).to(dtype), []
    net.layers[-1].self_attn.o_proj.register_forward_pre_hook(lambda _, given: outputs.append(given[0]))
    net(ids, attention_mask=mask)
    assert not outputs[0][1].any()
    assert outputs[0][0].any(dim=-1).all()


def test_recorded_weights_are_those_of_the_keys_that_a_query_attends_to(trunk):
    allowed = draw_allowed(SHAPES["rows"])
    net = copy_with_attention(trunk, "eager")
    for weights in net(draw_ids(B), attention_mask=allowed, output_attentions=True).attentions:
        assert not weights.masked_select(~allowed).any()
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(B, H, L))


def test_a_bias_is_added_to_the_scores():
    scores, bias = (torch.randn(2, 1, 4, 4, generator=seeded(seed)) for seed in (0, 1))
    module = torch.nn.Module()
    for function in (eager_attention_forward, attention_by_products):
        output, _ = function(module, scores, scores, scores, bias, 0.5)
        expected = ((scores @ scores.transpose(2, 3)) / 2 + bias).softmax(dim=-1) @ scores
        torch.testing.assert_close(output.transpose(1, 2), expected)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(B, 5), r"attention_mask has shape (3, 5) and dtype torch.float32; it must be (3, 12), 1 at text"),
        (torch.ones(1, L), "attention_mask has shape (1, 12)"),
        (
            torch.ones(B, L, L),
            "of rows, heads, queries and keys; it may have 1 row and 1 query for all, and 4 heads",
        ),
        (torch.ones(B, 2, L, L), "attention_mask has shape (3, 2, 12, 12)"),
        (torch.ones(2, 1, L, L), "attention_mask has shape (2, 1, 12, 12)"),
        (torch.ones(B, 1, L, 5), "attention_mask has shape (3, 1, 12, 5)"),
        (torch.ones(B, L, dtype=torch.complex64), "dtype torch.complex64"),
        ([[1] * L] * B, "attention_mask=[[1, 1, 1, "),
        (torch.full((B, L), 2), "attention_mask holds 2 at (0, 0); it must be 1 or 0."),
        (torch.zeros(B, L).index_fill(1, torch.tensor(3), -torch.inf), "attention_mask holds -inf at (0, 3)"),
        (torch.full((B, 1, L, L), -1), "attention_mask holds -1 at (0, 0, 0, 0); it must be 1 or 0."),
        (torch.ones(B, 1, L, L), "attention_mask holds 0 and 1 as floating-point numbers"),
        (
            torch.full((B, 1, L, L), torch.nan),
            "attention_mask holds nan or inf; numbers that are added to the scores must be fi",
        ),
        (torch.full((B, 1, L, L), torch.inf), "attention_mask holds nan or inf"),
    ],
)
def test_a_mask_that_is_none_is_refused_by_name(model, mask, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        model(draw_ids(B), attention_mask=mask)


@pytest.mark.parametrize("attention", ["flex_attention", "flash_attention_2"])
def test_attention_that_takes_no_mask_of_four_dimensions_says_so(model, flash_calls, attention):
    net = copy.deepcopy(model)
    net.config._attn_implementation = attention
    with pytest.raises(ValueError, match=f"attn_implementation='{attention}' cannot take: use 'eager' or 'sdpa'"):
        net(draw_ids(B), attention_mask=draw_allowed(SHAPES["rows"]))


def test_a_mask_is_not_looked_at_where_the_host_would_have_to_wait():
    with torch.device("meta"):
        model, ids, mask = make_model_without_values(), torch.zeros(B, L, dtype=torch.long), torch.ones(B, 1, L, L)
        assert model(ids, attention_mask=mask.long()).logits.shape == (B, L, model.config.vocab_size)
        assert model(ids, attention_mask=mask).logits.shape == (B, L, model.config.vocab_size)


def make_model_without_values():
    return RaddForMaskedLM._from_config(make_config(), attn_implementation="sdpa").eval()


def test_flex_attention_takes_its_own_mask_of_blocks(trunk, uncompiled_flex):
    documents = torch.tensor([0] * 5 + [1] * 7)
    blocks = create_block_mask(lambda b, h, q, k: documents[q] == documents[k], None, None, L, L, device="cpu")
    allowed = (documents[:, None] == documents)[None, None]
    ids = draw_ids(B)
    with torch.no_grad():
        found = copy_with_attention(trunk, "flex_attention")(ids, attention_mask=blocks).last_hidden_state
    assert relative_error(found, expected_states(trunk, ids, allowed)) < 1e-4
    with pytest.raises(ValueError, match="attention_mask=BlockMask"):
        trunk(ids, attention_mask=blocks)
