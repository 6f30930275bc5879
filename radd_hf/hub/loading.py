# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Loads a model and its tokenizer by name: the one way in for scripts, command line, web page and harness.

What cannot be loaded, or does not fit together, is a ValueError that names the argument and says what would be right.
"""

from collections.abc import Collection
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..configuration_radd import RaddConfig
from ..modeling_radd import RaddForMaskedLM


def load(
    name: str,
    tokenizer: str | None = None,
    *,
    device: str | torch.device | None = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    flag: str = "--tokenizer",
) -> tuple[RaddForMaskedLM, PreTrainedTokenizerBase]:
    """Loads a model, in evaluation mode, and the tokenizer that fits it.

    Args:
        name: folder or repository of a RADD model, ours or the authors'.
        tokenizer: name or folder; by default the one beside the model.
        device: where the model goes; None: an accelerator if there is one.
        revision: of the model's repository, and of a tokenizer that comes with it.
        flag: what a user passes to name another tokenizer, for the message.

    Raises:
        ValueError: as [`load_model`], [`load_tokenizer`], [`check_tokenizer`] and [`find_device`].
    """
    target = find_device(device)
    model = load_model(name, dtype=dtype, revision=revision)
    beside = {"revision": revision} if tokenizer is None and revision is not None else {}
    words = load_tokenizer(tokenizer or name, flag, **beside)
    check_tokenizer(words, model)
    cast(torch.nn.Module, model).to(target)  # in place
    return model.eval(), words


def load_model(
    name: str,
    *,
    dtype: torch.dtype | str = torch.float32,
    revision: str | None = None,
    config: RaddConfig | None = None,
    argument: str = "model",
) -> RaddForMaskedLM:
    """Loads a model on the CPU; every weight comes from the file.

    Args:
        dtype: of the weights, whatever the checkpoint's; "auto": the checkpoint's.
        config: instead of the configuration in the folder.
        argument: what the user calls the name, for messages.

    Raises:
        ValueError: for what cannot be read, and for weights that are missing, too many or of another shape, of which
            transformers only warns before it goes on with random numbers.
    """
    settings: dict[str, Any] = {} if config is None else {"config": config}
    try:
        model, report = cast(
            tuple[RaddForMaskedLM, dict],
            RaddForMaskedLM.from_pretrained(
                name, dtype=dtype, revision=revision or "main", output_loading_info=True, **settings
            ),
        )
    except (OSError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise ValueError(
            f"{argument}={name!r} cannot be loaded, it may be truncated: {error} (A training run of the authors is "
            "first converted: radd convert.)"
        ) from error
    check_names(report["missing_keys"], report["unexpected_keys"], f"{argument}={name!r}")
    return model


def check_names(missing: Collection[str], unexpected: Collection[str], source: str) -> None:
    """Raises a ValueError for weights that are missing or too many."""
    if missing or unexpected:
        raise ValueError(
            f"{source} does not hold the weights that its configuration says: missing {some(missing)}; "
            f"unexpected {some(unexpected)}."
        )


def some(names: Collection[Any]) -> str:
    """A few of many names, for a message."""
    shown = sorted(map(str, names))
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "") if shown else "none"


def load_tokenizer(name: str, flag: str = "--tokenizer", **settings: Any) -> PreTrainedTokenizerBase:
    """Loads a tokenizer by name or folder; `flag` is what a user passes to name another one."""
    try:
        return AutoTokenizer.from_pretrained(name, **settings)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"tokenizer={name!r} cannot be loaded: {reason} Pass {flag}.") from error


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: RaddForMaskedLM) -> None:
    """Raises a ValueError for a tokenizer with ids that the model does not have."""
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"tokenizer={tokenizer.name_or_path!r} has {len(tokenizer)} tokens, more than the model's "
            f"{model.config.vocab_size}: it is another model's."
        )


def find_device(name: str | torch.device | None) -> torch.device:
    """The device of that name; for None an accelerator if there is one, else the CPU.

    Raises:
        ValueError: for a device that cannot be used.
    """
    if name is None:
        there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return there or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"device={str(name)!r} cannot be used: {error}") from error
