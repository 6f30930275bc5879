# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The canvas: a row of token ids, with a mask at each position that the model is to fill.

    prefix, suffix and length, or input_ids  ->  ids and an attention mask  (make_canvas)
    a request of text, from a file or a client  ->  ids, blanks and the text around them  (encode_request)

A blank is a run of masks, written `[MASK:n]` in a text (`text_radd.py`). This file also selects positions of a canvas
([`Positions`]): the positions that need logits, or those that one evaluation of the network computes.

Shapes: B rows, L length, K the largest number of selected positions in a row, N the selected positions of all rows,
        D features.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from .inputs_radd import as_tensor
from .settings_radd import LENGTHS, is_integer, plain, shortened
from .text_radd import (
    MAX_BLANKS,
    BlankedText,
    check_characters,
    check_tokenizer_mask,
    encode_after_text,
    encode_text,
    encode_with_blanks,
)

# A text, several texts, the ids of one row, or rows of ids, in lists, tensors or NumPy arrays. Text needs a tokenizer.
TextOrIds = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | Tensor


# ---------------------------------------------------------------------------------------------------------
# Selected positions
# ---------------------------------------------------------------------------------------------------------


class Positions(NamedTuple):
    """Selects some positions of each row by a rectangle of indices.

    indices: (B, K) int64. A row with fewer than K positions repeats its first one. So what is computed for a row does
        not depend on the other rows.
    kept: (N,) int64, the places in the flattened rectangle that are not repetitions; None keeps all places. A caller
        who needs a fixed number of places may repeat the first one at the end.

    It is a tuple: accelerate moves a tuple to another device together with the other inputs of a layer.
    """

    indices: Tensor
    kept: Tensor | None = None

    @classmethod
    def of(cls, chosen: Tensor) -> "Positions":
        """Makes positions from indices (B, K), or from a boolean mask (B, L); then the host waits for the device."""
        if chosen.dtype != torch.bool:
            return cls(chosen)
        indices, real = padded_nonzero(chosen, max(int(chosen.sum(dim=1).max()), 1))  # (B, K) both
        return cls(indices, real.flatten().nonzero().squeeze(1))

    def select(self, states: Tensor) -> Tensor:
        """Returns the states at these positions: (B or 1, L, ...) -> (B, K, ...)."""
        # By indexing: gather would keep its argument, and an index as large as its result, for the backward pass.
        row = torch.arange(len(self.indices), device=states.device)[:, None]
        return states.expand(len(self.indices), *states.shape[1:])[row, self.indices]

    def select_queries(self, table: Tensor) -> Tensor:
        """Returns the queries at these positions: (B or 1, H or 1, L, n) -> (B, H or 1, K, n)."""
        return self.select(table.transpose(1, 2)).transpose(1, 2)

    def flatten(self, states: Tensor) -> Tensor:
        """Leaves out the repetitions: (B, K, D) -> (N, D). Without `kept` it returns the states as they are."""
        return states if self.kept is None else states.flatten(0, 1)[self.kept]

    def within(self, others: "Positions") -> "Positions":
        """Returns the same positions as indices into the rectangle of `others`, which must hold all of them."""
        found = others.indices[:, None, :] == self.indices[:, :, None]  # (B, K, C)
        return Positions(found.int().argmax(dim=-1), self.kept)

    def to(self, device: torch.device) -> "Positions":
        return Positions(self.indices.to(device), None if self.kept is None else self.kept.to(device))


def padded_nonzero(chosen: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Returns the positions of True in each row, ascending, and which of them are real: (B, L) -> (B, size) both.

    It is `nonzero` in a shape that does not depend on values, so the host need not wait for the device. A row with
    fewer positions repeats its first one. A row with none has zeros. A row with more loses the last ones.
    """
    position = torch.arange(chosen.shape[1], device=chosen.device).expand_as(chosen)  # (B, L)
    rank = chosen.cumsum(dim=1) - 1  # (B, L)
    rank = torch.where(chosen & (rank < size), rank, size)  # all others go to a last column, which is cut off
    found = position.new_zeros(len(chosen), size + 1).scatter_(1, rank, position)[:, :size]  # (B, size)
    real = torch.arange(size, device=chosen.device) < chosen.sum(dim=1, keepdim=True)
    return found.where(real, found[:, :1]), real


def widen(chosen: Tensor, window: int) -> Tensor:
    """Adds `window` neighbours on each side of every chosen position to a boolean mask (B, L)."""
    near = nn.functional.max_pool1d(chosen[:, None].float(), 2 * window + 1, stride=1, padding=window)
    return near[:, 0] > 0


# ---------------------------------------------------------------------------------------------------------
# From prefix, suffix and length, or ids
# ---------------------------------------------------------------------------------------------------------


def make_canvas(
    config: Any,
    input_ids: TextOrIds | None = None,
    *,
    prefix: TextOrIds | None = None,
    suffix: TextOrIds | None = None,
    length: int | None = None,
    max_new_tokens: int | None = None,
    attention_mask: Any = None,
    tokenizer: Any = None,
    pad_token_id: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Makes the canvas (B, L), a copy, and the attention mask (B, L) or None, both on the CPU.

    The arguments are those of `generate`. Without `length` and `max_new_tokens` a text has the length that the model
    was trained at.

    Raises:
        ValueError, TypeError: for arguments that contradict each other, for ids outside the vocabulary, for a prefix
            and a suffix that leave no room, and for a tokenizer whose mask is not the model's.
    """
    check_tokenizer_mask(tokenizer, config.mask_token_id)
    if input_ids is None:
        if attention_mask is not None:
            raise ValueError("attention_mask describes padding of input_ids: pass it with input_ids only.")
        if max_new_tokens is None:
            length = length or config.max_position_embeddings
        rows = rows_between(config, prefix, suffix, length, max_new_tokens, tokenizer)
        return pad_left(rows, pad_token_id, config)
    if prefix is not None or suffix is not None:
        raise ValueError("input_ids is the whole canvas: pass it, or prefix and suffix, not both.")

    def encode(texts: Sequence[str], tokenizer: Any, name: str) -> list[list[int]]:
        return [encode_with_blanks(text, tokenizer, config.mask_token_id, name).ids for text in texts]

    rows = id_rows("input_ids", input_ids, tokenizer, config.vocab_size, encode)
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1 or lengths[0] == 0:
        raise ValueError(f"input_ids has rows of lengths {lengths}; a canvas has one length of at least 1.")
    if length not in (None, lengths[0]):
        raise ValueError(f"length={length}, but input_ids, the whole canvas, has length {lengths[0]}.")
    canvas = torch.tensor(rows, device="cpu")  # (B, L)
    mask = check_attention_mask(attention_mask, canvas, config.mask_token_id)
    more = max_new_tokens or 0
    return pad(canvas, (0, more), value=config.mask_token_id), None if mask is None else pad(mask, (0, more), value=1)


def rows_between(
    config: Any,
    prefix: TextOrIds | None,
    suffix: TextOrIds | None,
    length: int | None,
    max_new_tokens: int | None,
    tokenizer: Any = None,
) -> list[list[int]]:
    """Returns rows of ids: a prefix, masks and a suffix. A single prefix or suffix serves all rows.

    There are `max_new_tokens` masks, or as many as make the row `length` tokens long.
    """
    before = [[]] if prefix is None else id_rows("prefix", prefix, tokenizer, config.vocab_size)
    after = [[]] if suffix is None else id_rows("suffix", suffix, tokenizer, config.vocab_size, encode_after_text)
    if len(before) != len(after) and 1 not in (len(before), len(after)):
        raise ValueError(
            f"prefix has {len(before)} rows and suffix {len(after)}: they must agree, or one of them must have one row."
        )
    batch, rows = max(len(before), len(after)), []
    for head, tail in zip(before * (batch // len(before)), after * (batch // len(after)), strict=True):
        given = len(head) + len(tail)
        if length is not None and given >= length:
            raise ValueError(
                f"prefix ({len(head)} tokens) + suffix ({len(tail)} tokens) leave nothing to generate in "
                f"length={length}; pass length > {given} or shorten them."
            )
        masks = max_new_tokens if length is None else length - given
        rows.append([*head, *[config.mask_token_id] * cast(int, masks), *tail])
    return rows


def pad_left(rows: list[list[int]], pad_token_id: int | None, config: Any) -> tuple[Tensor, Tensor | None]:
    """Returns rows of ids as (B, L), and the attention mask (B, L); the mask is None if no row needs padding."""
    lengths = sorted({len(row) for row in rows})
    if len(lengths) == 1:
        return torch.tensor(rows, device="cpu"), None
    if pad_token_id is None or pad_token_id == config.mask_token_id:
        raise ValueError(
            f"pad_token_id={shortened(pad_token_id)} must be an id other than the mask's, since max_new_tokens makes "
            f"rows of lengths {lengths}; pass one, or length."
        )
    ((padding,),) = id_rows("pad_token_id", [pad_token_id], None, config.vocab_size)
    missing = [lengths[-1] - len(row) for row in rows]
    canvas = [[padding] * count + row for count, row in zip(missing, rows, strict=True)]
    text = [[0] * count + [1] * len(row) for count, row in zip(missing, rows, strict=True)]
    return torch.tensor(canvas, device="cpu"), torch.tensor(text, device="cpu")


def check_attention_mask(attention_mask: Any, canvas: Tensor, mask_token_id: int) -> Tensor | None:
    """Returns the attention mask (B, L) on the canvas's device, or raises a ValueError if it does not fit."""
    if attention_mask is None:
        return None
    mask = as_tensor("attention_mask", attention_mask, canvas.device)
    mask = mask[None] if mask.ndim == 1 else mask
    if mask.shape != canvas.shape:
        raise ValueError(f"attention_mask has shape {tuple(mask.shape)}; input_ids has {tuple(canvas.shape)}.")
    other = (mask != 0) & (mask != 1)  # (B, L)
    if bool(other.any()):
        place = tuple(other.nonzero()[0].tolist())
        raise ValueError(
            f"attention_mask holds {mask[place].item()} at {place}; it must be 1 at text and 0 at padding."
        )
    if bool(((mask == 0) & (canvas == mask_token_id)).any()):
        raise ValueError(f"attention_mask is 0 at a mask (id {mask_token_id}) of input_ids: pad with another id.")
    return mask


def id_rows(
    name: str,
    value: Any,
    tokenizer: Any,
    vocab_size: int,
    encode: Callable[[Sequence[str], Any, str], list[list[int]]] = encode_text,
) -> list[list[int]]:
    """Returns rows of valid token ids, from ids or text in any form that `generate` takes. `encode` encodes text."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):  # a tensor, or an array of NumPy
        kind = str(value.dtype)
        if "float" in kind or "bool" in kind or len(value.shape) not in (1, 2):
            raise ValueError(
                f"{name} has shape {tuple(value.shape)} and dtype {kind}; ids are integers, (L,) or (B, L)."
            )
        if len(value.shape) == 2 and value.shape[0] == 0:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; it must have at least one row.")
    if isinstance(value, Mapping) and "input_ids" in value:  # a tokenizer returned it
        raise TypeError(
            f"{name}={shortened(dict(value))} must be ids or text: pass its input_ids, and attention_mask with them."
        )
    value = plain(value)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)):
        raise TypeError(f"{name}={shortened(value)} must be ids (list or tensor) or text (with tokenizer=).")
    if texts and all(isinstance(text, str) for text in texts):
        if tokenizer is None:
            raise ValueError(f"{name}={shortened(value)} is text: pass tokenizer= with it, or token ids.")
        for text in texts:
            check_characters(text, name)
        rows = encode(texts, tokenizer, name)
    elif not texts or is_integer(texts[0]):
        rows = [list(texts)]
    else:
        rows = [list(row) if isinstance(row, (list, tuple)) else [row] for row in texts]
    for row in rows:
        if set(map(type, row)) == {int} and min(row) >= 0 and max(row) < vocab_size:
            continue  # these three passes in C take a tenth of the time of the loop below
        for token in row:
            if not is_integer(token):
                raise TypeError(f"{name} holds {shortened(token)}; it must be token ids, all text, or all rows of ids.")
            if not 0 <= token < vocab_size:
                raise ValueError(
                    f"{name} holds the id {shortened(token)}; the vocabulary has ids 0 .. {vocab_size - 1}."
                )
    return rows


# The keys that a request may have.
ENDS = "prefix", "suffix"
REQUEST = "text", *ENDS, *LENGTHS


def encode_request(
    request: str | Mapping[str, Any],
    config: Any,
    tokenizer: Any,
    *,
    length: int | None = None,
    max_new_tokens: int | None = None,
    name: str = "text",
) -> BlankedText:
    """Returns the canvas of one request: a text with blanks, or one blank between a prefix and a suffix.

    Args:
        request: a text with blanks, as in [`encode_blanks`], or a mapping with such a text as "text". Or a mapping with
            some of "prefix", "suffix", and "length" or "max_new_tokens", each as in `generate`. A value of None counts
            as left out.
        length, max_new_tokens: used for a request without blanks that has neither. Default: the model's length.
        name: what messages call the text.

    Raises:
        ValueError: for a text without blanks, for unknown keys, and for values that have another type, contradict each
            other or leave no room.
    """
    given = {"text": request} if isinstance(request, str) else request
    if not isinstance(given, Mapping):
        raise ValueError(
            f"{name}={shortened(request)} must be a text with blanks, or a mapping with some of {REQUEST}."
        )
    if unknown := sorted(str(key) for key in given.keys() - {*REQUEST}):
        raise ValueError(f"{name} has {', '.join(map(repr, unknown))}; a request has some of {REQUEST}.")
    given = {key: plain(value) for key, value in given.items() if value is not None}
    for key in given.keys() & {"text", *ENDS}:
        if not isinstance(given[key], str):
            raise ValueError(f"{key}={shortened(given[key])} must be a string.")
    for key in given.keys() & {*LENGTHS}:
        if not is_integer(given[key], 1, MAX_BLANKS):
            raise ValueError(f"{key}={shortened(given[key])} must be an integer in 1 .. {MAX_BLANKS}.")
    if "text" in given:
        if others := [key for key in REQUEST if key in given and key != "text"]:
            raise ValueError(f"{name} is the whole text: leave out {' and '.join(others)}, or {name}.")
        blanked = encode_with_blanks(given["text"], tokenizer, config.mask_token_id, name)
        if not blanked.spans:
            raise ValueError(
                f"{name}={shortened(given['text'])} has no blank: write [MASK:12] where twelve tokens are wanted, or "
                "pass it as prefix to continue it."
            )
        return blanked
    if not given:
        raise ValueError(f"{name} is missing: pass a text with blanks, or some of {REQUEST[1:]}.")
    if all(key in given for key in LENGTHS):
        raise ValueError(f"length={given['length']} and max_new_tokens={given['max_new_tokens']}: pass one of them.")
    sizes: dict[str, Any] = {key: given[key] for key in LENGTHS if key in given}
    sizes = sizes or {"length": length, "max_new_tokens": max_new_tokens}
    ends: dict[str, Any] = {key: given.get(key) for key in ENDS}
    ids = make_canvas(config, **ends, **sizes, tokenizer=tokenizer)[0][0].tolist()  # (L,)
    begin, masks = ids.index(config.mask_token_id), ids.count(config.mask_token_id)
    return BlankedText(ids, [(begin, begin + masks)], [given.get("prefix", ""), given.get("suffix", "")])


__all__ = ["Positions", "TextOrIds", "encode_request", "make_canvas", "padded_nonzero", "widen"]
