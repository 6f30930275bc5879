# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""A model and its tokenizer by name, for the scripts: what cannot be loaded, or does not fit, is a ValueError."""

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..modeling_radd import RaddForMaskedLM


def load_model(name: str) -> RaddForMaskedLM:
    """In float32, whatever the type of the checkpoint; a lower precision is for flags to say."""
    try:
        return RaddForMaskedLM.from_pretrained(name, dtype=torch.float32)
    except OSError as error:
        raise ValueError(
            f"model={name!r} could not be loaded: {error} (A training run of the authors is first converted: "
            "python -m radd_hf.hub.convert.)"
        ) from error


def load_tokenizer(name: str, flag: str = "--tokenizer", **settings) -> PreTrainedTokenizerBase:
    """`flag` is what a user passes to name another one."""
    try:
        return AutoTokenizer.from_pretrained(name, **settings)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"tokenizer={name!r} could not be loaded: {reason} Pass {flag}.") from error


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: RaddForMaskedLM) -> None:
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"tokenizer={tokenizer.name_or_path!r} has {len(tokenizer)} tokens, more than the model's "
            f"{model.config.vocab_size}: it is another model's."
        )
