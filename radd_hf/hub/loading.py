# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Loads a model and its tokenizer by name, for scripts, command line, web page and lm-evaluation-harness.

If they cannot be loaded or do not fit together, a ValueError names the argument and says what would be right.
"""

import hashlib
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from ..configuration_radd import RaddConfig
from ..modeling_radd import RaddForMaskedLM, default_frequencies
from ..text_radd import check_tokenizer_mask
from .runs import newest_model
from .sources import read_config, weight_files

# The only buffer of the authors' network: d / 2 constant rotary frequencies. No other tensor depends on the number of
# heads.
FREQUENCIES = "rotary_emb.inv_freq"


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
        name: folder or repository of a RADD model, ours or the authors', or a run folder (its newest whole checkpoint).
        tokenizer: name or folder; by default the one beside the model.
        device: device of the model; None: a GPU if there is one.
        dtype: type of the weights, whatever the checkpoint has.
        revision: revision of the model's repository, and of a tokenizer in it.
        flag: the user's option for another tokenizer, for messages.

    Raises:
        ValueError: where [`load_model`], [`load_tokenizer`], [`check_tokenizer`] or [`find_device`] do.
    """
    target, name = find_device(device), newest_model(name)
    model = load_model(name, dtype=dtype, revision=revision)
    beside = {"revision": revision} if tokenizer is None and revision is not None else {}
    words = load_tokenizer(tokenizer or name, flag, **beside)
    check_tokenizer(words, cast(RaddConfig, model.config))
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
        dtype: type of the weights, whatever the checkpoint has; "auto": the type of the checkpoint.
        config: replaces the configuration in the folder.
        argument: the user's name for the argument `name`, for messages.

    Raises:
        ValueError: where [`load_config`] and [`load_whole`] do, and if the authors' file of weights has another number
            of heads.
    """
    name = newest_model(name, argument)
    source = f"{argument}={name!r}"
    in_folder = read_config(name, revision=revision, argument=argument)
    config_in_folder = config_of(in_folder, source)
    settings: dict[str, Any] = {} if config is None else {"config": config}
    model = load_whole(RaddForMaskedLM, name, source, dtype=dtype, revision=revision or "main", **settings)
    if _is_nested(in_folder):  # the authors' layout
        check_heads(_stored_frequencies(name, revision), config_in_folder, source)
    return model


def load_whole(
    kind: Any, name: str, source: str, *, others_may_be_there: bool = False, advice: str = "", **settings: Any
) -> Any:
    """Returns `kind.from_pretrained(name, **settings)` if the file has every weight.

    transformers fills missing weights, and those of another shape, with random values. It only warns.

    Args:
        kind: a class of models, or an auto class.
        source: the argument that the user passed, for messages.
        others_may_be_there: allow more weights than those of the network, such as buffers of older versions.
        advice: advice for the message about files that cannot be read.

    Raises:
        ValueError: for files that cannot be read, and for weights that are missing, unknown, of another shape or not
            finite.
    """
    try:
        with _quiet():  # the messages below name the fault in one line
            model, report = kind.from_pretrained(
                name, output_loading_info=True, ignore_mismatched_sizes=True, **settings
            )
    except Exception as error:  # missing or damaged files can raise any
        raise ValueError(f"{source} cannot be loaded: {_why_not(error)} {advice}".rstrip()) from error
    if report["missing_keys"] or not others_may_be_there:
        check_weight_names(report["missing_keys"], report["unexpected_keys"], source)
    for weight, stored, expected in sorted(report["mismatched_keys"]):
        raise ValueError(
            f"{source}: the weight {weight} has the shape {tuple(stored)}, and the configuration {tuple(expected)}."
        )
    check_finite(model, source)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences transformers, and shows its progress bar only on a terminal."""
    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()


def _why_not(error: Exception) -> str:
    """Describes an error in one line, with advice."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    reason = " ".join(str(error).split()).rstrip(".: ")
    if isinstance(error, SafetensorError):
        return f"its weights are damaged or cut short ({reason}). Copy them again."
    if isinstance(error, UnpicklingError):  # its own message advises to run the code
        return "its weights are damaged, or opening them would run code. Save them as model.safetensors."
    return f"{reason}." if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {reason}."


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns twelve hexadecimal digits that differ between tokenizers; resumed work compares them."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    rules = repr(sorted(tokenizer.get_vocab().items())) if fast is None else fast.to_str()
    return hashlib.sha256(f"{rules}\n{sorted(tokenizer.special_tokens_map.items())}".encode()).hexdigest()[:12]


def weights_hash(model: RaddForMaskedLM) -> str:
    """Returns twelve hexadecimal digits that differ between weights; resumed work compares them."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


# ---------------------------------------------------------------------------------------------------------
# Checks of the configuration
# ---------------------------------------------------------------------------------------------------------


def load_config(name: str, *, revision: str | None = None, argument: str = "model") -> RaddConfig:
    """Reads the configuration of a RADD model, in our layout or the authors'.

    Raises:
        ValueError: where [`read_config`] and [`config_of`] do.
    """
    name = newest_model(name, argument)
    settings = read_config(name, revision=revision, argument=argument)
    return config_of(settings, f"{argument}={name!r}")


def config_of(settings: Any, source: str) -> RaddConfig:
    """Makes a configuration from the content of a config.json, flat like ours or nested like the authors'.

    Raises:
        ValueError: for the configuration of another model, and for missing or wrong values.
    """
    try:
        if not isinstance(settings, dict) or not ("model_type" in settings or _is_nested(settings)):
            raise ValueError(
                "it must have 'model_type', like ours, or 'tokens' and a mapping 'model', like the authors'."
            )
        return RaddConfig.from_dict(settings)
    except KeyError as error:
        raise ValueError(f"the configuration of {source} lacks {error}.") from error
    except (
        TypeError,
        ValueError,
        AttributeError,  # a dtype that torch does not have
        StrictDataclassError,
    ) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the configuration of {source} is not that of a RADD model: {reason}") from error


def _is_nested(settings: dict) -> bool:
    return "tokens" in settings and isinstance(settings.get("model"), dict)


# ---------------------------------------------------------------------------------------------------------
# Checks of the weights
# ---------------------------------------------------------------------------------------------------------

# Modules that wrap a network add their names to the names of its weights. The value says which module does.
WRAPPERS = {
    "module.": "torch's DataParallel or DistributedDataParallel adds",
    "_orig_mod.": "torch.compile adds",
    "_fsdp_wrapped_module.": "torch's FullyShardedDataParallel adds",
    "base_layer.": "an adapter of PEFT adds, and merge_and_unload removes",
}


def check_weight_names(missing: Collection[str], unexpected: Collection[str], source: str) -> None:
    """Raises a ValueError if there are missing or unexpected weights."""
    if missing or unexpected:
        found = [
            f"{kind} {first_few(names)}" for kind, names in (("missing", missing), ("unexpected", unexpected)) if names
        ]
        raise ValueError(
            f"{source} does not hold the weights of its configuration: {'; '.join(found)}."
            f"{_about_names(missing, unexpected)}"
        )


def _about_names(missing: Collection[str], unexpected: Collection[str]) -> str:
    """Explains names with a known addition, and gives advice."""
    for wrapper, whose in WRAPPERS.items():
        if any(f".{wrapper}" in f".{name}" for name in unexpected):
            return f" Names hold {wrapper!r}, which {whose}. Save the state dict of the network inside, or rename them."
    if missing:
        one = min(missing)
        for name in unexpected:
            prefix = name.removesuffix(one)
            if name.endswith(f".{one}") and {prefix + each for each in missing} <= set(unexpected):
                return f" Every name begins with {prefix!r}. Save the state dict of the network inside, or rename them."
    return ""


def check_finite(model: nn.Module, source: str) -> None:
    """Raises a ValueError that names a weight with nan or infinity."""
    for name, weight in model.named_parameters():
        if (
            weight.is_floating_point()
            and weight.itemsize > 1
            and not all(map(torch.isfinite, weight.detach().aminmax()))
        ):
            raise ValueError(
                f"{source}: the weight {name} holds numbers that are not finite as {weight.dtype}. Its training "
                "diverged, or the file is damaged. Take an earlier checkpoint."
            )


def check_heads(stored: Tensor | None, config: RaddConfig, source: str) -> None:
    """Raises a ValueError if the rotary frequencies in a file of the authors differ from those of the configuration.

    No other tensor depends on the number of heads. Our layout has no such tensor.
    """
    frequencies = default_frequencies(config)  # (d / 2,)
    if stored is None or (
        stored.shape == frequencies.shape and torch.allclose(stored.float(), frequencies, rtol=1e-2)  # bfloat16's
    ):
        return
    raise ValueError(
        f"{source}: {FREQUENCIES} is for heads of width {2 * stored.numel()}. By its "
        f"n_heads={config.num_attention_heads} the configuration has heads of width "
        f"{2 * frequencies.numel()}, with frequencies of base 10000."
    )


def _stored_frequencies(name: str, revision: str | None) -> Tensor | None:
    for file in weight_files(name, revision):
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                if FREQUENCIES in tensors.keys():  # noqa: SIM118, not a dictionary
                    return tensors.get_tensor(FREQUENCIES)
        else:
            state = torch.load(file, weights_only=True, map_location="cpu", mmap=True)
            if FREQUENCIES in state:
                return state[FREQUENCIES]
    return None


def first_few(names: Collection[Any]) -> str:
    """Lists the first three names for a message, and counts the rest."""
    shown = sorted(map(str, names))
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "") if shown else "none"


# ---------------------------------------------------------------------------------------------------------
# Tokenizer and device
# ---------------------------------------------------------------------------------------------------------


def load_tokenizer(name: str, flag: str = "--tokenizer", **settings: Any) -> PreTrainedTokenizerBase:
    """Loads a tokenizer by name or folder. `flag` is the user's option for another tokenizer, for the message."""
    name = newest_model(name, "tokenizer")
    try:
        return AutoTokenizer.from_pretrained(name, **settings)
    except Exception as error:  # missing, damaged or foreign files can raise any
        reason = " ".join(str(error).split())
        kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
        if Path(name).is_dir() and not any(Path(name).glob("*token*")):  # transformers' message only guesses
            kind, reason = "", "the folder has no tokenizer."
        raise ValueError(f"tokenizer={name!r} cannot be loaded: {kind}{reason} Pass {flag}.") from error


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: RaddConfig) -> None:
    """Raises a ValueError for a tokenizer with ids that the model does not have, or with another mask.

    A tokenizer without a mask fits if the id of the model's mask is the next after its last token. In this way GPT-2's
    tokenizer fits the authors' models.
    """
    name, mask = tokenizer.name_or_path, cast(int, config.mask_token_id)
    vocabulary, tokens = tokenizer.get_vocab(), config.num_tokens or config.vocab_size
    strange = {token: number for token, number in vocabulary.items() if number >= tokens and number != mask}
    if strange:
        raise ValueError(
            f"tokenizer={name!r} has ids up to {max(strange.values())}, and the model has {tokens} tokens: it belongs "
            "to another model."
        )
    check_tokenizer_mask(tokenizer, mask)
    if tokenizer.mask_token_id is None and mask in vocabulary.values():
        token = tokenizer.convert_ids_to_tokens(mask)
        raise ValueError(
            f"tokenizer={name!r} has the token {token!r} at id {mask}, where the model has its mask: it belongs to "
            "another model."
        )
    if tokenizer.mask_token_id is None and max(vocabulary.values()) + 1 not in (mask, config.num_tokens):
        raise ValueError(
            f"tokenizer={name!r} has no mask and ids up to {max(vocabulary.values())}. The model has its mask at id "
            f"{mask}, which is not the next one: the tokenizer belongs to another model."
        )


def find_device(name: str | torch.device | None) -> torch.device:
    """Returns the device of a name; for None a GPU (or another accelerator) if there is one, else the CPU.

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
