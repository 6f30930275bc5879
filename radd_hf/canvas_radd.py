# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Turns text or ids into a canvas: token ids in which every mask is to be filled and every other token stays.

    "It was [MASK:4] of spring."             ->  ids, masks in the blank        (encode_blanks)
    prefix, suffix and length, or input_ids  ->  ids and an attention mask      (make_canvas)

Text is text: where it spells a special token, its characters are encoded (encode_text). Text behind other text has the
ids that it would have there, whatever the tokenizer does at the beginning of a text (encode_after_text).

It also selects positions of a canvas ([`Positions`]): those that need logits, or those that one evaluation computes,
and checks what a forward is given (`check_inputs`, `check_labels`).

Shapes: B rows, L length, K most selected positions of any row, N selected positions of all rows, D features, H heads.
"""

import inspect
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from .kernels_radd import has_values
from .settings_radd import is_integer, plain

logger = logging.getLogger(__name__)

# Text, several texts, ids of one row, or rows of ids, in lists, tensors or arrays of NumPy; text needs a tokenizer.
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
# From text to ids, and back
# ---------------------------------------------------------------------------------------------------------

# Stand before a text that continues another; several, since the text's first token must not swallow them.
BEFORE = ("a", "0", ".")
# Special tokens whose spelling in a text was reported.
REPORTED: set[str] = set()


def encode_text(
    texts: Sequence[str], tokenizer: Any, name: str = "text", *, special_tokens_in_text: bool = False
) -> list[list[int]]:
    """Returns the ids of each text: nothing is added, and what spells a special token is encoded as its characters.

    Args:
        name: what a text is, for messages.
        special_tokens_in_text: whether the spelling of a special token stands for that token. The mask's never does.

    Raises:
        ValueError: for a text with a lone surrogate; for one that spells a special token whose characters the tokenizer
            cannot encode.
    """
    for text in texts:
        check_unicode(text, name)
    if not texts:
        return []
    rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    special = special_ids(tokenizer)
    return [
        # Most texts spell none, and are encoded once.
        ids if special.isdisjoint(ids) else _encode_spelled(text, ids, tokenizer, name, special_tokens_in_text)
        for text, ids in zip(texts, rows, strict=True)
    ]


def _encode_spelled(text: str, ids: list[int], tokenizer: Any, name: str, special_tokens_in_text: bool) -> list[int]:
    """Returns the ids of a text whose `ids` hold special tokens, which it spells or which stand for unknown text."""
    unknown, special = tokenizer.unk_token_id, special_ids(tokenizer)
    if special_tokens_in_text:
        if tokenizer.mask_token_id in ids:
            raise ValueError(
                f"{name}={text[:60]!r} spells the mask {_place(text, tokenizer.mask_token)}, which is no token of a "
                "text, and special_tokens_in_text=True makes it one: leave it out of the text."
            )
        return ids
    split = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    if special.isdisjoint({*ids} - {unknown}) and split.count(unknown) >= ids.count(unknown):
        return ids  # it spells none, or the unknown token, whose characters are as unknown
    spelled = {token: tokenizer.convert_ids_to_tokens(token) for token in special.intersection(ids)}
    read = _without_spaces(_decode(split, tokenizer))  # as WordPiece puts spaces between characters
    lost = special.intersection(split) | {each for each, word in spelled.items() if _without_spaces(word) not in read}
    if lost - {unknown}:
        word = tokenizer.convert_ids_to_tokens(min(lost - {unknown}))
        raise ValueError(
            f"{name}={text[:60]!r} spells the special token {_place(text, word)}, and the tokenizer, "
            f"{type(tokenizer).__name__}, cannot encode that as characters: change it in the text."
        )
    new = set(spelled.values()) - REPORTED
    if new:
        REPORTED.update(new)
        logger.warning(
            f"{name}={text[:60]!r} spells {', '.join(_place(text, word) for word in sorted(new))}. Here and wherever a "
            "text spells a special token, its characters are encoded; in data, special_tokens_in_text=True makes it "
            "that token."
        )
    return split


def special_ids(tokenizer: Any) -> set[int]:
    """Returns the ids that stand for no characters of a text."""
    added = getattr(tokenizer, "added_tokens_decoder", {})  # has reserved tokens, which have no role
    return {*tokenizer.all_special_ids, *(token for token, entry in added.items() if entry.special)}


def check_unicode(text: str, name: str) -> None:
    """Raises a ValueError for a text with a lone surrogate, which Python makes of bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name}={text[:60]!r} has the lone surrogate {text[error.start]!r} at character {error.start}, which is "
            "no character of Unicode: decode the text from its true encoding."
        ) from None


def _place(text: str, word: str) -> str:
    found = text.find(word)
    return f"{word!r}" if found < 0 else f"{word!r} at character {found}"


def _without_spaces(text: str) -> str:
    return "".join(text.casefold().split())


def encode_after_text(texts: Sequence[str], tokenizer: Any, name: str = "text") -> list[list[int]]:
    """Returns the ids of each text as they are where other text stands before it.

    Alone, a text begins with a space for a tokenizer of SentencePiece's habit, and with a word for WordPiece. Where it
    would read so, it is encoded behind a character whose tokens are then cut off.

    Raises:
        ValueError: as [`encode_text`], and for a text that the tokenizer cannot continue another with.
    """
    rows = encode_text(texts, tokenizer, name)
    return [_encode_after_text(text, ids, tokenizer, name) for text, ids in zip(texts, rows, strict=True)]


def _encode_after_text(text: str, alone: list[int], tokenizer: Any, name: str) -> list[int]:
    """`alone`: the ids of the text by itself."""
    heads = encode_text(BEFORE, tokenizer)
    wholes = encode_text([before + text for before in BEFORE], tokenizer, name)
    rests = [whole[len(head) :] for head, whole in zip(heads, wholes, strict=True) if whole[: len(head)] == head]
    wanted = _decode(wholes[0], tokenizer)
    for ids in (alone, *rests):
        if _decode(heads[0] + ids, tokenizer) == wanted:
            return ids
    raise ValueError(
        f"{name}={text[:60]!r} cannot continue a text: the tokenizer, {type(tokenizer).__name__}, reads it as "
        f"{_decode(heads[0] + alone, tokenizer)[:60]!r} after {BEFORE[0]!r}. Leave a space before it."
    )


def decode_after_text(rows: Sequence[Sequence[int]], tokenizer: Any, **settings: Any) -> list[str]:
    """Returns the text of each row of ids as it is where other text stands before it: a word keeps its space.

    Args:
        settings: for `tokenizer.decode`.
    """
    (head,) = encode_text(BEFORE[:1], tokenizer)
    before = _decode(head, tokenizer)
    return [_decode([*head, *ids], tokenizer, **settings).removeprefix(before) for ids in rows]


def decode_span(ids: Sequence[int], begin: int, end: int, tokenizer: Any, **settings: Any) -> str:
    """Returns what the ids from `begin` to `end` (exclusive) add to the text of all ids."""
    if begin == 0:
        return _decode(ids[:end], tokenizer, **settings)
    return decode_after_text([ids[begin:end]], tokenizer, **settings)[0]


def _decode(ids: Sequence[int], tokenizer: Any, **settings: Any) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False, **settings)


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
    """Returns the canvas (B, L), a copy, and the attention mask (B, L) or None, both on the CPU.

    The arguments are those of `generate`; with neither `length` nor `max_new_tokens` a text is as long as the model's
    longest.

    Raises:
        ValueError, TypeError: for arguments that contradict each other, ids outside the vocabulary, and a prefix and a
            suffix that leave no room; for a tokenizer whose mask is not the model's.
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
        return [encode_with_spans(text, tokenizer, config.mask_token_id, name)[0] for text in texts]

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
    """Returns rows of ids: each prefix, masks, and the suffix at the end; a single one of either serves all rows.

    The masks are `max_new_tokens`, or as many as make the row `length` tokens long. The text that is read back is
    prefix + what is written + suffix.
    """
    before = [[]] if prefix is None else id_rows("prefix", prefix, tokenizer, config.vocab_size)
    after = [[]] if suffix is None else id_rows("suffix", suffix, tokenizer, config.vocab_size, encode_after_text)
    if len(before) != len(after) and 1 not in (len(before), len(after)):
        raise ValueError(
            f"prefix has {len(before)} rows and suffix {len(after)}: they must agree, or one of them be single."
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
    """Returns rows of ids as (B, L), and the attention mask (B, L), which is None where no row needs padding."""
    lengths = sorted({len(row) for row in rows})
    if len(lengths) == 1:
        return torch.tensor(rows, device="cpu"), None
    if pad_token_id is None or pad_token_id == config.mask_token_id:
        raise ValueError(
            f"pad_token_id={pad_token_id} must be an id other than the mask's, since max_new_tokens makes rows of "
            f"lengths {lengths}; pass one, or length."
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


def check_tokenizer_mask(tokenizer: Any, mask_token_id: int) -> None:
    """Raises a ValueError for a tokenizer that has its mask at another id than the model; it may have none."""
    theirs = getattr(tokenizer, "mask_token_id", None)
    if theirs is not None and theirs != mask_token_id:
        raise ValueError(
            f"tokenizer={tokenizer.name_or_path!r} has its mask {tokenizer.mask_token!r} at id {theirs}, and the model "
            f"at {mask_token_id}: it must be the tokenizer that the model was trained with."
        )


def as_tensor(name: str, value: Any, device: torch.device | None = None) -> Tensor:
    """Returns a tensor of lists, arrays or tensors of numbers; raises a ValueError that names the argument."""
    try:
        return torch.as_tensor(value if isinstance(value, Tensor) else plain(value), device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}={value!r} must be a tensor, or lists of numbers of one length. {error}") from error


def id_rows(
    name: str,
    value: Any,
    tokenizer: Any,
    vocab_size: int,
    encode: Callable[[Sequence[str], Any, str], list[list[int]]] = encode_text,
) -> list[list[int]]:
    """Returns rows of valid token ids for ids or text in any form that `generate` takes; `encode` reads the text."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):  # a tensor, or an array of NumPy
        kind = str(value.dtype)
        if "float" in kind or "bool" in kind or len(value.shape) not in (1, 2):
            raise ValueError(
                f"{name} has shape {tuple(value.shape)} and dtype {kind}; ids are integers, (L,) or (B, L)."
            )
    if isinstance(value, Mapping) and "input_ids" in value:  # what a tokenizer returns
        raise TypeError(
            f"{name}={dict(value)!r} must be ids or text: pass its input_ids, and attention_mask with them."
        )
    value = plain(value)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)):
        raise TypeError(f"{name}={value!r} must be ids (list or tensor) or text (with tokenizer=).")
    if texts and all(isinstance(text, str) for text in texts):
        if tokenizer is None:
            raise ValueError(f"{name}={value!r} is text: pass tokenizer= with it, or token ids.")
        rows = encode(texts, tokenizer, name)
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
# What a forward is given
# ---------------------------------------------------------------------------------------------------------

# Keywords of transformers that every forward takes, and ours that the trunk takes from the model with a head.
RECORDING = ("output_hidden_states", "output_attentions", "return_dict")
INNER = ("cache", "partial", "position_embeddings")
# Keywords of packed rows, which flash attention alone reads.
PACKING = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
# Keywords that some tools always pass. They may ask for nothing: None or False.
NOTHING = ("use_cache", "past_key_values", "cache_position", "is_causal")


def check_keywords(config: Any, forward: Callable, given: dict[str, Any]) -> dict[str, Any]:
    """Returns the keywords that the layers take, of those that are no parameters of `forward`.

    Raises:
        TypeError: for a name that the network does not know; the message has the nearest that it does.
        ValueError: for a value that asks for what the network does not have.
    """
    kept = {}
    for name, value in given.items():
        if name in (*RECORDING, *INNER) or (name in PACKING and "flash" in str(config._attn_implementation)):
            kept[name] = value
        elif name in NOTHING:
            if value is not None and value is not False:
                raise ValueError(
                    f"{name}={repr(value)[:60]} must be None or False: every token attends to every other, both "
                    "ways, so no evaluation goes on with an earlier one."
                )
        elif name == "token_type_ids":  # which tokenizers like BERT's return
            if isinstance(value, Tensor) and has_values(value) and bool(value.any()):
                raise ValueError(
                    f"token_type_ids holds {int(value.max())}; it must be 0, as the network has no segments."
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

    Values are looked at on a CPU only, since the host would have to wait for a card.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("pass exactly one of input_ids and inputs_embeds.")
    if input_ids is not None:
        integers = isinstance(input_ids, Tensor) and input_ids.dtype in (torch.int64, torch.int32)
        if not integers or input_ids.ndim != 2 or input_ids.numel() == 0:
            raise ValueError(f"input_ids{shown(input_ids)}; it must hold ids, (B, L) in int64 or int32, at least one.")
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
    if output_positions is not None and not isinstance(output_positions, tuple):  # Positions is one
        kind = getattr(output_positions, "dtype", None)
        shape = tuple(getattr(output_positions, "shape", ()))
        mask = kind == torch.bool and shape == (batch, length)
        if not mask and not (kind in (torch.int64, torch.int32) and len(shape) == 2 and shape[0] == batch):
            raise ValueError(
                f"output_positions{shown(output_positions)}; it must be boolean, {(batch, length)}, or indices, "
                f"({batch}, K) in int64 or int32."
            )


def check_mask(config: Any, mask: Any, batch: int, length: int) -> None:
    """Raises a ValueError for a mask of attention that is none, see `RaddModel.forward`."""
    heads, implementation = config.num_attention_heads, config._attn_implementation
    if not isinstance(mask, Tensor) and hasattr(mask, "mask_mod") and implementation == "flex_attention":
        return  # a BlockMask
    shape, wanted = tuple(getattr(mask, "shape", ())), ((1, batch), (1, heads), (1, length), (length,))
    whole = len(shape) == 4 and all(size in sizes for size, sizes in zip(shape, wanted, strict=True))
    if not isinstance(mask, Tensor) or mask.is_complex() or not (shape == (batch, length) or whole):
        raise ValueError(
            f"attention_mask{shown(mask)}; it must be {(batch, length)}, 1 at text and 0 at padding, or "
            f"{(batch, 1, length, length)}, in which 1 or {batch} rows, 1 or {heads} heads, 1 or {length} queries fit."
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
        if bool(mask.any()) and not bool(other.any()):
            raise ValueError(
                "attention_mask holds 0 and 1 as floating-point numbers, which four dimensions add to the scores: pass "
                "it as booleans or integers."
            )
    elif bool(other.any()):
        place = tuple(other.nonzero()[0].tolist())
        more = "; a mask that is added has the shape (B, 1, L, L)" if mask.is_floating_point() else ""
        raise ValueError(f"attention_mask holds {mask[place].item()} at {place}; it must be 1 or 0{more}.")


def check_labels(
    config: Any, given: Tensor, labels: Tensor, loss_weights: Tensor | None, max_targets: int | None
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
    if not has_values(labels):  # under a compiler nor at max_targets, which differs from batch to batch
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
    if max_targets is not None and not (is_integer(max_targets) and max_targets >= number):
        raise ValueError(f"max_targets={max_targets!r} must be an integer, at least the number of labels, {number}.")


def is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_complex() and value.dtype != torch.bool


def shown(value: Any) -> str:
    """Says what an argument is, to stand behind its name."""
    if isinstance(value, Tensor):
        return f" has shape {tuple(value.shape)} and dtype {value.dtype}"
    return f"={' '.join(repr(value).split())[:60]} is no tensor"


# ---------------------------------------------------------------------------------------------------------
# From text with blanks
# ---------------------------------------------------------------------------------------------------------

# Finds the beginning of a blank in any spelling, so that a slip is an error and not text.
BLANK_BEGINS = r"\[(?i:MASK)"
BLANK = re.compile(r"\[MASK(?::([0-9]{1,9}))?\]")
# Longer than any model's text: a typing error must not fill the memory.
MAX_BLANK = 2**16


def encode_blanks(text: str, tokenizer: Any, mask_token_id: int) -> list[int]:
    """Returns the canvas of a text with blanks: its token ids, with `mask_token_id` where text is wanted.

    `[MASK]`, or the tokenizer's own mask token, is a blank of one token, `[MASK:n]` one of n tokens. The text between
    is tokenised without special tokens: what spells one is encoded as its characters.

    A backslash before a blank makes it text: "\\[Mask of Zorro]" is the text "[Mask of Zorro]". Two are a backslash and
    a blank. Before anything else a backslash is text.

    One space before a blank belongs to the blank, since a token begins with the space before its word: "It was [MASK]
    of" is the canvas of "It was cold of" with " cold" masked. Other white space stays text. The text that is read back
    is the given one with its blanks filled, also by tokenizers that put a space before all that they are given.

    Args:
        text: with any number of blanks, or none.
        tokenizer: of transformers.
        mask_token_id: the model's `config.mask_token_id`.

    Returns:
        L ids.

    Raises:
        ValueError: for a blank that is malformed, empty or of more than `MAX_BLANK` tokens, and for text that the
            tokenizer cannot encode as it stands (see [`encode_text`] and [`encode_after_text`]).
    """
    return encode_with_spans(text, tokenizer, mask_token_id)[0]


def encode_with_spans(
    text: str, tokenizer: Any, mask_token_id: int, name: str = "text"
) -> tuple[list[int], list[tuple[int, int]]]:
    """Returns what [`encode_blanks`] does, and where in the canvas each blank begins and ends (exclusive)."""
    if not isinstance(text, str):
        raise ValueError(f"{name}={text!r} must be a string, with blanks such as [MASK] or [MASK:12].")
    check_tokenizer_mask(tokenizer, mask_token_id)
    check_unicode(text, name)
    pieces, sizes = split_at_blanks(text, tokenizer.mask_token, name)
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    for piece, size in zip(pieces, [*sizes, 0], strict=True):
        if size:
            piece = piece.removesuffix(" ")
        if piece:
            encode = encode_after_text if ids else encode_text
            ids += encode([piece], tokenizer, name)[0]
        if size:
            spans.append((len(ids), len(ids) + size))
            ids += [mask_token_id] * size
    return ids, spans


def split_at_blanks(text: str, mask_token: str | None, name: str = "text") -> tuple[list[str], list[int]]:
    """Returns the K + 1 pieces of text around the K blanks, and the tokens of each blank."""
    blank_begins = re.compile(r"(\\*)(?:" + BLANK_BEGINS + (f"|{re.escape(mask_token)}" if mask_token else "") + ")")
    pieces, sizes = [""], list[int]()
    end = 0  # of what has been read of the text
    for found in blank_begins.finditer(text):
        begin, escapes = found.end(1), len(found[1])
        pieces[-1] += text[end : found.start()] + "\\" * (escapes // 2)
        end = begin
        if escapes % 2:  # what looks like a blank is text
            continue
        if mask_token and text.startswith(mask_token, begin):
            size, end = 1, begin + len(mask_token)
        else:
            blank = BLANK.match(text, begin)
            size = int(blank[1] or 1) if blank else 0
            if blank is None or not 1 <= size <= MAX_BLANK:
                raise ValueError(
                    f"{name} has {text[begin : begin + 16]!r} at character {begin}; a blank is written [MASK] for one "
                    f"token or [MASK:n] for n tokens, n from 1 to {MAX_BLANK}, and \\[ is a bracket that is text."
                )
            end = blank.end()
        sizes.append(size)
        pieces.append("")
    pieces[-1] += text[end:]
    return pieces, sizes


__all__ = [
    "Positions",
    "TextOrIds",
    "as_tensor",
    "check_inputs",
    "check_keywords",
    "check_labels",
    "decode_after_text",
    "decode_span",
    "encode_after_text",
    "encode_blanks",
    "encode_text",
    "encode_with_spans",
    "make_canvas",
    "padded_nonzero",
    "shown",
    "widen",
]
