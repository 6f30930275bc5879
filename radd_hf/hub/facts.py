# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Describes a model without reading its weights: counts parameters and operations, and reads its small files.

An operation (FLOP) is half a multiply-add of a matrix product. torch's `FlopCounterMode` counts the operations of a
run. Importing this file teaches it the products of `kernels_radd.py`.

Symbols as in modeling_radd.py: D hidden size, I width inside the MLP, H heads, L length, V vocabulary, n layers.
"""

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.utils.flop_counter import register_flop_formula

from ..configuration_radd import RaddConfig
from ..kernels_radd import ONEDNN_LINEAR
from ..modeling_radd import RaddForMaskedLM
from ..settings_radd import SETTINGS
from .loading import load_config, load_tokenizer
from .model_card import CARD_ROW, RECIPE
from .runs import newest_model
from .sources import read_beside, read_config


@dataclass
class Flops:
    """Holds the FLOPs of a forward pass of one row of L tokens: `layers` without the head, `head` the head alone."""

    layers: float
    head: float

    def training(self, checkpointing: bool, head_again: bool = True) -> float:
        """Returns the FLOPs of a training step: the forward pass, the backward pass (twice that) and recomputation.

        Args:
            checkpointing: gradient checkpointing, where the backward pass computes the layers again.
            head_again: the backward pass computes the head again, as it does with more than one chunk of logits.
        """
        return (3 + checkpointing) * self.layers + (3 + head_again) * self.head


def forward_flops(config: RaddConfig, masked: float, queries: float | None = None, length: int | None = None) -> Flops:
    """Counts the FLOPs of a row's forward pass.

    Args:
        masked: number of positions at which the head runs: labelled positions, or those that a network evaluation
            reveals.
        queries: number of positions for which the last layer computes attention. It is the largest `masked` of the rows
            in the batch; None: L.
        length: L; None: the length in the configuration.
    """
    width, inner = config.hidden_size, cast(int, config.intermediate_size)
    length = config.max_position_embeddings if length is None else length
    queries = length if queries is None else queries

    def layer(queries: float, outputs: float) -> float:
        qkv = 2 * length * width * 3 * width  # at all positions, also in the last layer
        scores = 2 * queries * length * width  # q k^T, all heads together
        values = 2 * queries * length * width  # weights times v
        projection = 2 * outputs * width * width
        mlp = 2 * outputs * width * inner + 2 * outputs * inner * width
        return qkv + scores + values + projection + mlp

    layers = (config.num_hidden_layers - 1) * layer(length, length) + layer(queries, masked)
    return Flops(layers=layers, head=2 * masked * width * config.vocab_size)


def count_parameters(config: RaddConfig) -> tuple[int, int]:
    """Counts all parameters and those in Linear layers, on the meta device, which needs no memory."""
    with torch.device("meta"):
        model = RaddForMaskedLM(config)
    linear = (module for module in model.modules() if isinstance(module, nn.Linear))
    return model.num_parameters(), sum(p.numel() for module in linear for p in module.parameters())


def _onednn_flops(hidden: Sequence[int], weight: Sequence[int], *others: object, **kwargs: object) -> int:
    """Counts the FLOPs of a product of the shapes (..., D_in) and (D_out, D_in)."""
    return 2 * math.prod(hidden) * weight[0]


if ONEDNN_LINEAR is not None:
    register_flop_formula(ONEDNN_LINEAR)(_onednn_flops)


# ---------------------------------------------------------------------------------------------------------
# Facts from the small files beside the weights
# ---------------------------------------------------------------------------------------------------------


def model_facts(name: str) -> dict[str, Any]:
    """Collects facts about a model from the small files beside its weights. All values can be written as JSON.

    Raises:
        ValueError: if there is no RADD model of that name.
    """
    name = newest_model(name)
    settings, config = read_config(name), load_config(name)
    length = config.max_position_embeddings
    whole, one = (forward_flops(config, masked=masked, queries=masked) for masked in (length, 1))
    facts: dict[str, Any] = {
        "model": name,
        "layout": "radd_hf" if "model_type" in settings else "the authors'",
        "parameters": count_parameters(config)[0],
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "heads": config.num_attention_heads,
        "mlp_width": config.intermediate_size,
        "length": length,
        "vocabulary": config.vocab_size,
        "mask_token_id": config.mask_token_id,
        "noise": {"type": config.noise_type}
        | ({"eps": config.noise_eps} if config.noise_type == "loglinear" else {})
        | ({"from": config.sigma_min, "to": config.sigma_max} if config.noise_type == "geometric" else {}),
        "dtype": str(config.dtype or "float32").removeprefix("torch."),
        "gflops_per_evaluation": {
            "all_masked": (whole.layers + whole.head) / 1e9,
            "one_masked": (one.layers + one.head) / 1e9,
        },
    }
    try:
        tokenizer = load_tokenizer(name)
        facts["tokenizer"] = {"tokens": len(tokenizer), "mask": tokenizer.mask_token, "end": tokenizer.eos_token}
    except ValueError:
        facts["tokenizer"] = "none beside the model (the authors' models: gpt2)"
    own = read_beside(name, "generation_config.json") or {}
    chosen = {key: own[key] for key in SETTINGS if own.get(key) is not None}
    if profile := chosen.pop("information_profile", None):
        facts["information_profile"] = {"tokens": len(profile), "first": profile[0], "last": profile[-1]}
    facts["generation"] = chosen or "defaults"

    source = read_beside(name, "README.md") or ""
    rows = re.finditer(CARD_ROW, source)
    facts |= {row[1].lower().replace(" ", "_"): html.unescape(row[2].replace("`", "")) for row in rows}
    recipe = read_beside(name, "training/config.yaml") or read_beside(name, "config.yaml")
    if recipe is not None:
        facts["training"] = {key: recipe[key] for key in RECIPE if recipe.get(key) is not None}
    evaluation = read_beside(name, "evaluation.json")
    if evaluation is not None:
        keys = ("dataset", "split", "bits_per_byte", "bits_per_byte_error", "perplexity", "perplexity_error")
        facts["evaluation"] = {key: evaluation[key] for key in keys if key in evaluation}
    return facts
