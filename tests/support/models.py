# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Models of the library in which every parameter matters, and rows to give them.

Shapes: B rows, L length, V vocabulary with the mask, D width, H heads, K positions a row.
"""

import copy
import math

import torch
from torch import nn

from radd_hf import RaddConfig, RaddForMaskedLM
from radd_hf.canvas_radd import Positions

V, D, LAYERS, H, L = 48, 32, 3, 4, 12
MASK = V - 1
DTYPE_TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 6e-2, torch.float16: 8e-3}
EVERY_ATTENTION = ("eager", "sdpa", "flex_attention", "stand_in")


def make_config(**overrides):
    sizes = {"vocab_size": V, "hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": H}
    return RaddConfig(**(sizes | {"max_position_embeddings": 32, "hidden_dropout": 0.0} | overrides))


def make_model(cls=RaddForMaskedLM, attention="sdpa", seed=0, **overrides):
    """Makes a small model in which every parameter matters. The paper's zero output layer would hide all others."""
    torch.manual_seed(seed)
    model = cls._from_config(make_config(**overrides), attn_implementation=attention).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=2 / math.sqrt(parameter.shape[1]) if "lm_head" not in name else 0.3)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def copy_with_attention(model, attention):
    twin = copy.deepcopy(model)
    twin.set_attn_implementation(attention)
    return twin


def draw_ids(batch=3, length=L, seed=1, vocab_size=V):
    """Draws ids (B, L), about 40 % of them masks."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocab_size - 1, (batch, length), generator=generator)
    return ids.masked_fill(torch.rand(batch, length, generator=generator) < 0.4, vocab_size - 1)


def draw_labels(ids, fraction=0.4, seed=2):
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(V - 1, ids.shape, generator=generator)
    return clean.masked_fill(torch.rand(ids.shape, generator=generator) >= fraction, -100)


def pad(row, side, total=L, value=7):
    """Pads a row (l,) to ids and attention mask (total,). The padding is an ordinary token, which could do harm."""
    filler = torch.full((total - len(row),), value)
    real = torch.ones(len(row), dtype=torch.long)
    parts, mask = (row, filler), (real, torch.zeros_like(filler))
    if side == "left":
        parts, mask = parts[::-1], mask[::-1]
    return torch.cat(parts), torch.cat(mask)


def padded_batch(side, lengths=(12, 7, 1)):
    rows = [draw_ids(1, length, seed=10 + length)[0] for length in lengths]
    ids, masks = zip(*(pad(row, side) for row in rows), strict=True)
    return rows, torch.stack(ids), torch.stack(masks)


def finite(logits):
    """Returns logits without the mask's column, whose -inf would spoil differences. Other tests check it."""
    return logits[..., :MASK].float()


def rotated_states(dtype, device="cpu"):
    """Makes states (B, L, H, d) and tables (B or 1, L, d), in all layouts in which the network rotates them."""
    generator, cases = torch.Generator().manual_seed(0), []
    for heads, width in ((1, 2), (4, 8), (3, 16), (12, 64), (2, 128)):
        qkv = (3 * torch.randn(3, 17, 3, heads, width, generator=generator)).to(device, dtype)
        angles = 100 * torch.rand(3, 17, width // 2, generator=generator).to(device)
        tables = torch.cat((angles, angles), dim=-1)
        tables = tables.cos(), torch.cat((-angles.sin(), angles.sin()), dim=-1)
        some = Positions(torch.randint(17, (3, 5), generator=generator).to(device))
        for cos, sin in (
            tables,
            tuple(table[:1] for table in tables),
        ):  # tables for each row, as with padding; one for all rows
            cases += [(qkv[:, :, :2].flatten(2, 3), cos, sin), (qkv[:, :, 1], cos, sin)]
            cases += [(some.select(qkv[:, :, 0]), some.select(cos), some.select(sin))]
    return cases


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same_gradients(one, other, tolerance=1e-5):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: n + m)


def masked_lm_loss(logits, labels):
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)
