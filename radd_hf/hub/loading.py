# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Loads a model and its tokenizer by name, for scripts, command line, web page and lm-evaluation-harness.

If they cannot be loaded, or do not fit together, a ValueError names the argument and says what would be right.
"""

from collections.abc import Collection
from typing import Any, cast

import torch
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
        dtype: of the weights, whatever the checkpoint's.
        revision: of the model's repository, and of a tokenizer that lies in it.
        flag: the option by which a user names another tokenizer, for messages.

    Raises:
        ValueError: where [`load_model`], [`load_tokenizer`], [`check_tokenizer`] or [`find_device`] do.
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
    """Loads a model on the CPU, with every weight from the file.

    Args:
        dtype: of the weights, whatever the checkpoint's; "auto": the checkpoint's.
        config: replaces the configuration in the folder.
        argument: the user's word for the name, for messages.

    Raises:
        ValueError: for files that cannot be read, weights of another shape, and missing or unknown weights, of which
            transformers only warns (it gives the missing ones random values).
    """
    settings: dict[str, Any] = {} if config is None else {"config": config}
    try:
        model, report = cast(
            tuple[RaddForMaskedLM, dict],
            RaddForMaskedLM.from_pretrained(
                name, dtype=dtype, revision=revision or "main", output_loading_info=True, **settings
            ),
        )
    except Exception as error:  # absent, damaged or foreign files can end in any
        raise ValueError(f"{argument}={name!r} cannot be loaded: {_why_not(error)}") from error
    check_weight_names(report["missing_keys"], report["unexpected_keys"], f"{argument}={name!r}")
    return model


def _why_not(error: Exception) -> str:
    """The error as one line, and what would help."""
    reason = " ".join(str(error).split())
    if isinstance(error, SafetensorError):
        return f"its weights are damaged or cut short ({reason}); copy them again."
    if "ignore_mismatched_sizes" in reason:
        return "its weights have other shapes than its configuration says; the table above names them."
    if isinstance(error, OSError):
        return f"{reason} A training run of the authors is first converted: radd convert."
    return reason if isinstance(error, ValueError) else f"{type(error).__name__}: {reason}"


def check_weight_names(missing: Collection[str], unexpected: Collection[str], source: str) -> None:
    """Raises a ValueError if names of weights are missing or too many."""
    if missing or unexpected:
        raise ValueError(
            f"{source} does not hold the weights that its configuration says: missing {first_few(missing)}; "
            f"unexpected {first_few(unexpected)}."
        )


def first_few(names: Collection[Any]) -> str:
    """Lists the first three of many names, for a message."""
    shown = sorted(map(str, names))
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "") if shown else "none"


def load_tokenizer(name: str, flag: str = "--tokenizer", **settings: Any) -> PreTrainedTokenizerBase:
    """Loads a tokenizer by name or folder; `flag` is the option that names another one, for the message."""
    try:
        return AutoTokenizer.from_pretrained(name, **settings)
    except Exception as error:  # absent, damaged or foreign files can end in any
        reason = " ".join(str(error).split())
        kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
        raise ValueError(f"tokenizer={name!r} cannot be loaded: {kind}{reason} Pass {flag}.") from error


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: RaddForMaskedLM) -> None:
    """Raises a ValueError for a tokenizer with more ids than the model has."""
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"tokenizer={tokenizer.name_or_path!r} has {len(tokenizer)} tokens, more than the model's "
            f"{model.config.vocab_size}: it is another model's."
        )


def find_device(name: str | torch.device | None) -> torch.device:
    """Returns the device of that name; for None an accelerator if there is one, else the CPU.

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
