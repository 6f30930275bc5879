# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Half precision stays near single precision: logits, rotary embedding and LayerNorm.

Shapes: B rows, L length, V vocabulary with the mask, D width, H heads, K positions a row.
"""

import copy

import pytest
import torch
from torch import nn

from radd_hf import RaddForMaskedLM
from support.models import DTYPE_TOLERANCE, LAYERS, MASK, D, H, draw_ids, finite, make_model


@pytest.mark.parametrize("dtype", DTYPE_TOLERANCE, ids=str)
def test_half_precision_stays_near_single_precision(model, dtype):
    ids = draw_ids()
    with torch.no_grad():
        reference, rounded = model(ids).logits, copy.deepcopy(model).to(dtype)(ids).logits
    assert (finite(rounded) - finite(reference)).norm() / finite(reference).norm() < DTYPE_TOLERANCE[dtype]


def test_rotary_frequencies_survive_bfloat16(model):
    positions = torch.arange(5000)[None]
    half = copy.deepcopy(model).to(torch.bfloat16).to(torch.float32)
    hidden = torch.zeros(1, 5000, D, dtype=torch.bfloat16)
    tables = (net.model.rotary_emb(hidden, positions) for net in (model, half))
    for one, other in zip(*tables, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)
    exponent = torch.arange(0, D // H, 2, dtype=torch.float64) / (D // H)
    angles = positions[0, :, None].double() / 10000**exponent
    torch.testing.assert_close(one[0], torch.cat((angles, angles), dim=-1).sin().float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0},
        {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_other_kinds_of_rotary_embedding_run(model, rope, tmp_path):
    rope = {"rope_theta": 10000.0, "original_max_position_embeddings": 32} | rope
    other = make_model(rope_parameters=rope)
    other.load_state_dict(model.state_dict())
    ids = draw_ids(2, 60)  # beyond max_position_embeddings
    logits = other(ids).logits
    assert logits[..., :MASK].isfinite().all()
    assert (finite(logits) - finite(model(ids).logits)).abs().max() > 1e-3, "it makes a difference"
    other.save_pretrained(tmp_path)
    assert torch.equal(RaddForMaskedLM.from_pretrained(tmp_path)(ids).logits, logits)
    if rope["rope_type"] == "linear":
        halved = model(ids, position_ids=torch.arange(60)[None] / 2).logits
        torch.testing.assert_close(finite(logits), finite(halved), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_layer_norm_takes_its_statistics_in_float32(model, dtype):
    net = copy.deepcopy(model).to(dtype)
    norms = [module for module in net.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 2 * LAYERS + 1
    states = (300 + 4 * torch.randn(64, D, generator=torch.Generator().manual_seed(0))).to(dtype)
    for norm in norms:
        weight, bias = norm.weight.float(), norm.bias.float()
        expected = nn.functional.layer_norm(states.float(), (D,), weight, bias, norm.eps).to(dtype)
        torch.testing.assert_close(norm(states).float(), expected.float(), rtol=torch.finfo(dtype).eps, atol=1e-5)
