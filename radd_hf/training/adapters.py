# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Trains low-rank adapters (LoRA, arXiv:2106.09685) with PEFT. A checkpoint holds the weights plus the adapters."""

import copy
from typing import Any

from torch import nn

from ..modeling_radd import RaddForMaskedLM

TARGETS = ("qkv_proj", "o_proj", "up_proj", "down_proj")  # all matrices of a layer


def add_adapters(model: RaddForMaskedLM, rank: int, alpha: int, dropout: float) -> nn.Module:
    """Adds adapters of rank r to every matrix of the layers: W + (alpha / r) B A. Only the adapters are trained.

    Raises:
        ValueError: if PEFT is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ValueError(f"lora_rank={rank} needs PEFT: pip install 'radd_hf[peft]'.") from error
    settings = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(TARGETS))
    return get_peft_model(model, settings)


def has_adapters(model: nn.Module) -> bool:
    return hasattr(model, "merge_and_unload")


def merged(model: Any) -> RaddForMaskedLM:
    """Returns a plain model with the adapters added to its matrices.

    The result is a copy, because subtracting the adapters from the sum again would round.
    """
    return copy.deepcopy(model).merge_and_unload() if has_adapters(model) else model
