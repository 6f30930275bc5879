# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Checks the arguments of a forward pass, before the network misreads them.

If an argument has a wrong name, shape, dtype or device, the message names it and says what would be right. The network
is not run on empty tensors: B, L and K are at least 1. On a CPU the values are checked, too: ids and positions lie in
their range, attention masks hold 0 and 1, and numbers are finite. On a GPU they are not, since the host would have to
wait for them.

Shapes: B rows, L length, K the largest number of selected positions in a row, D features, H heads.
"""

import inspect
import math
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, cast

import torch
from torch import Tensor

from .kernels_radd import has_values
from .settings_radd import LARGEST_INTEGER, is_integer, is_number, plain, shortened

# Keywords of transformers that every forward takes, with their values, and our own keywords of the trunk.
RECORDING = ("output_hidden_states", "output_attentions", "return_dict")
SWITCHES = (True, False, None)
INNER = ("cache", "partial", "position_embeddings")
# Keywords of packed rows, which only flash attention reads.
PACKING = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
# Keywords that some tools always pass. They must be None or False; the text says why.
NOTHING = {
    "use_cache": "nothing is kept from one evaluation to the next",
    "past_key_values": "nothing is kept from one evaluation to the next",
    "cache_position": "nothing is kept from one evaluation to the next",
    "is_causal": "every token attends to every other, on both sides",
    "head_mask": "no head can be left out",
}


def check_keywords(config: Any, forward: Callable, given: dict[str, Any]) -> dict[str, Any]:
    """Returns the keywords that the layers take. `given` are those that are not parameters of `forward`.

    Raises:
        TypeError: for a name that the network does not know; the message suggests the nearest name.
        ValueError: for a value that asks for something the network does not have.
    """
    kept = {}
    for name, value in given.items():
        if name in RECORDING and not (isinstance(value, (bool, int, type(None))) and value in SWITCHES):
            raise ValueError(f"{name}={shortened(value)} must be True or False.")
        if name in (*RECORDING, *INNER) or (name in PACKING and "flash" in str(config._attn_implementation)):
            kept[name] = value
        elif name in NOTHING:
            if value is not None and value is not False:
                raise ValueError(f"{name}={repr(value)[:60]} must be None or False: {NOTHING[name]}.")
        elif name == "token_type_ids":  # tokenizers like BERT's return them
            if isinstance(value, Tensor) and has_values(value) and bool(value.any()):
                raise ValueError(
                    f"token_type_ids holds {int(value.max())}; it must be 0, since the network has no segments."
                )
        else:
            known = [*inspect.signature(forward).parameters, *RECORDING, *NOTHING]
            near = get_close_matches(name, known, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"forward() got an unexpected keyword argument {name!r}.{hint}")
    return kept


def check_inputs(
    config: Any,
    input_ids: Tensor | None = None,
    attention_mask: Any = None,
    position_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    output_positions: Any = None,
    **_: Any,
) -> None:
    """Raises a ValueError for ids or embeddings, a mask and positions that do not fit together.

    Values are checked on a CPU only.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("pass exactly one of input_ids and inputs_embeds.")
    if input_ids is not None:
        integers = isinstance(input_ids, Tensor) and input_ids.dtype in (torch.int64, torch.int32)
        if not integers or input_ids.ndim != 2 or input_ids.numel() == 0:
            raise ValueError(f"input_ids{shown(input_ids)}; it must hold ids, (B, L) in int64 or int32, at least one.")
        check_range("input_ids", input_ids, config.vocab_size, "the ids of the vocabulary")
    embeds = inputs_embeds
    if embeds is not None:
        floats = isinstance(embeds, Tensor) and embeds.is_floating_point()
        if not floats or embeds.ndim != 3 or embeds.shape[2] != config.hidden_size or embeds.numel() == 0:
            raise ValueError(
                f"inputs_embeds{shown(embeds)}; it must hold embeddings, (B, L, {config.hidden_size}) of a "
                "floating-point dtype, at least one."
            )
    given = cast(Tensor, input_ids if embeds is None else embeds)
    batch, length = given.shape[:2]
    if attention_mask is not None:
        check_mask(config, attention_mask, batch, length)
    if position_ids is not None and (
        not is_real(position_ids) or tuple(position_ids.shape) not in ((batch, length), (1, length))
    ):
        raise ValueError(
            f"position_ids{shown(position_ids)}; it must hold numbers, {(batch, length)} or {(1, length)}."
        )
    if position_ids is not None:
        check_finite("position_ids", position_ids)
    if output_positions is not None and not hasattr(output_positions, "select_queries"):  # it is not a Positions
        kind = getattr(output_positions, "dtype", None)
        shape = tuple(getattr(output_positions, "shape", ()))
        mask = kind == torch.bool and shape == (batch, length)
        indices = kind in (torch.int64, torch.int32) and len(shape) == 2 and shape[0] == batch and shape[1] > 0
        if not mask and not indices:
            raise ValueError(
                f"output_positions{shown(output_positions)}; it must be boolean, {(batch, length)}, or indices, "
                f"({batch}, K) in int64 or int32, K at least 1."
            )
        if not mask:
            check_range("output_positions", output_positions, length, "the positions of a row")


def check_mask(config: Any, mask: Any, batch: int, length: int) -> None:
    """Raises a ValueError for an attention mask that `RaddModel.forward` does not take."""
    heads, implementation = config.num_attention_heads, config._attn_implementation
    if not isinstance(mask, Tensor) and hasattr(mask, "mask_mod") and implementation == "flex_attention":
        return  # a BlockMask
    shape, wanted = tuple(getattr(mask, "shape", ())), ((1, batch), (1, heads), (1, length), (length,))
    whole = len(shape) == 4 and all(size in sizes for size, sizes in zip(shape, wanted, strict=True))
    if not isinstance(mask, Tensor) or mask.is_complex() or not (shape == (batch, length) or whole):
        raise ValueError(
            f"attention_mask{shown(mask)}; it must be {(batch, length)}, 1 at text and 0 at padding, or "
            f"{(batch, 1, length, length)} of rows, heads, queries and keys; it may have 1 row and 1 query for all, "
            f"and {heads} heads."
        )
    if whole and any(kind in str(implementation) for kind in ("flash", "flex")):
        raise ValueError(
            f"attention_mask{shown(mask)}, which attn_implementation={implementation!r} cannot take: use 'eager' or "
            f"'sdpa', or a mask {(batch, length)} of padding."
        )
    if mask.dtype == torch.bool or not has_values(mask):
        return
    other = (mask != 0) & (mask != 1)
    if whole and mask.is_floating_point():
        if not float(mask.max()) < math.inf:
            raise ValueError(
                "attention_mask holds nan or inf; numbers that are added to the scores must be finite, or -inf to "
                "exclude a key."
            )
        if bool(mask.any()) and not bool(other.any()):
            raise ValueError(
                "attention_mask holds 0 and 1 as floating-point numbers; with four dimensions they are added to the "
                "scores. Pass it as booleans or integers."
            )
    elif bool(other.any()):
        place = tuple(other.nonzero()[0].tolist())
        more = "; a mask that is added has the shape (B, 1, L, L)" if mask.is_floating_point() else ""
        raise ValueError(f"attention_mask holds {mask[place].item()} at {place}; it must be 1 or 0{more}.")


def check_labels(
    config: Any,
    given: Tensor,
    labels: Tensor,
    loss_weights: Tensor | None,
    max_targets: int | None,
    num_items_in_batch: Any = None,
) -> None:
    """Raises a ValueError for labels and weights that do not fit the ids (B, L) or embeddings (B, L, D) `given`."""
    vocab_size, mask_token_id = config.vocab_size, config.mask_token_id
    shape, device = tuple(given.shape[:2]), given.device
    if getattr(labels, "dtype", None) not in (torch.int64, torch.int32) or tuple(labels.shape) != shape:
        raise ValueError(f"labels{shown(labels)}; it must have one for each token, {shape} in int64 or int32.")
    if loss_weights is not None and (not is_real(loss_weights) or tuple(loss_weights.shape) != shape[:1]):
        raise ValueError(f"loss_weights{shown(loss_weights)}; it must hold one weight a row, {shape[:1]}.")
    for name, tensor in (("labels", labels), ("loss_weights", loss_weights)):
        if tensor is not None and tensor.device != device:
            raise ValueError(
                f"{name} is on the device {str(tensor.device)!r}; it must be where the inputs are, {str(device)!r}."
            )
    items = num_items_in_batch
    if isinstance(items, Tensor) and has_values(items) and items.numel() == 1:
        items = items.item()
    single = isinstance(items, Tensor) and items.numel() == 1  # a number on a GPU is not checked
    if not (items is None or single or (is_number(items) and 0 < items <= LARGEST_INTEGER)):
        raise ValueError(f"num_items_in_batch={shortened(items)} must be a positive number of labelled tokens.")
    if not torch.compiler.is_compiling() and not (max_targets is None or is_integer(max_targets, 0, LARGEST_INTEGER)):
        raise ValueError(f"max_targets={shortened(max_targets)} must be an integer, at least the number of labels.")
    if loss_weights is not None:
        check_finite("loss_weights", loss_weights)
    if not has_values(labels):  # a compiler must not see max_targets either, which differs from batch to batch
        return
    labelled = labels != -100
    wrong = labelled & ((labels < 0) | (labels >= vocab_size) | (labels == mask_token_id))
    if bool(wrong.any()):
        row, position = wrong.nonzero()[0].tolist()
        label = int(labels[row, position])
        reason = ", the mask, which has probability 0" if label == mask_token_id else ""
        raise ValueError(
            f"labels holds {label} at row {row}, position {position}{reason}; it must be the id of a token, in "
            f"0 .. {vocab_size - 1} and not the mask, or -100 where no loss is wanted."
        )
    number = int(labelled.sum())
    if max_targets is not None and max_targets < number:
        raise ValueError(f"max_targets={max_targets!r} must be an integer, at least the number of labels, {number}.")


def check_range(name: str, values: Tensor, end: int, what: str) -> None:
    """Raises a ValueError for an integer outside 0 .. end - 1 in (B, n), on a CPU. `what` describes the range."""
    if not has_values(values):
        return
    least, most = (int(each) for each in values.aminmax())
    if least < 0 or most >= end:
        wrong = (values < 0) | (values >= end)
        place = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(f"{name} holds {int(values[place])} at {place}; {what} are 0 .. {end - 1}.")


def check_finite(name: str, values: Tensor) -> None:
    """Raises a ValueError if numbers on a CPU hold nan or infinity."""
    if values.is_floating_point() and has_values(values) and not bool(values.isfinite().all()):
        place = tuple((~values.isfinite()).nonzero()[0].tolist())
        raise ValueError(f"{name} holds {float(values[place])} at {place}; it must hold finite numbers.")


def is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_complex() and value.dtype != torch.bool


def shown(value: Any) -> str:
    """Describes an argument in a message, right after its name."""
    if isinstance(value, Tensor):
        return f" has shape {tuple(value.shape)} and dtype {value.dtype}"
    return f"={' '.join(repr(value).split())[:60]} is no tensor"


def as_tensor(name: str, value: Any, device: torch.device | None = None) -> Tensor:
    """Makes a tensor from lists, arrays or tensors of numbers, or raises a ValueError that names the argument."""
    if not isinstance(value, Tensor):
        value = plain(value)
    try:
        tensor = torch.as_tensor(value, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"{name}={shortened(value)} must be a tensor, or lists of numbers of one length. {reason}"
        ) from error
    if isinstance(value, (list, tuple)) and tensor.dtype != torch.bool and holds_booleans(value):
        raise ValueError(
            f"{name}={shortened(value)} holds True or False beside numbers; it must hold one or the other."
        )
    return tensor


def holds_booleans(value: Any) -> bool:
    return any(map(holds_booleans, value)) if isinstance(value, (list, tuple)) else isinstance(value, bool)


def as_permutation(name: str, value: Any, length: int, rows: int | None = None) -> Tensor:
    """Returns the positions 0 .. L - 1 of a row in an order, (L,) int64 on the CPU.

    Args:
        value: a list, tuple, array or tensor of integers.
        rows: R; with it a value of shape (R, L) is also taken, and returned in that shape.

    Raises:
        ValueError: if it is not a permutation. The message names the first wrong position.
    """
    order = as_tensor(name, value)
    integers = not (order.is_floating_point() or order.is_complex() or order.dtype == torch.bool)
    if not integers or tuple(order.shape) not in ((length,), (rows, length)):
        each = "" if rows is None else f" for all rows or {(rows, length)}"
        raise ValueError(f"{name}{shown(order)}; it must hold positions as integers, {(length,)}{each}.")
    order = order.cpu().long()
    for positions in order.view(-1, length).tolist():
        seen = set[int]()
        for position in positions:
            if position in seen or not 0 <= position < length:
                how = "twice" if position in seen else "which the row does not have"
                raise ValueError(
                    f"{name}={shortened(order.tolist())} names position {position}, {how}; it must name each position "
                    f"0 .. {length - 1} exactly once."
                )
            seen.add(position)
    return order


__all__ = ["as_permutation", "as_tensor", "check_inputs", "check_keywords", "check_labels", "shown"]
