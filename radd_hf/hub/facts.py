# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Operations and parameters, counted from a configuration: 2 FLOPs for each multiply-add of a matrix product.

With it torch's `FlopCounterMode`, which counts what really ran, knows the products of `RaddLinear`, too.

Symbols as in modeling_radd.py: D hidden size, I inside the MLP, H heads, L length, V vocabulary, n layers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.utils.flop_counter import register_flop_formula

from ..configuration_radd import RaddConfig
from ..modeling_radd import ONEDNN_LINEAR, RaddForMaskedLM


@dataclass
class Flops:
    """Forward FLOPs of one row of L tokens; `layers` without the head, `head` the head alone."""

    layers: float
    head: float

    def training(self, checkpointing: bool, head_again: bool = True) -> float:
        """Forward, backward (twice that) and what the backward pass computes again."""
        return (3 + checkpointing) * self.layers + (3 + head_again) * self.head


def forward_flops(config: RaddConfig, masked: float, queries: float | None = None, length: int | None = None) -> Flops:
    """FLOPs of a row's forward pass.

    Args:
        masked: positions of the row whose law is wanted: labelled ones, or those that an event reveals.
        queries: K, positions for which the last layer computes attention: the most such positions of any row of the
            batch; L when None.
        length: L; the configuration's when None.
    """
    width, inner = config.hidden_size, cast(int, config.intermediate_size)
    length = config.max_position_embeddings if length is None else length
    queries = length if queries is None else queries

    def layer(queries: float, outputs: float) -> float:
        qkv = 2 * length * width * 3 * width  # of all positions, in the last layer, too
        scores = 2 * queries * length * width  # q k^T, all heads together
        values = 2 * queries * length * width  # weights times v
        projection = 2 * outputs * width * width
        mlp = 2 * outputs * width * inner + 2 * outputs * inner * width
        return qkv + scores + values + projection + mlp

    layers = (config.num_hidden_layers - 1) * layer(length, length) + layer(queries, masked)
    return Flops(layers=layers, head=2 * masked * width * config.vocab_size)


def count_parameters(config: RaddConfig) -> tuple[int, int]:
    """Parameters of the real model, and those of them in Linear layers; on the meta device, without memory."""
    with torch.device("meta"):
        model = RaddForMaskedLM(config)
    linear = (module for module in model.modules() if isinstance(module, nn.Linear))
    return model.num_parameters(), sum(p.numel() for module in linear for p in module.parameters())


def _onednn_flops(hidden: Sequence[int], weight: Sequence[int], *others: object, **kwargs: object) -> int:
    """Of the shapes (..., D_in) and (D_out, D_in)."""
    return 2 * math.prod(hidden) * weight[0]


if ONEDNN_LINEAR is not None:
    register_flop_formula(ONEDNN_LINEAR)(_onednn_flops)
