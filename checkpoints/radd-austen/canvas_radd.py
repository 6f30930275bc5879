# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Turns text or ids into a canvas: token ids in which every mask is to be filled and every other token stays.

    "It was [MASK:4] of spring."             ->  ids, masks in the blank        (encode_blanks)
    prefix, suffix and length, or input_ids  ->  ids and an attention mask      (make_canvas)

It also selects positions of a canvas ([`Positions`]): those that need logits, or those that one evaluation computes.

Shapes: B rows, L length, K most selected positions of any row, N selected positions of all rows, D features.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .settings_radd import is_integer

# Text, several texts, ids of one row, or rows of ids; text needs a tokenizer.
TextOrIds = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | Tensor


# ---------------------------------------------------------------------------------------------------------
# Selected positions
# ---------------------------------------------------------------------------------------------------------


class Positions(NamedTuple):
    """Selects some positions of each row by a rectangle of indices.

    indices: (B, K) int64; a row that has fewer than K positions repeats its first, so that no row's computation depends
        on the others.
    kept: (N,) int64, the places in the flattened rectangle that are no repetitions; None keeps all of it. A caller who
        needs a fixed number may repeat the first at the end.

    It is a tuple, so that accelerate moves it along with the other inputs of a layer on another device.
    """

    indices: Tensor
    kept: Tensor | None = None

    @classmethod
    def of(cls, chosen: Tensor) -> "Positions":
        """Takes indices (B, K) as they are, or a boolean mask (B, L), for which the host waits for the device."""
        if chosen.dtype != torch.bool:
            return cls(chosen)
        indices, real = padded_nonzero(chosen, max(int(chosen.sum(dim=1).max()), 1))  # (B, K) both
        return cls(indices, real.flatten().nonzero().squeeze(1))

    def select(self, states: Tensor) -> Tensor:
        """Returns the states at these positions: (B or 1, L, ...) -> (B, K, ...)."""
        # Indexing, since gather keeps its argument and an index as large as its result for the backward pass.
        row = torch.arange(len(self.indices), device=states.device)[:, None]
        return states.expand(len(self.indices), *states.shape[1:])[row, self.indices]

    def select_queries(self, table: Tensor) -> Tensor:
        """Returns the queries at these positions: (B or 1, H or 1, L, n) -> (B, H or 1, K, n)."""
        return self.select(table.transpose(1, 2)).transpose(1, 2)

    def flatten(self, states: Tensor) -> Tensor:
        """Leaves out the repetitions, (B, K, D) -> (N, D); without `kept` returns the states as they are."""
        return states if self.kept is None else states.flatten(0, 1)[self.kept]

    def within(self, others: "Positions") -> "Positions":
        """Returns the same positions as places in the rectangle of `others`, which holds all of them."""
        found = others.indices[:, None, :] == self.indices[:, :, None]  # (B, K, C)
        return Positions(found.int().argmax(dim=-1), self.kept)

    def to(self, device: torch.device) -> "Positions":
        return Positions(self.indices.to(device), None if self.kept is None else self.kept.to(device))


def padded_nonzero(chosen: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Returns the positions of True in each row, ascending, and which of them are real: (B, L) -> (B, size) both.

    A row with fewer repeats its first, one with none has zeros, and one with more loses the last. It is `nonzero` in a
    shape that does not depend on values, so that the host need not wait for the device.
    """
    position = torch.arange(chosen.shape[1], device=chosen.device).expand_as(chosen)  # (B, L)
    rank = chosen.cumsum(dim=1) - 1  # (B, L)
    rank = torch.where(chosen & (rank < size), rank, size)  # the others go to a last column, which is cut off
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
    attention_mask: Any = None,
    tokenizer: Any = None,
) -> tuple[Tensor, Tensor | None]:
    """Returns the canvas (B, L), a copy, and the attention mask (B, L) or None, both on the CPU.

    The arguments are those of `generate`; `length` is needed where `input_ids` is None.

    Raises:
        ValueError, TypeError: for arguments that contradict each other, ids outside the vocabulary, and a prefix and a
            suffix that leave no room; for a tokenizer whose mask is not the model's.
    """
    check_mask(tokenizer, config.mask_token_id)
    if input_ids is not None:
        if prefix is not None or suffix is not None:
            raise ValueError("input_ids is the whole canvas: pass it, or prefix and suffix, not both.")
        rows = id_rows("input_ids", input_ids, tokenizer, config.vocab_size)
        lengths = sorted({len(row) for row in rows})
        if len(lengths) > 1 or lengths[0] == 0:
            raise ValueError(f"input_ids has rows of lengths {lengths}; a canvas has one length of at least 1.")
        if length not in (None, lengths[0]):
            raise ValueError(f"length={length}, but input_ids, the whole canvas, has length {lengths[0]}.")
        canvas = torch.tensor(rows, device="cpu")  # (B, L)
    else:
        if attention_mask is not None:
            raise ValueError("attention_mask describes padding of input_ids: pass it with input_ids only.")
        canvas = canvas_between(config, prefix, suffix, length or config.max_position_embeddings, tokenizer)
    return canvas, check_attention_mask(attention_mask, canvas, config.mask_token_id)


def canvas_between(
    config: Any, prefix: TextOrIds | None, suffix: TextOrIds | None, length: int, tokenizer: Any = None
) -> Tensor:
    """Returns ids (B, L): each prefix, masks, and the suffix at the end; a single one of either serves all rows."""
    before = [[]] if prefix is None else id_rows("prefix", prefix, tokenizer, config.vocab_size)
    after = [[]] if suffix is None else id_rows("suffix", suffix, tokenizer, config.vocab_size)
    if len(before) != len(after) and 1 not in (len(before), len(after)):
        raise ValueError(
            f"prefix has {len(before)} rows and suffix {len(after)}: they must agree, or one of them be single."
        )
    batch = max(len(before), len(after))
    canvas = torch.full((batch, length), config.mask_token_id, device="cpu")  # (B, L)
    for row, head, tail in zip(canvas, before * (batch // len(before)), after * (batch // len(after)), strict=True):
        if len(head) + len(tail) >= length:
            raise ValueError(
                f"prefix ({len(head)} tokens) + suffix ({len(tail)} tokens) leave nothing to generate in "
                f"length={length}; pass length > {len(head) + len(tail)} or shorten them."
            )
        row[: len(head)] = canvas.new_tensor(head)
        row[length - len(tail) :] = canvas.new_tensor(tail)
    return canvas


def check_attention_mask(attention_mask: Any, canvas: Tensor, mask_token_id: int) -> Tensor | None:
    """Returns the attention mask (B, L) on the canvas's device, or raises a ValueError if it does not fit."""
    if attention_mask is None:
        return None
    mask = as_tensor("attention_mask", attention_mask, canvas.device)
    mask = mask[None] if mask.ndim == 1 else mask
    if mask.shape != canvas.shape:
        raise ValueError(f"attention_mask has shape {tuple(mask.shape)}; input_ids has {tuple(canvas.shape)}.")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(f"attention_mask={mask.tolist()} must hold 1 at text and 0 at padding.")
    if bool(((mask == 0) & (canvas == mask_token_id)).any()):
        raise ValueError(f"attention_mask is 0 at a mask (id {mask_token_id}) of input_ids: pad with another id.")
    return mask


def check_mask(tokenizer: Any, mask_token_id: int) -> None:
    """Raises a ValueError for a tokenizer that has its mask at another id than the model; it may have none."""
    theirs = getattr(tokenizer, "mask_token_id", None)
    if theirs is not None and theirs != mask_token_id:
        raise ValueError(
            f"tokenizer={tokenizer.name_or_path!r} has its mask {tokenizer.mask_token!r} at id {theirs}, and the model "
            f"at {mask_token_id}: it must be the tokenizer that the model was trained with."
        )


def as_tensor(name: str, value: Any, device: torch.device) -> Tensor:
    try:
        return torch.as_tensor(value, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}={value!r} must be a tensor, or lists of numbers of one length. {error}") from error


def id_rows(name: str, value: Any, tokenizer: Any, vocab_size: int) -> list[list[int]]:
    """Returns rows of valid token ids for ids or text in any form that `generate` takes."""
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.dtype == torch.bool or value.ndim not in (1, 2):
            raise ValueError(
                f"{name} has shape {tuple(value.shape)} and dtype {value.dtype}; ids are integers, (L,) or (B, L)."
            )
        value = value.tolist()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)):
        raise TypeError(f"{name}={value!r} must be ids (list or tensor) or text (with tokenizer=).")
    if texts and all(isinstance(text, str) for text in texts):
        if tokenizer is None:
            raise ValueError(f"{name}={value!r} is text: pass tokenizer= with it, or token ids.")
        rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    elif not texts or is_integer(texts[0]):
        rows = [list(texts)]
    else:
        rows = [list(row) if isinstance(row, (list, tuple)) else [row] for row in texts]
    for row in rows:
        for token in row:
            if not is_integer(token):
                raise TypeError(f"{name} holds {token!r}; it must be token ids, all text, or all rows of ids.")
            if not 0 <= token < vocab_size:
                raise ValueError(f"{name} holds the id {token}; the vocabulary has ids 0 .. {vocab_size - 1}.")
    return rows


# ---------------------------------------------------------------------------------------------------------
# From text with blanks
# ---------------------------------------------------------------------------------------------------------

# Finds the beginning of a blank in any spelling, so that a slip is an error and not text.
BLANK_BEGINS = re.compile(r"\[MASK", re.IGNORECASE)
BLANK = re.compile(r"\[MASK(?::([0-9]{1,9}))?\]")
# Longer than any model's text: a typing error must not fill the memory.
MAX_BLANK = 2**16


def encode_blanks(text: str, tokenizer: Any, mask_token_id: int) -> list[int]:
    """Returns the canvas of a text with blanks: its token ids, with `mask_token_id` where text is wanted.

    `[MASK]`, or the tokenizer's own mask token, is a blank of one token, `[MASK:n]` one of n tokens. The text between
    is tokenised without special tokens.

    One space before a blank belongs to the blank, since a token of a byte-level BPE begins with the space before its
    word: "It was [MASK] of" is the canvas of "It was cold of" with " cold" masked. Other white space stays text.

    Args:
        text: with any number of blanks, or none.
        tokenizer: of transformers, a byte-level BPE such as GPT-2's.
        mask_token_id: the model's `config.mask_token_id`.

    Returns:
        L ids.

    Raises:
        ValueError: for a blank that is malformed, empty or of more than `MAX_BLANK` tokens.
    """
    return encode_with_spans(text, tokenizer, mask_token_id)[0]


def encode_with_spans(text: str, tokenizer: Any, mask_token_id: int) -> tuple[list[int], list[tuple[int, int]]]:
    """Returns what [`encode_blanks`] does, and where in the canvas each blank begins and ends (exclusive)."""
    if not isinstance(text, str):
        raise ValueError(f"text={text!r} must be a string, with blanks such as [MASK] or [MASK:12].")
    check_mask(tokenizer, mask_token_id)
    if tokenizer.mask_token is not None:
        text = text.replace(tokenizer.mask_token, "[MASK]")
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    end = 0  # of what has been read of the text
    for beginning in BLANK_BEGINS.finditer(text):
        blank = BLANK.match(text, beginning.start())
        size = int(blank[1] or 1) if blank else 0
        if blank is None or not 1 <= size <= MAX_BLANK:
            raise ValueError(
                f"text has {text[beginning.start() : beginning.start() + 16]!r} at character {beginning.start()}; a "
                f"blank is written [MASK] for one token or [MASK:n] for n tokens, n from 1 to {MAX_BLANK}."
            )
        piece = text[end : blank.start()].removesuffix(" ")
        ids += tokenizer(piece, add_special_tokens=False)["input_ids"]
        spans.append((len(ids), len(ids) + size))
        ids += [mask_token_id] * size
        end = blank.end()
    ids += tokenizer(text[end:], add_special_tokens=False)["input_ids"]
    return ids, spans


__all__ = ["Positions", "TextOrIds", "encode_blanks", "encode_with_spans", "make_canvas", "padded_nonzero", "widen"]
