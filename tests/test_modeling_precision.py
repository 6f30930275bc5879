# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Half precision stays near single precision: logits, rotary embedding and LayerNorm.

Shapes: B rows, L length, V vocabulary with the mask, D width, H heads, K positions a row.
"""

import copy
import math

import pytest
import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from radd_hf import RaddForMaskedLM, modeling_radd
from radd_hf.kernels_radd import rotate_by_halves
from radd_hf.modeling_radd import rotate
from support.models import (
    DTYPE_TOLERANCE,
    LAYERS,
    MASK,
    D,
    H,
    draw_ids,
    finite,
    make_model,
    padded_batch,
    rotated_states,
)


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


@pytest.mark.parametrize("dtype", DTYPE_TOLERANCE, ids=str)
def test_rotation_by_halves_gives_the_bits_of_the_plain_one(dtype):
    for states, cos, sin in rotated_states(dtype):
        kept = states.clone()
        with torch.no_grad():
            found, expected = rotate_by_halves(states, cos, sin), rotate(states, cos, sin)
        assert found.dtype == dtype
        assert torch.equal(found, expected), (states.shape, cos.shape)
        assert torch.equal(states, kept)


@pytest.mark.parametrize("dtype", DTYPE_TOLERANCE, ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_network_that_rotates_by_halves_as_on_a_card_gives_the_same_bits(model, monkeypatch, dtype, side):
    model = copy.deepcopy(model).to(dtype)
    _, ids, mask = padded_batch(side)
    everywhere = {"input_ids": ids, "attention_mask": mask}
    settings = {"seed": 0, "refresh_interval": 3, "refresh_window": 1, "return_dict_in_generate": True}

    @torch.no_grad()
    def outputs():
        sample = model.generate(**everywhere, **settings)
        some = model(**everywhere, output_positions=ids == MASK)
        return [model(ids).logits, model(**everywhere).logits, some.logits, sample.sequences, sample.token_logprobs]

    expected, calls = outputs(), []
    monkeypatch.setattr(modeling_radd, "is_faster_by_halves", lambda states: calls.append(states.shape) or True)
    assert all(torch.equal(*both) for both in zip(outputs(), expected, strict=True))
    assert len(set(calls)) > 3, "whole, pruned and partial evaluations"


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


WIDTH, BASE, FACTOR, MOST = D // H, 100.0, 4.0, 16  # of a head; of the rotary embedding; its scaling; tokens
PAIRS = [2 * pair / WIDTH for pair in range(WIDTH // 2)]
PLAIN = [BASE**-exponent for exponent in PAIRS]  # angle per position of each pair


def dynamic(length):
    """Another base for longer rows (NTK-aware)."""
    base = BASE * (FACTOR * max(length, MOST) / MOST - (FACTOR - 1)) ** (WIDTH / (WIDTH - 2))
    return [base**-exponent for exponent in PAIRS]


def llama3(length, low=1.0, high=4.0):
    """Pairs that turn rarely within the context are slowed down, those between gradually."""
    found = []
    for angle in PLAIN:
        turns = MOST * angle / (2 * math.pi)
        smooth = min(max((turns - low) / (high - low), 0), 1)
        found.append((1 - smooth) * angle / FACTOR + smooth * angle)
    return found


def yarn(length, fast=32, slow=1):
    """As llama3, with a ramp over the number of the pair (arXiv:2309.00071)."""
    first, last = (WIDTH * math.log(MOST / (turns * 2 * math.pi)) / (2 * math.log(BASE)) for turns in (fast, slow))
    first, last = max(math.floor(first), 0), min(math.ceil(last), WIDTH - 1)
    ramps = [min(max((pair - first) / (last - first), 0), 1) for pair in range(WIDTH // 2)]
    return [ramp * angle / FACTOR + (1 - ramp) * angle for ramp, angle in zip(ramps, PLAIN, strict=True)]


SHORT, LONG = [1.0, 1.5, 2.0, 2.5], [2.0, 3.0, 4.0, 5.0]
# Settings, angles of a row of some length, and what cosines and sines are multiplied by.
ROPES = {
    "default": ({}, lambda length: PLAIN, 1.0),
    "linear": ({"factor": FACTOR}, lambda length: [angle / FACTOR for angle in PLAIN], 1.0),
    "dynamic": ({"factor": FACTOR}, dynamic, 1.0),
    "yarn": ({"factor": FACTOR}, yarn, 0.1 * math.log(FACTOR) + 1),
    "llama3": ({"factor": FACTOR, "low_freq_factor": 1.0, "high_freq_factor": 4.0}, llama3, 1.0),
    "longrope": (
        {"factor": FACTOR, "short_factor": SHORT, "long_factor": LONG},
        lambda length: [a / f for a, f in zip(PLAIN, LONG if length > MOST else SHORT, strict=True)],
        math.sqrt(1 + math.log(FACTOR) / math.log(MOST)),
    ),
    "proportional": ({"partial_rotary_factor": 0.5}, lambda length: [*PLAIN[:2], 0.0, 0.0], 1.0),
}


@pytest.mark.parametrize("kind", [kind for kind in ROPES if kind in ("default", *ROPE_INIT_FUNCTIONS)])
def test_every_kind_of_rotary_embedding_is_its_formula_for_each_row(kind):
    settings, angles, scaling = ROPES[kind]
    rope = {"rope_type": kind, "rope_theta": BASE} | settings
    trunk = make_model(max_position_embeddings=MOST, rope_parameters=rope).model
    mask = torch.zeros(2, 40, dtype=torch.long)
    mask[0, :10], mask[1] = 1, 1
    found = trunk.rotary_emb(torch.zeros(2, 40, D), (mask.cumsum(dim=1) - 1).clamp(min=0))
    for row, length in enumerate((10, 40)):
        expected = torch.arange(length)[:, None].double() * torch.tensor(angles(length)).double()  # (l, d / 2)
        for table, function in zip(found, (torch.cos, torch.sin), strict=True):
            for half in table[min(row, len(table) - 1), :length].chunk(2, dim=-1):
                torch.testing.assert_close(half.double(), scaling * function(expected), rtol=0, atol=1e-4)


def test_every_kind_of_rotary_embedding_of_transformers_is_tried():
    assert ROPES.keys() >= {*ROPE_INIT_FUNCTIONS}


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
